"""The consensus against its four methods, made one by one and ranked by counting."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import SMALL, make
from helpers import LAYOUTS, make_vit
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.methods.consensus import consensus
from vitexplain.methods.registry import METHODS

PARTS = ("grad_rollout", "legrad", "attnlrp", "gradcam")
CATEGORIES = [2, 5, 0]


def counted_ranks(values):
    """How many are smaller, and half of the others that are equal."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def slow_consensus(parts):
    """(n,) from each method's (n,): the place of a patch by its ranks, the value by its place."""
    n = len(parts[0])
    sums = [sum(column) for column in zip(*map(counted_ranks, parts), strict=True)]
    places = counted_ranks([round(each, 6) for each in sums])
    by_place = [0.0] * n
    for part in parts:
        size = max(abs(value) for value in part) or 1
        for place, value in enumerate(sorted(part)):
            by_place[place] += value / size / len(parts)
    low, high = np.floor(places).astype(int), np.ceil(places).astype(int)
    return (np.array(by_place)[low] + np.array(by_place)[high]) / 2


def of_parts(model, images, chosen, *, contrast=False):
    """[(B, n)] of each of the four methods; of a contrast itself, not less that of its reverse."""
    parts = []
    for name in PARTS:
        method = METHODS[name].make(model)
        if contrast:  # what is linear is not made less its reverse by explain
            method.linear = True
        parts.append(method.explain(images, chosen).scores.reshape(3, -1))
    return parts


@pytest.mark.parametrize(
    "changes",
    [
        *(LAYOUTS[name][0] for name in ("class token", "4 registers", "unused class token")),
        {"global_pool": "map", "class_token": False},
        {"depth": 1},  # nothing before the last attention has a gradient
    ],
)
def test_it_is_the_order_of_mean_ranks_with_mean_values(changes, images):
    model = make_vit(**changes)
    found = METHODS["consensus"].make(model).explain(images, CATEGORIES)
    parts = of_parts(model, images, CATEGORIES)
    for index in range(3):
        expected = slow_consensus([part[index].tolist() for part in parts])
        np.testing.assert_allclose(found.scores[index].ravel(), expected, atol=1e-5)
        mask = np.maximum(expected, 0) / expected.max()
        np.testing.assert_allclose(found.masks[index].ravel(), mask, atol=1e-5)
    assert found.categories == CATEGORIES
    torch.testing.assert_close(found.logits, model(images).detach(), atol=1e-5, rtol=1e-5)


def test_several_categories_cost_three_forward_passes(images):
    model, passes = make_vit(), []
    model.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    method = METHODS["consensus"].make(model)
    several = method.explain_several(images, [[0, 3], [1, 1], [6, 2]])
    assert len(passes) == 3
    for found, categories in zip(several, ([0, 1, 6], [3, 1, 2]), strict=True):
        assert found.categories == categories
        np.testing.assert_allclose(found.masks, method.batch(images, categories), atol=1e-5)


def test_against_is_the_contrast_less_its_reverse(images):
    model = make_vit()
    found = METHODS["consensus"].make(model).explain(images, CATEGORIES, against=[1])
    there = of_parts(model, images, found.targets, contrast=True)
    back = of_parts(model, images, [target.reversed() for target in found.targets], contrast=True)
    for index in range(3):
        expected, reverse = (
            slow_consensus([part[index].tolist() for part in parts]) for parts in (there, back)
        )
        scores = found.scores[index].ravel()
        np.testing.assert_allclose(scores, expected - reverse, atol=1e-5)
        np.testing.assert_allclose(found.masks[index].ravel(), scores / np.abs(scores).max())
    assert [target.index for target in found.targets] == CATEGORIES


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.permutations(range(9)), st.permutations(range(3)))
def test_what_must_not_matter(seed, order, methods):
    """The unit of a method, the order of methods, and where patches lie."""
    parts = np.random.default_rng(seed).normal(size=(3, 2, 3, 3)).round(1)  # with ties
    plain = consensus(list(parts))
    scaled = consensus([parts[0] * 1e-6, parts[1] * 40, parts[2]])
    np.testing.assert_allclose(scaled, plain, atol=1e-6)
    np.testing.assert_allclose(consensus([parts[m] for m in methods]), plain, atol=1e-6)
    moved = consensus(list(parts.reshape(3, 2, 9)[:, :, order].reshape(parts.shape)))
    np.testing.assert_allclose(moved.reshape(2, 9), plain.reshape(2, 9)[:, order], atol=1e-6)
    bent = consensus([np.exp(parts[0]), parts[1] ** 3, parts[2]])
    places = [np.argsort(each.reshape(2, 9), axis=1, kind="stable") for each in (plain, bent)]
    np.testing.assert_array_equal(*places)


def test_methods_that_agree_are_what_they_agree_on():
    scores = np.random.default_rng(0).normal(size=(2, 4, 4))
    expected = scores / np.abs(scores).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(consensus([scores, 3 * scores]), expected, atol=1e-6)
    assert consensus([np.zeros((1, 2, 2))] * 4).tolist() == np.zeros((1, 2, 2)).tolist()


@pytest.mark.parametrize(
    "family",
    [
        "vit_small_patch14_reg4_dinov2",
        "beit_base_patch16_224",
        "vit_pwee_patch16_reg1_gap_256",
        "vit_small_patch16_18x2_224",  # two attentions side by side: none of them is the last
    ],
)
def test_families(family):
    model = timm.create_model(family, **SMALL) if "18x2" in family else make(family)
    side = 56 if "patch14" in family else 64
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    found = METHODS["consensus"].make(model).explain(images, [0, 1, 2])
    parts = of_parts(model, images, [0, 1, 2])
    for index in range(3):
        expected = slow_consensus([part[index].tolist() for part in parts])
        np.testing.assert_allclose(found.scores[index].ravel(), expected, atol=1e-4)


def test_the_model_is_left_as_it_was(images):
    model = make_vit().train()
    before = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    METHODS["consensus"].make(model).explain(images)
    after = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    assert before == after
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "LeGrad, one of the four methods, can't: its head takes"),
        ("test_resnet", "its layers are not blocks of attention"),
        ("test_vit", "no categories"),
    ],
)
def test_refused_with_the_reason(name, reason):
    model = timm.create_model(name, num_classes=0 if name == "test_vit" else 5)
    with pytest.raises(UnsupportedModel, match=reason):
        METHODS["consensus"].make(model)
