"""Integrated gradients against a Riemann sum written out, and their axioms."""

import sys

import numpy as np
import pytest
import timm
import torch

from families import FAMILIES, SMALL, make
from helpers import LAYOUTS, make_vit
from vitexplain.methods.integrated_gradients import IntegratedGradients, quadrature
from vitexplain.methods.patches import patch_sums

CATEGORIES = (5, 0, 3)


def smooth_vit(**changes):
    """Of small weights, so that few points do for the integral."""
    model = make_vit(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(0.4)
    return model


def riemann(model, images, categories, steps=150):
    """Equation 3 by the midpoints of equal steps from black to the images."""
    total = torch.zeros_like(images)
    for step in range(steps):
        point = (images * (step + 0.5) / steps).requires_grad_()
        logits = model(point)
        score = sum(logits[index, category] for index, category in enumerate(categories))
        total += torch.autograd.grad(score, point)[0] / steps
    return images * total


@pytest.mark.parametrize("layout", ["class token", "no prefix, average"])
def test_equals_riemann_sum(layout, images):
    model = smooth_vit(**LAYOUTS[layout][0])
    expected = riemann(model, images, CATEGORIES)
    explainer = IntegratedGradients(model)
    found = explainer.of_pixels(images, CATEGORIES)
    torch.testing.assert_close(found, expected, atol=1e-3 * expected.abs().max(), rtol=0)
    masks = explainer.batch(images, CATEGORIES)
    for mask, attributions in zip(masks, expected, strict=True):
        patches = np.zeros((4, 4))
        for row, column in np.ndindex(4, 4):
            part = attributions[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            patches[row, column] = max(0.0, float(part.sum()))
        np.testing.assert_allclose(mask, patches / patches.max(), atol=5e-3)


def test_completeness(images):
    """All attributions, negative ones too, sum to what the image adds to the logit."""
    model = smooth_vit()
    attributions = IntegratedGradients(model).of_pixels(images, CATEGORIES)
    with torch.no_grad():
        added = (model(images) - model(torch.zeros_like(images)))[range(3), CATEGORIES]
    torch.testing.assert_close(attributions.sum(dim=(1, 2, 3)), added, atol=1e-3, rtol=1e-3)


def test_what_the_model_does_not_read_gets_nothing(images):
    """Sensitivity: without attention the class token knows nothing of the patches."""
    model = smooth_vit()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
    assert not IntegratedGradients(model).batch(images, CATEGORIES).any()


def test_patch_sums():
    pixels = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0))
    sums = patch_sums(pixels, (2, 3), (3, 4)).view(2, 2, 3)
    for image, row, column in np.ndindex(2, 2, 3):
        part = pixels[image, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
        assert float(sums[image, row, column]) == pytest.approx(float(part.sum()), abs=1e-5)
    cut = patch_sums(pixels[:, :5, :9], (2, 3), (3, 4)).view(2, 2, 3)  # padded by the model
    assert float(cut[0, 1, 2]) == pytest.approx(float(pixels[0, 3:5, 8:9].sum()), abs=1e-5)
    torch.testing.assert_close(cut[:, 0, :2], sums[:, 0, :2])
    uneven = patch_sums(torch.ones(1, 10, 10), (3, 4), (3, 2))[0].view(3, 4)
    assert uneven.sum(dim=1).tolist() == [40, 30, 30]  # every pixel is in one patch
    assert uneven.sum(dim=0).tolist() == [30, 20, 30, 20]


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr("vitexplain.methods.integrated_gradients.STEPS", 4)


def test_images_and_categories_do_not_mix(few_steps):
    model = make_vit(img_size=(24, 40)).requires_grad_(False)
    images = torch.randn(3, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    explainer = IntegratedGradients(model)
    several = explainer.explain_several(images, [[5, 1], [0, 2], [3, 3]])
    torch.testing.assert_close(several[0].logits, model(images), atol=1e-4, rtol=1e-4)
    for number, categories in enumerate((CATEGORIES, (1, 2, 3))):
        for index, category in enumerate(categories):
            alone = explainer(images[index : index + 1], category)
            assert alone.shape == (3, 5)
            np.testing.assert_allclose(several[number].masks[index], alone, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224",
        "eva02_tiny_patch14_224",
        "beit_base_patch16_224",
        "vit_tiny_r_s16_p8_224",
        "vit_base_patch16_siglip_224",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_family(name, few_steps):
    small = {"img_size": 64, "depths": (2, 2), "embed_dim": 24, "num_heads": (3, 6)}
    model = make(name) if name in FAMILIES else timm.create_model(name, **small).eval()
    side = (SMALL | FAMILIES.get(name, ({},))[0])["img_size"]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    masks = IntegratedGradients(model).batch(images)
    assert np.isfinite(masks).all()
    assert masks.min() >= 0
    assert masks.max(axis=(1, 2)).tolist() == [1, 1]


def test_model_is_left_as_it_was(few_steps, images):
    model = make_vit().train()
    model.head.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    images.requires_grad_()
    with torch.inference_mode():  # which may be the caller's
        IntegratedGradients(model).batch(images, CATEGORIES)
    with pytest.raises(ValueError, match="does not take 40x40"):
        IntegratedGradients(model).batch(torch.randn(1, 3, 40, 40), [1])
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in (*model.parameters(), images))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("steps", [4, 56])
def test_quadrature_is_exact_for_powers_of_the_root(steps):
    points, weights = quadrature(steps)
    assert points.min() > 0 and points.max() < 1
    for power in range(2 * steps - 1):  # of t; with the derivative 2 t, of degree 2 * steps - 1
        expected = 2 / (power + 2)
        assert points ** (power / 2) @ weights == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1, 5])
def test_points_may_pass_in_any_batches(few_steps, images, monkeypatch, size):
    model = make_vit()
    expected = IntegratedGradients(model).of_pixels(images, CATEGORIES)
    passed = []
    model.patch_embed.register_forward_hook(lambda _, inputs, __: passed.append(len(inputs[0])))
    module = sys.modules[IntegratedGradients.__module__]
    monkeypatch.setattr(module, "batch_for", lambda *_: size)
    found = IntegratedGradients(model).of_pixels(images, CATEGORIES)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert max(passed) == size and sum(passed) == 4 * len(images)


def test_several_categories_share_their_forward_passes(few_steps, images):
    model, passed = make_vit(), []
    model.patch_embed.register_forward_hook(lambda _, inputs, __: passed.append(len(inputs[0])))
    IntegratedGradients(model).explain_several(images, 3)
    several = sum(passed)
    passed.clear()
    IntegratedGradients(model).explain_several(images, 1)
    assert several == sum(passed)
