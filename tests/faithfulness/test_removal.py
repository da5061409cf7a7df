"""Insertion, deletion, perturbation and the choice by them, against slow loops and Quantus."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Additive, make_vit
from vitexplain.faithfulness.removal import Curves, Removal, patch_ranks, perturbation
from vitexplain.faithfulness.score import faithfulness
from vitexplain.faithfulness.states import BLUR, FILLS, blurred
from vitexplain.methods.patches import patches_of_pixels

CATEGORIES = [2, 0, 5]


def random_masks(count, grid, seed=0):
    return np.random.default_rng(seed).random((count, *grid), dtype=np.float32)


def empty_of(image, fill):
    """(3, H, W) without any patch, written out."""
    if fill == "mean":
        return np.zeros_like(image)
    sigma = BLUR * min(image.shape[1:])
    return np.stack(
        [scipy.ndimage.gaussian_filter(c, sigma, mode="mirror", truncate=3) for c in image]
    )


def one_patch_at_a_time(model, image, mask, category, fill, insert, side=8):
    """[(probability, is the most likely)] of 0, 1, ... all patches moved."""
    whole, empty = image.numpy(), empty_of(image.numpy(), fill)
    now, then = (empty, whole) if insert else (whole, empty)
    now = now.copy()
    outputs = []
    places = sorted(np.ndindex(mask.shape), key=lambda place: -mask[place])
    for place in [None, *places]:
        if place is not None:
            y, x = place[0] * side, place[1] * side
            now[:, y : y + side, x : x + side] = then[:, y : y + side, x : x + side]
        with torch.no_grad():
            logits = model(torch.from_numpy(now)[None])[0]
        outputs.append((logits.softmax(0)[category].item(), int(logits.argmax()) == category))
    return outputs


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("insert", [False, True])
def test_curves_equal_one_patch_at_a_time(fill, insert):
    model = make_vit(img_size=(32, 48))  # 4 x 6 patches
    images = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    masks = random_masks(3, (4, 6))
    for steps, at in ((24, range(25)), (8, range(0, 25, 3))):
        removal = Removal(model, images, CATEGORIES, fill, steps, batch_size=5)
        curves = removal.insertion(masks) if insert else removal.deletion(masks)
        np.testing.assert_allclose(curves.shares, np.array(at) / 24)
        for i, category in enumerate(CATEGORIES):
            outputs = one_patch_at_a_time(model, images[i], masks[i], category, fill, insert)
            outputs = [outputs[moved] for moved in at]
            np.testing.assert_allclose(curves.probabilities[i], [p for p, _ in outputs], atol=2e-5)
            assert curves.first[i].tolist() == [first for _, first in outputs]


def test_area_is_under_the_curve_also_of_uneven_steps():
    curves = Curves(np.array([0, 0.5, 1]), np.array([[1, 0, 0], [0.5, 0.5, 0.5]]), np.zeros(1))
    assert curves.areas == pytest.approx([0.25, 0.5])
    model = Additive(np.arange(16))
    removal = Removal(model, torch.ones(1, 3, 32, 32), [0], "mean", 5)
    # 16 patches in 5 steps: 3, 3, 4, 3, 3
    shares = removal.deletion(random_masks(1, (4, 4))).shares
    assert (shares * 16).tolist() == [0, 3, 6, 10, 13, 16]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(16)), st.sampled_from([4, 10, 16]))
def test_no_order_beats_that_of_what_patches_are_worth(order, steps):
    worth = np.linspace(0.05, 1.3, 16) - 0.4  # some speak against the category
    model, image = Additive(worth), torch.ones(1, 3, 32, 32)
    removal = Removal(model, image, [0], "mean", steps)
    true = (worth - worth.min()).reshape(1, 4, 4).astype(np.float32)
    other = np.array(order, dtype=np.float32).reshape(1, 4, 4)
    tiny = 1e-6
    backwards = true.max() - true
    for masks in (other, backwards):
        assert removal.deletion(true).areas[0] <= removal.deletion(masks).areas[0] + tiny
        assert removal.insertion(true).areas[0] >= removal.insertion(masks).areas[0] - tiny
    assert removal.deletion(other).areas[0] <= removal.deletion(backwards).areas[0] + tiny


def test_map_of_what_decides_beats_the_reverse_and_most_random_ones():
    worth = np.random.default_rng(3).normal(size=16)
    model, image = Additive(worth), torch.ones(3, 32, 32)
    true = worth - worth.min()
    masks = [true, true.max() - true, *np.random.default_rng(4).random((20, 16))]
    masks = [mask.reshape(4, 4).astype(np.float32) for mask in masks]
    scores = [faithfulness(model, image, mask, 0) for mask in masks]
    assert max(scores) == scores[0]
    assert min(scores) == scores[1]
    # noise is as good as nothing: what it gains by insertion it loses by deletion
    assert abs(np.mean(scores[2:])) < 0.25 * scores[0]


def test_faithfulness_is_insertion_minus_deletion_of_both_fills(images):
    model, masks = make_vit(), random_masks(2, (4, 4))
    expected = []
    for mask, category in zip(masks, [3, 6], strict=True):
        areas = []
        for fill in FILLS:
            for insert in (True, False):
                outputs = one_patch_at_a_time(model, images[0], mask, category, fill, insert)
                moved = [round(step * 1.6) for step in range(11)]
                heights = [outputs[m][0] for m in moved]
                widths = np.diff(moved) / 16
                area = sum(w * (a + b) / 2 for w, a, b in zip(widths, heights, heights[1:]))  # noqa: B905
                areas.append(area if insert else -area)
        expected.append(sum(areas) / 2)
    for mask, category, score in zip(masks, [3, 6], expected, strict=True):
        assert faithfulness(model, images[0], mask, category) == pytest.approx(score)


def test_perturbation_equals_the_papers_loop(images):
    """10 % to 90 % of the patches removed from a fresh copy, from either end of the order."""
    model, masks = make_vit(), random_masks(3, (4, 4), seed=5)
    with torch.no_grad():
        categories = model(images).argmax(dim=1).tolist()
    removal = Removal(model, images, categories, "mean", 10)
    positive, negative = perturbation(removal.deletion(masks), removal.insertion(masks))
    for i, category in enumerate(categories):
        order = np.argsort(-masks[i].ravel())
        for found, patches in ((positive[i], order), (negative[i], order[::-1])):
            kept = 0
            for tenth in range(1, 10):
                image = images[i].clone()
                for patch in patches[: round(1.6 * tenth)]:
                    y, x = patch // 4 * 8, patch % 4 * 8
                    image[:, y : y + 8, x : x + 8] = 0
                with torch.no_grad():
                    kept += int(model(image[None]).argmax()) == category
            assert found == pytest.approx(kept / 9)
    assert set(positive) != set(negative)


def test_perturbation_needs_tenths(images):
    removal = Removal(make_vit(), images, CATEGORIES, "mean", 8)
    masks = random_masks(3, (4, 4))
    with pytest.raises(ValueError, match="10, 20"):
        perturbation(removal.deletion(masks), removal.insertion(masks))


def test_ranks_follow_the_values():
    masks = np.array([[[0.1, 0.9], [0.5, 0.0]]], dtype=np.float32)
    assert patch_ranks(masks).tolist() == [[2, 0, 1, 3]]


def test_equal_values_are_ordered_by_lot():
    """No place in the image is preferred; who draws which lot is repeatable."""
    masks = np.zeros((2, 4, 4), dtype=np.float32)
    masks[:, 1, 2] = 1
    ranks = np.array([patch_ranks(masks, seed) for seed in range(400)])
    assert (ranks[:, :, 6] == 0).all()
    others = np.delete(ranks[:, 0], 6, axis=1)
    # places 1 to 15, each patch's mean 8; its standard error is 4.3 / 20
    assert np.abs(others.mean(axis=0) - 8).max() < 4 * 4.3 / 20
    assert np.array_equal(patch_ranks(masks, 7), patch_ranks(masks, 7))
    assert np.array_equal(patch_ranks(masks, 7)[1:], patch_ranks(masks[1:], 7))


@pytest.mark.parametrize("fill", FILLS)
def test_other_images_of_the_batch_do_not_matter(images, fill):
    model, masks = make_vit(), random_masks(3, (4, 4)).round(1)  # some values are equal
    together = Removal(model, images, CATEGORIES, fill, 10).deletion(masks)
    turned = Removal(model, images.flip(0), CATEGORIES[::-1], fill, 10, batch_size=2)
    found = turned.deletion(masks[::-1].copy()).probabilities[::-1]
    np.testing.assert_allclose(found, together.probabilities, atol=1e-5)


def test_pixels_belong_to_the_patch_that_covers_them():
    expected = np.kron(np.arange(24).reshape(4, 6), np.ones((8, 8), dtype=int))
    assert np.array_equal(patches_of_pixels((4, 6), (32, 48)), expected)


@pytest.mark.parametrize("size", [(32, 48), (56, 28)])
def test_blur_equals_scipys(size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    expected = [empty_of(image, "blur") for image in images.numpy()]
    np.testing.assert_allclose(blurred(images), expected, atol=1e-5)


def test_model_is_measured_in_evaluation_mode_and_left_as_it_was(images):
    model = make_vit(proj_drop_rate=0.5, pos_drop_rate=0.5)
    masks = random_masks(3, (4, 4))
    expected = Removal(model, images, CATEGORIES, "mean", 4).deletion(masks).probabilities
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    removal = Removal(model, images, CATEGORIES, "mean", 4)
    np.testing.assert_allclose(removal.deletion(masks).probabilities, expected, atol=1e-6)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="does not take"):
        Removal(model, torch.zeros(1, 3, 24, 24), [0], "mean", 4).deletion(random_masks(1, (3, 3)))
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fill": "black"}, "fill must be one of mean, blur"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"categories": [0, 1]}, "3 images need as many categories, not 2"),
        ({"categories": [0, 1, 7]}, "from 0 to 6"),
    ],
)
def test_arguments_out_of_range(images, changes, message):
    arguments = {"categories": CATEGORIES, "fill": "mean", "steps": 5} | changes
    with pytest.raises(ValueError, match=message):
        Removal(make_vit(), images, **arguments)


def test_masks_that_are_not_of_these_images(images):
    removal = Removal(make_vit(), images, CATEGORIES, "mean", 5)
    with pytest.raises(ValueError, match="as many masks"):
        removal.deletion(random_masks(2, (4, 4)))


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_deletion_agrees_with_quantus(images, order):
    """Quantus' region perturbation: how far the probability has fallen after each patch."""
    quantus = pytest.importorskip("quantus", reason="needs quantus, see requirements-dev.txt")
    model, masks = make_vit(), random_masks(3, (4, 4))
    metric = quantus.RegionPerturbation(
        patch_size=8,
        regions_evaluation=16,
        order=order,
        perturb_baseline=0.0,
        normalise=False,
        disable_warnings=True,
    )
    fallen = metric(
        model=model,
        x_batch=images.numpy(),
        y_batch=np.array(CATEGORIES),
        a_batch=masks.repeat(8, axis=1).repeat(8, axis=2)[:, None],
        device="cpu",
        softmax=True,
    )
    removal = Removal(model, images, CATEGORIES, "mean", 16)
    ours = removal.deletion(masks if order == "morf" else 1 - masks).probabilities
    np.testing.assert_allclose(ours[:, :1] - ours[:, 1:], np.array(fallen), atol=1e-5)
    assert np.abs(fallen).max() > 0.05
