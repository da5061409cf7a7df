"""The methods against the authors' formulas, written out slowly, and other libraries."""

import cv2
import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import reference
from families import make
from helpers import LAYOUTS, expected_readout, make_vit
from vitexplain.attention import weighted
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.drawing.heatmap import stretch
from vitexplain.methods.registry import METHODS

CATEGORIES = [2, 5, 0]
OWN = ("attention", "relevance", "legrad", "gradcam")
OF_CATEGORY = OWN[1:]


def slow_relevance(model, images, categories, prefix, read, start=0):
    """Equations 5 and 6 of Chefer et al. 2021, R as a whole matrix."""
    attentions, gradients = reference.gradients(model, images, categories)
    masks = []
    for b in range(len(images)):
        blocks = zip(
            reference.of_image(attentions, b), reference.of_image(gradients, b), strict=True
        )
        weighted = [reference.weighted(a, g, "mean") for a, g in blocks][start:]
        relevance = np.eye(len(weighted[0]))
        for matrix in weighted:
            relevance = relevance + reference.multiply(matrix, relevance)
        row = np.array(read) @ (relevance - np.eye(len(relevance)))
        masks.append(row[prefix:])
    return np.array(masks)


def slow_legrad(model, image, category, prefix):
    """One image's (N - P,): each block's score differentiated on its own, loops for the means."""
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(image)))
    maps = []
    for block in model.blocks:
        read = block.norm1(tokens)
        _, attention = reference.attend(block.attn, read)
        attention = attention.detach().requires_grad_()
        b, n, c = read.shape
        value = block.attn.qkv(read).reshape(b, n, 3, 3, c // 3).permute(2, 0, 3, 1, 4)[2]
        out = block.attn.proj((attention @ value).transpose(1, 2).reshape(b, n, c))
        tokens = tokens + block.ls1(out)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        pooled = model.fc_norm(model.norm(tokens.mean(dim=1)))
        logits = model.head(pooled)
        if hasattr(model, "head_dist"):
            logits = (logits + model.head_dist(pooled)) / 2
        (gradient,) = torch.autograd.grad(logits[0, category], attention)
        tokens = tokens.detach()
        columns = np.zeros(n)
        for head in gradient[0].double().numpy():
            for row in head:
                columns += np.maximum(row, 0) / (len(gradient[0]) * n)
        maps.append(columns)
    return np.mean(maps, axis=0)[prefix:]


def slow_pooled_legrad(model, image, category):
    """The same where a pool reads the tokens: its attention over each block's, (patches,)."""
    pool, maps = model.attn_pool, []
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(image)))
    for block in model.blocks:
        tokens = block(tokens).detach()
        read = model.norm(tokens)
        read = read if model.pool_include_prefix else read[:, model.num_prefix_tokens :]
        _, n, width = read.shape
        query = pool.q(pool.latent)[0, 0].view(pool.num_heads, -1)
        query = pool.q_norm(query)
        keys, values = pool.kv(read)[0].view(n, 2, pool.num_heads, -1).unbind(1)
        keys = pool.k_norm(keys)
        scores = torch.einsum("hd,nhd->hn", query, keys) / query.shape[1] ** 0.5
        attention = scores.softmax(dim=1).detach().requires_grad_()
        pooled = pool.proj(torch.einsum("hn,nhd->hd", attention, values).reshape(1, width))
        pooled = pooled + pool.mlp(pool.norm(pooled))
        logits = model.head(model.fc_norm(pooled))
        (gradient,) = torch.autograd.grad(logits[0, category], attention)
        maps.append(gradient.double().clamp(min=0).mean(dim=0).numpy())
    return np.mean(maps, axis=0)[-model.patch_embed.num_patches :]


def as_masks(rows):
    rows = np.asarray(rows)
    return (rows / rows.max(axis=1, keepdims=True)).reshape(len(rows), 4, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_relevance_is_the_papers_recursion(layout, images):
    changes, prefix, _ = LAYOUTS[layout]
    model = make_vit(**changes)
    read = expected_readout(layout, prefix)
    expected = slow_relevance(model, images, CATEGORIES, prefix, read)
    found = METHODS["relevance"].make(model).explain(images, CATEGORIES)
    np.testing.assert_allclose(found.masks, as_masks(expected), rtol=1e-4, atol=1e-6)
    assert found.categories == CATEGORIES


def test_relevance_begins_at_the_start_block(images):
    model = make_vit()
    read = expected_readout("class token", 1)
    expected = slow_relevance(model, images, CATEGORIES, 1, read, start=2)
    found = METHODS["relevance"].make(model, start_block=2).batch(images, CATEGORIES)
    np.testing.assert_allclose(found, as_masks(expected), rtol=1e-4, atol=1e-6)


def test_exact_relevance_keeps_the_models_precision(images, monkeypatch):
    monkeypatch.setattr(weighted, "LOW_PRECISION_FROM", 1)
    monkeypatch.setattr(weighted, "_has_bf16", lambda _device: True)
    model = make_vit()
    read = expected_readout("class token", 1)
    expected = as_masks(slow_relevance(model, images, CATEGORIES, 1, read))
    exact = METHODS["relevance"].make(model, exact=True).batch(images, CATEGORIES)
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-6)
    rough = METHODS["relevance"].make(model).batch(images, CATEGORIES)
    assert np.abs(rough - expected).max() > 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_legrad_is_the_papers_mean_of_gradients(layout, images):
    changes, prefix, _ = LAYOUTS[layout]
    model = make_vit(**changes)
    expected = [
        slow_legrad(model, image[None], category, prefix)
        for image, category in zip(images, CATEGORIES, strict=True)
    ]
    found = METHODS["legrad"].make(model).explain(images, CATEGORIES)
    np.testing.assert_allclose(found.masks, as_masks(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.logits, reference.forward(model, images)[0].detach())


@pytest.mark.parametrize(
    "changes",
    [
        {"class_token": False},
        {"reg_tokens": 2},
        {"reg_tokens": 2, "pool_include_prefix": True},
    ],
)
def test_legrad_of_a_pool_is_the_mean_of_its_gradients(changes, images):
    """A model with an attention pool: its authors differentiate with respect to that alone."""
    model = make_vit(global_pool="map", **changes)
    expected = [
        slow_pooled_legrad(model, image[None], category)
        for image, category in zip(images, CATEGORIES, strict=True)
    ]
    found = METHODS["legrad"].make(model).explain(images, CATEGORIES)
    np.testing.assert_allclose(found.masks, as_masks(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.scores.reshape(3, 16), expected, rtol=1e-4, atol=1e-6)
    last = METHODS["legrad"].make(model, start_block=2).explain(images, CATEGORIES)
    assert not np.allclose(last.masks, found.masks, atol=0.01)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_is_the_row_that_the_classifier_reads(layout, images):
    changes, prefix, _ = LAYOUTS[layout]
    model = make_vit(**changes)
    read = np.array(expected_readout(layout, prefix))
    _, attentions = reference.forward(model, images)
    for block, head in ((-1, None), (0, None), (1, 2)):
        matrices = attentions[block].detach().double().numpy()
        fused = matrices.mean(axis=1) if head is None else matrices[:, head]
        expected = as_masks([(read @ matrix)[prefix:] for matrix in fused])
        found = METHODS["attention"].make(model, block=block, head=head).batch(images)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def enlarged(mask, side):
    return stretch(cv2.resize(mask, (side, side)))


def theirs(model, layer, image, category, reshape):
    """pytorch-grad-cam's map of one image, at its size.

    It divides by the largest value plus 1e-7, which on random models is not nothing: undone here.
    """
    with GradCAM(model, [layer], reshape_transform=reshape) as cam:
        return stretch(cam(image, [ClassifierOutputTarget(category)])[0])


@pytest.mark.parametrize("layout", ["class token", "4 registers", "no prefix, average"])
def test_gradcam_is_that_of_pytorch_grad_cam(layout, images):
    changes, prefix, _ = LAYOUTS[layout]
    model = make_vit(**changes)

    def reshape(tokens):
        return tokens[:, prefix:].reshape(-1, 4, 4, tokens.shape[-1]).permute(0, 3, 1, 2)

    masks = METHODS["gradcam"].make(model).batch(images, CATEGORIES)
    for mask, image, category in zip(masks, images, CATEGORIES, strict=True):
        expected = theirs(model, model.blocks[-1].norm1, image[None], category, reshape)
        np.testing.assert_allclose(enlarged(mask, 32), expected, atol=1e-4)


def test_gradcam_of_swin_is_that_of_pytorch_grad_cam():
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, num_classes=5).eval()
    image = torch.randn(1, 3, 112, 112)
    expected = theirs(
        model, model.layers[-1].blocks[-1].norm1, image, 3, lambda t: t.permute(0, 3, 1, 2)
    )
    mask = METHODS["gradcam"].make(model)(image, 3)
    assert mask.shape == (4, 4)
    np.testing.assert_allclose(enlarged(mask, 112), expected, atol=1e-4)


@pytest.mark.parametrize("name", OF_CATEGORY)
def test_several_categories_are_the_same_as_one_by_one(name, images):
    method = METHODS[name].make(make_vit())
    several = method.explain_several(images, [[0, 3], [1, 1], [6, 2]])
    for found, categories in zip(several, ([0, 1, 6], [3, 1, 2]), strict=True):
        assert found.categories == categories
        np.testing.assert_allclose(found.masks, method.batch(images, categories), atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_a_batch_is_the_same_as_one_by_one(name, images):
    method = METHODS[name].make(make_vit())
    batch = method.batch(images)
    for image, mask in zip(images, batch, strict=True):
        np.testing.assert_allclose(method(image[None]), mask, atol=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_the_model_is_left_as_it_was(name, images):
    model = make_vit().train()
    model.head.weight.requires_grad_(False)

    def state():
        return [
            (m.training, getattr(m, "fused_attn", None), len(m._forward_hooks),
             len(m._forward_pre_hooks))
            for m in model.modules()
        ] + [(p.requires_grad, p.grad) for p in model.parameters()]  # fmt: skip

    before = state()
    METHODS[name].make(model).explain(images)
    assert state() == before
    with pytest.raises(ValueError, match="does not take"):
        METHODS[name].make(model).explain(torch.zeros(1, 3, 40, 40))
    assert state() == before


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    "family",
    [
        "vit_small_patch14_reg4_dinov2",
        "eva02_tiny_patch14_224",
        "beit_base_patch16_224",
        "vit_relpos_small_patch16_224",
        "vit_base_patch16_siglip_224",
        "vit_pwee_patch16_reg1_gap_256",
        "vit_tiny_r_s16_p8_224",
    ],
)
def test_families(name, family):
    """Whatever the tokens are: a map that follows the image."""
    model = make(family)
    height = 56 if model.patch_embed.patch_size[0] == 14 else 64
    height = 128 if "r_s16" in family else height
    images = torch.randn(2, 3, height, height, generator=torch.Generator().manual_seed(0))
    masks = METHODS[name].make(model).batch(images)
    assert np.isfinite(masks).all() and masks.min() >= 0
    assert not np.allclose(masks[0], masks[1], atol=1e-3)


def test_what_cant_be_explained_is_refused():
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, num_classes=5)
    for name in ("attention", "legrad"):
        with pytest.raises(UnsupportedModel, match="Swin"):
            METHODS[name].make(swin)
    with pytest.raises(ValueError, match="block must be from 0 to 2, not 3"):
        METHODS["attention"].make(make_vit(), block=3)
    with pytest.raises(ValueError, match="head must be from 0 to 2, not 3"):
        METHODS["attention"].make(make_vit(), head=3).batch(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="no categories"):
        METHODS["relevance"].make(make_vit(num_classes=0)).batch(torch.zeros(1, 3, 32, 32))
