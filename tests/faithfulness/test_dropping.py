"""Tokens left out of the blocks: against forward passes by hand, and against masked keys."""

import math
from functools import partial

import numpy as np
import pytest
import timm
import torch
from timm.layers import HybridEmbed, Mlp
from timm.models.eva import Eva
from torch import nn

from helpers import LAYOUTS, make_vit
from vitexplain.attention.shadow import shadow_of
from vitexplain.errors import RequestError
from vitexplain.faithfulness.dropping import drops_tokens, only_tokens
from vitexplain.faithfulness.measures import evaluate_images, removed
from vitexplain.faithfulness.removal import Removal
from vitexplain.faithfulness.states import Answers, state_of
from vitexplain.methods.registry import METHODS

DROPPING = ("class token", "4 registers", "prefix pooled too", "distilled")


def by_hand(model, image, shown):
    """Logits (K,) of one image from its prefix tokens and the shown patches, block by block."""
    prefix = model.num_prefix_tokens
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(image[None]))
        tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix:][:, shown]], dim=1)
        tokens = model.norm_pre(tokens)
        for block in model.blocks:
            tokens = block(tokens)
        return model.forward_head(model.norm(tokens))[0]


def with_keys_masked(model, image, shown):
    """The same from all tokens, the keys of hidden ones masked in every block."""
    prefix = model.num_prefix_tokens
    allowed = torch.cat([torch.ones(prefix, dtype=torch.bool), shown])
    mask = torch.zeros(len(allowed)).masked_fill(~allowed, -math.inf).expand(1, 1, len(allowed), -1)
    with torch.no_grad():
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))
        for block in model.blocks:
            tokens = block(tokens, attn_mask=mask)
        return model.forward_head(model.norm(tokens))[0]


def some_shown(seed, count=16):
    """Several (16,) bool: none, one, some and all of the patches."""
    rng = np.random.default_rng(seed)
    shown = [rng.permutation(count) < number for number in (0, 1, 5, 5, 11, count)]
    return [torch.from_numpy(each) for each in shown]


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        *((layout, {}) for layout in DROPPING),
        ("class token", {"pre_norm": True}),
        ("4 registers", {"no_embed_class": True}),
    ],
)
def test_answers_are_those_of_the_tokens_that_are_left(layout, changes, images):
    model = make_vit(**LAYOUTS[layout][0] | changes)
    assert drops_tokens(model)
    answers = Answers(model, images, "exclusive", batch_size=4)
    shown = {image: some_shown(image) for image in range(3)}
    asked = {
        (image, place): (state_of(image, "drop", (4, 4), each.numpy()), (image + place) % 7)
        for image, several in shown.items()
        for place, each in enumerate(several)
    }
    answers.ask(asked.values())
    for (image, place), (state, category) in asked.items():
        logits = by_hand(model, images[image], shown[image][place])
        found = answers[state, category]
        assert found.probability == pytest.approx(float(logits.softmax(0)[category]), abs=1e-5)
        assert found.first == (int(logits.argmax()) == category)


@pytest.mark.parametrize("layout", ["class token", "4 registers", "distilled"])
def test_leaving_tokens_out_is_masking_their_keys_everywhere(layout, images):
    model = make_vit(**LAYOUTS[layout][0])
    for shown in some_shown(7):
        kept = shown.nonzero()[:, 0][None]
        with torch.no_grad(), only_tokens(model, kept):
            found = model(images[:1])[0]
        expected = with_keys_masked(model, images[0], shown)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_all_tokens_are_the_plain_pass_and_the_hook_is_gone(images):
    model = make_vit()
    with torch.no_grad():
        plain = model(images)
        with only_tokens(model, torch.arange(16).expand(3, -1)):
            assert torch.equal(model(images), plain)
        with only_tokens(model, torch.arange(3).expand(3, -1)):
            assert not torch.allclose(model(images), plain, atol=0.01)
        assert torch.equal(model(images), plain)
    assert not model.norm_pre._forward_hooks


def test_what_hidden_patches_show_is_of_no_consequence(images):
    """Unlike with a fill: here another image in their place changes nothing."""
    model, shown = make_vit(), some_shown(3)[3]
    pixels = shown.reshape(1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    mixed = torch.where(pixels, images[0], images[1])
    state = state_of(0, "drop", (4, 4), shown.numpy())
    values = []
    for image in (images[0], mixed):
        answers = Answers(model, image[None], "exclusive")
        answers.ask([(state, 1)])
        values.append(answers[state, 1].probability)
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_passes_have_as_many_tokens_as_are_shown_and_few_batches(images):
    """States of one step go together, whatever the image or the map."""
    model, sizes = make_vit(), []
    model.blocks[0].register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[:2]))
    masks = np.random.default_rng(1).random((3, 4, 4), dtype=np.float32)
    removal = Removal(model, images, [2, 0, 5], "drop", 4, batch_size=64)
    curves = removal.deletion(masks)
    assert sorted(map(tuple, sizes)) == [(3, 1), (3, 5), (3, 9), (3, 13), (3, 17)]
    for image, category in enumerate([2, 0, 5]):
        order = np.argsort(-masks[image].ravel())
        for step in range(5):
            shown = torch.ones(16, dtype=torch.bool)
            shown[order[: 4 * step]] = False
            logits = by_hand(model, images[image], shown)
            expected = float(logits.softmax(0)[category])
            assert curves.probabilities[image, step] == pytest.approx(expected, abs=1e-5)


def test_a_batch_that_did_not_fit_is_not_tried_again(images):
    model, tried = make_vit(), []

    def limited(_layer, inputs):
        tried.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise RuntimeError("out of memory")

    model.blocks[0].register_forward_pre_hook(limited)
    masks = np.random.default_rng(1).random((3, 4, 4), dtype=np.float32)
    Removal(model, images, [2, 0, 5], "drop", 8, batch_size=4).insertion(masks)
    assert [size for size in tried if size > 2] == [3]


class OwnMlp(Mlp):
    pass


def own_forward():
    model = make_vit()
    model.forward = lambda images: type(model).forward(model, images)
    return model


def overlapping():
    model = make_vit()
    model.patch_embed.proj = nn.Conv2d(3, 24, 16, stride=8, padding=4)
    return model


def with_stem():
    """Tokens that see all around them, by a convolution as wide as a patch."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.Conv2d(8, 8, 5, 4, 2))
    embed = partial(HybridEmbed, backbone=stem, proj=True)
    return make_vit(embed_layer=embed, patch_size=1)


REFUSED = {
    "no prefix": (lambda: make_vit(class_token=False, global_pool="avg"), "reads patches alone"),
    "unused class token": (lambda: make_vit(global_pool="avg"), "reads patches alone"),
    "maximum": (lambda: make_vit(global_pool="max"), "max pooling"),
    "attention pool": (lambda: make_vit(global_pool="map", class_token=False), "by attention"),
    "rotary": (lambda: make_vit(Eva, use_rot_pos_emb=True), "class is not timm's"),
    "own blocks": (lambda: make_vit(mlp_layer=OwnMlp), "code of their own"),
    "own forward": (own_forward, "forward pass is not timm's own"),
    "overlapping patches": (overlapping, "pixels beyond"),
    "stem of convolutions": (with_stem, "pixels beyond"),
    "convolutions": (lambda: timm.create_model("resnet18"), "class is not timm's"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_dropping_would_change_are_refused(name):
    make, reason = REFUSED[name]
    model = make()
    assert not drops_tokens(model) and not drops_tokens(shadow_of(model))
    size = 224 if name == "convolutions" else 32
    with pytest.raises(RequestError, match=f"{reason}.*mean or blur"):
        Removal(model, torch.randn(1, 3, size, size), [0], "drop")


def test_maps_of_another_grid_are_refused_or_have_no_values(images):
    model, rng = make_vit(), np.random.default_rng(0)
    scores = {"own": rng.random((3, 4, 4)), "coarse": rng.random((3, 2, 2))}
    found = removed(Answers(model, images, "exclusive"), scores, [0, 1, 2], 4, ["blur", "drop"])
    assert set(found["own"]) - set(found["coarse"]) == {"deletion_drop", "insertion_drop"}
    with pytest.raises(RequestError, match="4x4 patches, the model's own, not of 2x2"):
        Removal(model, images, [0, 1, 2], "drop").deletion(scores["coarse"])


def test_an_evaluation_has_what_the_model_allows(images, monkeypatch):
    monkeypatch.setattr(
        "vitexplain.faithfulness.measures._by_change",
        lambda methods, *_: {name: {} for name in methods},
    )
    methods, keys = {"relevance": METHODS["relevance"]}, {}
    for name, changes in (("plain", {}), ("mean", {"class_token": False, "global_pool": "avg"})):
        found = evaluate_images(make_vit(**changes), images, (1, 1, 1), methods, [2, 0, 5])
        keys[name] = set(found.values["relevance"])
    assert keys["plain"] - keys["mean"] == {"deletion_drop", "insertion_drop"}
    model = make_vit()
    found = evaluate_images(model, images, (1, 1, 1), methods, [2, 0, 5], fills=["drop"])
    values = found.values["relevance"]
    assert set(values) == {"deletion_drop", "insertion_drop", "time"}
    maps = METHODS["relevance"].make(model).explain(images, [2, 0, 5]).masks
    removal = Removal(model, images, [2, 0, 5], "drop", 10)
    np.testing.assert_allclose(values["deletion_drop"], removal.deletion(maps).areas, atol=1e-6)
    np.testing.assert_allclose(values["insertion_drop"], removal.insertion(maps).areas, atol=1e-6)
    with pytest.raises(RequestError, match="fill must be one of mean, blur, drop"):
        evaluate_images(model, images, (1, 1, 1), methods, [2, 0, 5], fills=["black"])
