import numpy as np
import pytest
import torch

import reference
from helpers import LAYOUTS, expected_readout, make_vit
from vit_grad_rollout import VITAttentionGradRollout, grad_rollout
from vitexplain.attention.capture import capture_attention, forward
from vitexplain.attention.tokens import token_layout

CATEGORIES = [5, 0, 3]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", [0, 0.5, 0.9])
def test_model_equals_slow_calculation(layout, fusion, ratio, images):
    arguments, prefix, _ = LAYOUTS[layout]
    model = make_vit(**arguments)
    explainer = VITAttentionGradRollout(model, head_fusion=fusion, discard_ratio=ratio)
    masks = explainer.batch(images, CATEGORIES)
    attentions, gradients = reference.gradients(model, images, CATEGORIES)
    read = expected_readout(layout, prefix)
    for index in range(len(images)):
        pairs = zip(
            reference.of_image(attentions, index),
            reference.of_image(gradients, index),
            strict=True,
        )
        fused = [reference.weighted(a, g, fusion) for a, g in pairs]
        expected = reference.rollout(fused, ratio, prefix, (4, 4), read)
        np.testing.assert_allclose(masks[index], expected, atol=2e-5)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", [0, 0.5, 0.9])
def test_matrices_alone_equal_slow_calculation(fusion, ratio):
    generator = torch.Generator().manual_seed(2)
    shape = (2, 2, 8, 8)
    attentions = [torch.randn(shape, generator=generator).softmax(-1) for _ in range(3)]
    gradients = [torch.rand(shape, generator=generator) for _ in range(3)]
    masks = grad_rollout(attentions, gradients, ratio, fusion, prefix_tokens=2, grid=(3, 2))
    for index in range(2):
        pairs = zip(
            reference.of_image(attentions, index),
            reference.of_image(gradients, index),
            strict=True,
        )
        fused = [reference.weighted(a, g, fusion) for a, g in pairs]
        expected = reference.rollout(fused, ratio, 2, (3, 2), [1.0] + [0.0] * 7)
        np.testing.assert_allclose(masks[index], expected, atol=2e-6)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_captured_gradient_equals_finite_differences(block, images):
    """The gradient of a logit by one attention entry, against nudging that very entry."""
    model, image = make_vit().double(), images[:1].double()
    layout = token_layout(model, 32, 32)
    with capture_attention(model, layout, track_gradient=True) as captured:
        logit = forward(model, image)[0, 4]
        matrices = [branches[0] for branches in captured.blocks()]
        gradient = torch.autograd.grad(logit, matrices)[block]
    step = 1e-6
    for head, row, column in [(0, 0, 0), (1, 0, 5), (2, 7, 3)]:
        nudged = []
        for sign in (1, -1):
            change = torch.zeros_like(gradient)
            change[0, head, row, column] = sign * step
            with torch.no_grad():
                logits, _ = reference.forward(model, image, {block: change})
            nudged.append(logits[0, 4].item())
        difference = (nudged[0] - nudged[1]) / (2 * step)
        assert gradient[0, head, row, column].item() == pytest.approx(difference, abs=1e-7)
        # only the class token is pooled: other rows of the last block can't matter
        assert (abs(difference) > 1e-6) == (block < 2 or row == 0)


def test_heads_do_not_cancel():
    """Two heads of opposite sign on the same entry: the positive one counts."""
    attention = torch.full((1, 2, 5, 5), 0.2)
    gradient = torch.zeros(1, 2, 5, 5)
    gradient[0, 0, 0, 3], gradient[0, 1, 0, 3] = 1.0, -1.0
    mask = grad_rollout([attention], [gradient], 0)
    assert mask.tolist() == [[[0, 0], [1, 0]]]


def test_each_block_keeps_its_own_gradient():
    """Swapping the gradients of two unlike blocks changes the map."""
    generator = torch.Generator().manual_seed(4)
    attentions = [torch.randn(1, 1, 5, 5, generator=generator).softmax(-1) for _ in range(2)]
    gradients = [torch.rand(1, 1, 5, 5, generator=generator) for _ in range(2)]
    right = grad_rollout(attentions, gradients, 0)
    assert np.abs(right - grad_rollout(attentions, gradients[::-1], 0)).max() > 0.01


def test_nothing_counts_where_every_gradient_is_negative():
    attention = torch.full((1, 1, 5, 5), 0.2)
    assert not grad_rollout([attention], [-attention], 0.9).any()


def test_batch_equals_one_by_one_with_one_category_each(images):
    explainer = VITAttentionGradRollout(make_vit())
    together = explainer.batch(images, CATEGORIES)
    apart = [
        explainer(image[None], category) for image, category in zip(images, CATEGORIES, strict=True)
    ]
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_category_matters(images):
    explainer = VITAttentionGradRollout(make_vit(), discard_ratio=0)
    assert np.abs(explainer(images[:1], 1) - explainer(images[:1], 2)).max() > 0.05


def test_without_category_the_top1_is_explained(images):
    model = make_vit()
    explanation = VITAttentionGradRollout(model).explain(images)
    top1 = model(images).argmax(1).tolist()
    assert explanation.categories == top1
    expected = VITAttentionGradRollout(model).batch(images, top1)
    assert np.array_equal(explanation.masks, expected)


def test_frozen_model_no_grad_and_inference_mode(images):
    """Gradients are taken whatever the caller's mode, and none is left behind."""
    model = make_vit()
    expected = VITAttentionGradRollout(model).batch(images, CATEGORIES)
    model.requires_grad_(False)
    with torch.no_grad():
        assert np.array_equal(VITAttentionGradRollout(model).batch(images, CATEGORIES), expected)
    with torch.inference_mode():
        inside = VITAttentionGradRollout(model).batch(images.clone(), CATEGORIES)
    assert np.array_equal(inside, expected)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_trainable_model_gets_no_grad(images):
    model, tracked = make_vit(), images.clone().requires_grad_()
    VITAttentionGradRollout(model).batch(tracked, CATEGORIES)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert tracked.grad is None


def test_wrong_categories(images):
    explainer = VITAttentionGradRollout(make_vit())
    for wrong in (7, -1):
        with pytest.raises(ValueError, match="category_index must be from 0 to 6"):
            explainer(images[:1], wrong)
    with pytest.raises(ValueError, match="one category for each of 3 images, not 2"):
        explainer.batch(images, [1, 2])
    with pytest.raises(ValueError, match="has no categories"):
        VITAttentionGradRollout(make_vit(num_classes=0))(images[:1])


def test_wrong_matrices():
    a = torch.rand(1, 1, 5, 5)
    with pytest.raises(ValueError, match="one tensor for each block"):
        grad_rollout([a, a], [a])
    with pytest.raises(ValueError, match="discard_ratio"):
        grad_rollout([a], [a], 1)
