"""The candidates of benchmarks.candidates against passes and products written out by hand."""

import numpy as np
import pytest
import torch
from conftest import state_of
from torch.nn import functional as F

from benchmarks.candidate_list import CANDIDATES
from benchmarks.candidate_maps import LibraRules
from benchmarks.candidate_mixtures import in_order, mean_of_shifts, moved_back
from helpers import make_vit
from vitexplain.attention.capture import inference_state
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.methods.registry import METHODS

CATEGORIES = [2, 5, 0]


@pytest.fixture(scope="module")
def model():
    return make_vit(depth=4)


def scores_of(name, model, images):
    """(B, 16), of a candidate."""
    made = CANDIDATES[name].method.make(model)
    return made.explain(images, CATEGORIES).scores.reshape(len(images), -1)


def attention_by_hand(block, tokens):
    """(q, k, v) (B, N, H, d) and the attention (B, H, N, N) of one block."""
    attn = block.attn
    batch, count, width = tokens.shape
    qkv = attn.qkv(block.norm1(tokens)).reshape(batch, count, 3, attn.num_heads, -1)
    query, key, value = qkv.unbind(dim=2)
    scores = torch.einsum("bihd,bjhd->bhij", query, key) / (width // attn.num_heads) ** 0.5
    return query, key, value, scores.softmax(dim=-1)


def after_attention(block, tokens, output):
    """A block's output from its input and its heads' values (B, N, C)."""
    tokens = tokens + block.attn.proj(output)
    return tokens + block.mlp(block.norm2(tokens))


def tokens_before(model, images, number):
    tokens = model._pos_embed(model.patch_embed(images))
    return model.blocks[:number](tokens)


def chosen_sum(model, tokens):
    logits = model.head(model.norm(tokens)[:, 0])
    return logits[torch.arange(len(logits)), CATEGORIES].sum()


def test_cdam(model, images):
    last = model.blocks[-1]
    tokens = tokens_before(model, images, 3).detach()
    features = last.norm1(tokens).detach().requires_grad_()
    output = tokens + last.attn(features)
    output = output + last.mlp(last.norm2(output))
    (gradient,) = torch.autograd.grad(chosen_sum(model, output), features)
    expected = (features * gradient).sum(dim=-1)[:, 1:].detach()
    np.testing.assert_allclose(scores_of("cdam", model, images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "first"), [("grad_eclip", 3), ("grad_eclip_later", 2)])
def test_grad_eclip(model, images, name, first):
    tokens = tokens_before(model, images, first)
    seen = []
    for block in model.blocks[first:]:
        query, key, value, attention = attention_by_hand(block, tokens)
        output = torch.einsum("bhij,bjhd->bihd", attention, value).flatten(2)
        output = output if seen else output.detach().requires_grad_()
        seen.append((query.flatten(2), key.flatten(2), value.flatten(2), output))
        tokens = after_attention(block, tokens, output)
    gradients = torch.autograd.grad(chosen_sum(model, tokens), [each[3] for each in seen])
    expected = np.zeros((3, 16))
    for (query, key, value, _), gradient in zip(seen, gradients, strict=True):
        for image in range(3):
            cosines = [
                F.cosine_similarity(query[image, 0], key[image, 1 + i], dim=0).item()
                for i in range(16)
            ]
            low, high = min(cosines), max(cosines)
            for i in range(16):
                weighted = (gradient[image, 0] * value[image, 1 + i]).sum().item()
                expected[image, i] += weighted * (cosines[i] - low) / (high - low)
    np.testing.assert_allclose(scores_of(name, model, images), expected, atol=1e-4, rtol=1e-3)


def test_grad_eclip_needs_the_class_token(images):
    model = make_vit(global_pool="avg")
    with pytest.raises(UnsupportedModel, match="does not read the class token alone"):
        scores_of("grad_eclip", model, images)


@pytest.mark.parametrize("biased", [False, True])
def test_libra_gradients_are_complete(images, biased):
    """Without biases, all of the logit is in the tokens, before each block; with them it is not."""
    model = make_vit(depth=4)
    if not biased:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
    tokens = tokens_before(model, images, 2).detach().requires_grad_()
    plain = chosen_sum(model, model.blocks[2:](tokens)).item()
    with inference_state(model, freeze=True, fused=True), LibraRules():
        inner = model.blocks[2](tokens)
        logit = chosen_sum(model, model.blocks[3](inner))
    assert logit.item() == pytest.approx(plain, rel=1e-5)
    gradients = torch.autograd.grad(logit, [tokens, inner])
    carried = [
        (each * of).sum().item() for each, of in zip((tokens, inner), gradients, strict=True)
    ]
    assert all(each == pytest.approx(plain, rel=1e-3) for each in carried) is not biased


def libra_block(block, tokens):
    """A block's output, and its attention; what LibraGrad takes for constant is detached."""

    def norm(layer, x):
        centred = x - x.mean(dim=-1, keepdim=True)
        size = (centred.square().mean(dim=-1, keepdim=True) + layer.eps).sqrt().detach()
        return centred / size * layer.weight + layer.bias

    _, _, _, attention = attention_by_hand(block, tokens.detach())
    attention = attention.detach().requires_grad_()
    values = block.attn.qkv(norm(block.norm1, tokens)).chunk(3, dim=-1)[2]
    values = values.unflatten(2, (block.attn.num_heads, -1))
    output = torch.einsum("bhij,bjhd->bihd", attention, values).flatten(2)
    tokens = tokens + block.attn.proj(output)
    hidden = block.mlp.fc1(norm(block.norm2, tokens))
    share = torch.special.ndtr(hidden).detach()  # GELU is x times this
    return tokens + block.mlp.fc2(hidden * share), attention


def libra_by_hand(model, images):
    """(tokens before each later block, their attention, and gradients of both)."""
    tokens = tokens_before(model, images, 2).detach().requires_grad_()
    seen, attentions = [], []
    for block in model.blocks[2:]:
        seen.append(tokens)
        tokens, attention = libra_block(block, tokens)
        attentions.append(attention)
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    size = (centred.square().mean(dim=-1, keepdim=True) + model.norm.eps).sqrt().detach()
    logits = model.head((centred / size * model.norm.weight + model.norm.bias)[:, 0])
    score = logits[torch.arange(3), CATEGORIES].sum()
    gradients = torch.autograd.grad(score, [*seen, *attentions])
    return seen, attentions, gradients[:2], gradients[2:]


def test_libragrad(model, images):
    seen, _, gradients, _ = libra_by_hand(model, images)
    pairs = zip(seen, gradients, strict=True)
    expected = sum((tokens * gradient).sum(dim=-1) for tokens, gradient in pairs)[:, 1:]
    found = scores_of("libragrad", model, images)
    np.testing.assert_allclose(found, expected.detach(), atol=1e-4, rtol=1e-3)


def test_libragrad_rollout(model, images):
    _, attentions, _, gradients = libra_by_hand(model, images)
    weighted = [
        (attention * gradient).clamp(min=0).mean(dim=1).detach().numpy()
        for attention, gradient in zip(attentions, gradients, strict=True)
    ]
    expected = []
    for image in range(3):
        row = np.eye(17)[0]
        for matrix in reversed([each[image].copy() for each in weighted]):
            patches = matrix[:, 1:]
            weakest = np.sort(patches, axis=None)[int(0.9 * patches.size)]
            patches[patches < weakest] = 0
            row = row @ ((matrix + np.eye(17)) / (matrix.sum(axis=1, keepdims=True) + 1))
        expected.append(row[1:])
    found = scores_of("libragrad_rollout", model, images)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-3)


def of_method(name, model, images, **options):
    """(B, 16), of a method or another candidate."""
    method = METHODS[name] if name in METHODS else CANDIDATES[name].method
    return method.make(model, **options).explain(images, CATEGORIES).scores.reshape(3, -1)


def test_of_later_blocks(model, images):
    for name in ("legrad", "relevance"):
        found = scores_of(f"{name}_later", model, images)
        np.testing.assert_array_equal(found, of_method(name, model, images, start_block=2))
        assert not np.allclose(found, of_method(name, model, images))


@pytest.mark.parametrize("name", ["grad_rollout", "consensus"])
def test_against_rivals(model, images, name):
    made = METHODS[name].make(model)
    expected = made.explain(images, CATEGORIES, "auto").scores.reshape(3, -1)
    found = scores_of(f"{name}_against", model, images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found < 0).any()


@pytest.mark.parametrize(
    ("name", "own"),
    [("consensus_of_five", ["attnlrp", "relevance"]), ("consensus_with_libragrad", ["libragrad"])],
)
def test_other_consensuses(model, images, name, own):
    """Their order is that of the sums of their methods' ranks."""
    parts = [
        (METHODS.get(each) or CANDIDATES[each].method)
        .make(model)
        .explain(images, CATEGORIES)
        .scores.reshape(3, -1)
        for each in ("grad_rollout", "legrad", "gradcam", *own)
    ]
    for image, found in enumerate(scores_of(name, model, images)):
        sums = np.sum([counted_ranks(part[image]) for part in parts], axis=0)
        assert counted_ranks(found) == counted_ranks(sums)


def test_products_of_maps(model, images):
    relevance, consensus, rollout, cam = (
        of_method(name, model, images)
        for name in ("relevance", "consensus", "grad_rollout", "gradcam")
    )
    found = scores_of("consensus_times_relevance", model, images)
    np.testing.assert_allclose(found, relevance * consensus, rtol=1e-5)
    expected = np.cbrt(relevance * rollout * np.maximum(cam, 0))
    np.testing.assert_allclose(scores_of("geometric_mean", model, images), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "among"),
    [
        ("relevance_by_consensus", ["consensus"]),
        ("relevance_by_both", ["consensus", "relevance"]),
    ],
)
def test_relevance_in_another_order(model, images, name, among):
    relevance = of_method("relevance", model, images)
    parts = [of_method(each, model, images) for each in among]
    for image, found in enumerate(scores_of(name, model, images)):
        sums = [sum(each) for each in zip(*(counted_ranks(p[image]) for p in parts), strict=True)]
        expected = np.interp(counted_ranks(sums), range(16), np.sort(relevance[image]))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def counted_ranks(values):
    """How many are smaller, and half of the others that are equal."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def test_values_in_order_of_mean_ranks():
    """The middle two share a mean rank, and so the mean of the middle values."""
    values = np.array([[[1.0, 5.0], [2.0, 10.0]]])
    parts = [np.array([[[0.0, 1.0], [2.0, 3.0]]]), np.array([[[-9.0, 8.0], [7.0, 9.0]]])]
    np.testing.assert_allclose(in_order(values, parts), [[[1, 3.5], [3.5, 10]]])


def test_mean_of_shifts():
    """Of scores that are what a patch shows: each half patch counts where it is shown, only."""
    shown = np.arange(36.0).reshape(1, 6, 6) ** 2  # of each half patch of the image
    moved, seen = [], [[[] for _ in range(6)] for _ in range(6)]
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        shifted = np.pad(shown, ((0, 0), (down, 0), (across, 0)), mode="edge")[:, :6, :6]
        scores = shifted.reshape(1, 3, 2, 3, 2).sum(axis=(2, 4))
        moved.append(moved_back(scores, down, across))
        for row in range(6 - down):
            for column in range(6 - across):
                place = (row + down) // 2, (column + across) // 2
                seen[row][column].append(scores[0][place])
    means = np.array([[np.mean(each) for each in row] for row in seen])
    expected = means.reshape(3, 2, 3, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(mean_of_shifts(moved)[0], expected)


@pytest.mark.parametrize("name", ["grad_rollout", "libragrad"])
def test_shifts_of_an_even_image(model, images, name):
    """It looks the same wherever it is shifted to: each shift has its map, elsewhere."""
    even = torch.ones_like(images) * images.mean(dim=(2, 3), keepdim=True)
    scores = (
        (METHODS.get(name) or CANDIDATES[name].method).make(model).explain(even, CATEGORIES).scores
    )
    padded = np.pad(
        scores.repeat(2, 1).repeat(2, 2), ((0, 0), (0, 1), (0, 1)), constant_values=np.nan
    )
    shifts = [
        padded[:, down : down + 8, across : across + 8] for down in (0, 1) for across in (0, 1)
    ]
    expected = np.nanmean(shifts, axis=0).reshape(3, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(3, -1)
    found = scores_of(f"{name}_shifted", model, even)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CANDIDATES)
def test_models_are_left_as_they_were_and_maps_are_the_same_again(name, images):
    model = make_vit(reg_tokens=2)
    before = state_of(model)
    first = scores_of(name, model, images)
    assert state_of(model) == before
    assert first.std() > 0
    np.testing.assert_array_equal(first, scores_of(name, model, images))
