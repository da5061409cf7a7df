"""The older script's arithmetic, against its formulas written out in loops."""

import cv2
import numpy as np
import pytest
import torch

import reference
from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout, grad_rollout
from vit_rollout import VITAttentionRollout, rollout
from vitexplain.drawing.overlay import draw_published


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", [0, 0.5, 0.9])
def test_rollout(fusion, ratio, images):
    model = make_vit()
    _, attentions = reference.forward(model, images)
    for index in range(len(images)):
        expected = reference.published_rollout(
            reference.of_image(attentions, index), fusion, ratio, (4, 4)
        )
        explainer = VITAttentionRollout(
            model, head_fusion=fusion, discard_ratio=ratio, as_published=True
        )
        np.testing.assert_allclose(explainer(images[index : index + 1]), expected, atol=1e-5)
        alone = [a[index : index + 1] for a in attentions]
        mask = rollout(alone, ratio, fusion, as_published=True)
        np.testing.assert_allclose(mask[0], expected, atol=1e-5)


@pytest.mark.parametrize("ratio", [0, 0.5, 0.9])
def test_grad_rollout(ratio, images):
    model = make_vit()
    categories = [5, 0, 3]
    attentions, gradients = reference.gradients(model, images, categories)
    for index, category in enumerate(categories):
        expected = reference.published_grad_rollout(
            reference.of_image(attentions, index),
            reference.of_image(gradients, index),
            ratio,
            (4, 4),
        )
        # head_fusion had no effect in that script
        explainer = VITAttentionGradRollout(
            model, discard_ratio=ratio, head_fusion="max", as_published=True
        )
        mask = explainer(images[index : index + 1], category)
        np.testing.assert_allclose(mask, expected, atol=1e-5)
        one = slice(index, index + 1)
        mask = grad_rollout(
            [a[one] for a in attentions], [g[one] for g in gradients], ratio, as_published=True
        )
        np.testing.assert_allclose(mask[0], expected, atol=1e-5)


def test_gradient_before_the_softmax_is_autograds():
    """A * (dA - sum(A * dA)) is what autograd says of the scores themselves."""
    scores = torch.randn(2, 5, 5, dtype=torch.float64).requires_grad_()
    weight = torch.randn(2, 5, 5, dtype=torch.float64)
    attention = scores.softmax(-1)
    attention.retain_grad()
    (attention * weight).sum().square().backward()
    gradient = attention.grad
    before = attention * (gradient - (attention * gradient).sum(-1, keepdim=True))
    torch.testing.assert_close(scores.grad, before)


def test_it_is_not_the_correct_arithmetic(images):
    """Its rows don't sum to 1, and its maps differ from the default's."""
    model = make_vit()
    default = VITAttentionRollout(model, head_fusion="max")(images[:1])
    published = VITAttentionRollout(model, head_fusion="max", as_published=True)(images[:1])
    assert np.abs(default - published).max() > 0.02


def test_overlay():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mask = np.array([[0.1, 1.0], [0.4, 0.7]], dtype=np.float32)
    # the script worked in BGR
    heat = cv2.applyColorMap(np.uint8(255 * cv2.resize(mask, (30, 20))), cv2.COLORMAP_JET)
    cam = np.float32(heat) / 255 + np.float32(image[:, :, ::-1]) / 255
    expected = np.uint8(255 * (cam / cam.max()))[:, :, ::-1]
    assert np.array_equal(draw_published(image, mask), expected)


def test_refusals(images):
    with pytest.raises(ValueError, match="one image at a time, not 3"):
        VITAttentionRollout(make_vit(), as_published=True).batch(images)
    with pytest.raises(ValueError, match="class token and no other prefix token"):
        VITAttentionRollout(make_vit(reg_tokens=1), as_published=True)(images[:1])
    with pytest.raises(ValueError, match="class token and no other prefix token"):
        VITAttentionGradRollout(make_vit(global_pool="avg"), as_published=True)(images[:1])
