import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from helpers import LAYOUTS, expected_readout, make_vit, random_attention
from vit_rollout import VITAttentionRollout, rollout


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", [0, 0.5, 0.9])
def test_model_equals_slow_calculation(layout, fusion, ratio, images):
    arguments, prefix, _ = LAYOUTS[layout]
    model = make_vit(**arguments)
    masks = VITAttentionRollout(model, head_fusion=fusion, discard_ratio=ratio).batch(images)
    with torch.no_grad():
        _, attentions = reference.forward(model, images)
    read = expected_readout(layout, prefix)
    for index in range(len(images)):
        fused = [reference.fuse(a, fusion) for a in reference.of_image(attentions, index)]
        expected = reference.rollout(fused, ratio, prefix, (4, 4), read)
        np.testing.assert_allclose(masks[index], expected, atol=2e-6)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("start", [0, 2])
def test_matrices_alone_equal_slow_calculation(batch, fusion, start):
    attentions = random_attention(batch, heads=2, tokens=2 + 6, depth=4)
    masks = rollout(attentions, 0.5, fusion, prefix_tokens=2, grid=(2, 3), start_block=start)
    assert masks.shape == (batch, 2, 3)
    assert masks.dtype == np.float32
    for index in range(batch):
        fused = [reference.fuse(a, fusion) for a in reference.of_image(attentions, index)]
        expected = reference.rollout(fused, 0.5, 2, (2, 3), [1.0] + [0.0] * 7, start)
        np.testing.assert_allclose(masks[index], expected, atol=2e-6)


def test_three_tokens_by_hand():
    """One class token and two patches, two blocks, worked out on paper."""
    first = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    second = torch.tensor([[0.0, 0.4, 0.6], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # rownorm(A + I): first [[.6,.4,0],[0,.75,.25],[0,0,1]], second row 0 [.5,.2,.3]
    # row 0 of the product: [.3, .2 + .15, .05 + .3]
    mask = rollout([m[None, None] for m in (first, second)], 0, "mean", grid=(1, 2))
    np.testing.assert_allclose(mask, [[[1.0, 1.0]]], atol=1e-6)
    mask = rollout([m[None, None] for m in (second, first)], 0, "mean", grid=(1, 2))
    # the other order: row 0 of first~ @ second~ = .6*[.5,.2,.3] + .4*[.5,.5,0]: [.5, .32, .18]
    np.testing.assert_allclose(mask, [[[1.0, 0.18 / 0.32]]], atol=1e-6)


def test_non_square_grid_lights_the_right_patch():
    """All attention goes to one patch of a 2 x 8 grid: that very cell is the brightest."""
    attention = torch.zeros(1, 1, 17, 17)
    attention[..., 1 + 1 * 8 + 3] = 1.0
    mask = rollout([attention] * 2, 0, "mean", grid=(2, 8))[0]
    assert np.unravel_index(mask.argmax(), mask.shape) == (1, 3)
    assert np.sort(mask, axis=None)[-2] == 0


def test_model_with_non_square_input(images):
    model = make_vit(img_size=(16, 64))
    wide = images.reshape(3, 3, 16, 64)
    explainer = VITAttentionRollout(model, discard_ratio=0.5)
    _, attentions = reference.forward(model, wide)
    fused = [reference.fuse(a, "mean") for a in reference.of_image(attentions, 0)]
    expected = reference.rollout(fused, 0.5, 1, (2, 8), [1.0] + [0.0] * 16)
    np.testing.assert_allclose(explainer.batch(wide)[0], expected, atol=2e-6)


def test_grid_follows_the_input_not_the_construction(images):
    model = make_vit(dynamic_img_size=True)
    masks = VITAttentionRollout(model).batch(torch.cat([images, images], dim=3)[:, :, :24])
    assert masks.shape == (3, 3, 8)


matrices = st.integers(0, 2**31 - 1).map(lambda seed: random_attention(2, 2, 1 + 9, 3, seed))


@settings(max_examples=30, deadline=None)
@given(matrices, st.permutations(range(9)), st.floats(0, 0.99))
def test_permuting_patches_permutes_the_mask(attentions, order, ratio):
    order = torch.tensor([0, *(1 + patch for patch in order)])
    permuted = [a[:, :, order][:, :, :, order] for a in attentions]
    plain = rollout(attentions, ratio, "mean").reshape(2, 9)
    np.testing.assert_allclose(
        rollout(permuted, ratio, "mean").reshape(2, 9), plain[:, order[1:] - 1], atol=2e-6
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(["mean", "max", "min"]))
def test_uniform_attention_gives_a_uniform_mask(depth, side, fusion):
    tokens = 1 + side * side
    uniform = torch.full((1, 2, tokens, tokens), 1 / tokens)
    np.testing.assert_allclose(rollout([uniform] * depth, 0, fusion), 1, atol=1e-5)


def test_ties_at_the_threshold_all_stay():
    """Of equal entries none is preferred, whatever its place."""
    uniform = torch.full((1, 1, 10, 10), 0.1)
    np.testing.assert_allclose(rollout([uniform] * 2, 0.9, "mean"), 1, atol=1e-6)


def test_batch_equals_one_by_one(images):
    explainer = VITAttentionRollout(make_vit())
    together = explainer.batch(images)
    apart = [explainer(image[None]) for image in images]
    np.testing.assert_allclose(together, apart, atol=1e-6)
    assert together.max(axis=(1, 2)).tolist() == [1, 1, 1]


def test_no_state_from_one_call_to_the_next(images):
    model = make_vit()
    explainer = VITAttentionRollout(model)
    explainer(images[:1])
    again, fresh = explainer(images[1:2]), VITAttentionRollout(model)(images[1:2])
    assert np.array_equal(again, fresh)


def test_logits_are_the_models_own(images):
    model = make_vit()
    explanation = VITAttentionRollout(model).explain(images)
    torch.testing.assert_close(explanation.logits, model(images).detach(), atol=1e-5, rtol=1e-5)
    assert explanation.categories is None


def test_half_precision_model_gives_about_the_same_mask(images):
    model = make_vit()
    full = VITAttentionRollout(model, discard_ratio=0).batch(images)
    half = VITAttentionRollout(model.bfloat16(), discard_ratio=0).batch(images)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, full, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"discard_ratio": 1.0}, "discard_ratio must be at least 0 and below 1"),
        ({"discard_ratio": -0.1}, "discard_ratio"),
        ({"discard_ratio": float("nan")}, "discard_ratio"),
        ({"head_fusion": "median"}, "head_fusion must be one of mean, max, min"),
        ({"start_block": 3}, "start_block must be from 0 to 2"),
        ({"start_block": -1}, "start_block"),
        ({"start_block": 1, "as_published": True}, "start_block must be 0"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        VITAttentionRollout(make_vit(), **change)
    arguments = {"discard_ratio": 0.9, "head_fusion": "mean"} | change
    with pytest.raises(ValueError, match=message):
        rollout(random_attention(1, 1, 5, 3), **arguments)


def test_wrong_input(images):
    explainer = VITAttentionRollout(make_vit())
    with pytest.raises(ValueError, match="3 images, not one"):
        explainer(images)
    with pytest.raises(ValueError, match="input_tensor must be"):
        explainer.batch(images[0])
    with pytest.raises(ValueError, match="input_tensor must be"):
        explainer.batch(images[:0])
    with pytest.raises(ValueError, match="does not take 16x32 images"):
        explainer.batch(images[:, :, :16])
    with pytest.raises(ValueError, match="attn_softmax"):
        VITAttentionRollout(make_vit(), attention_layer_name="attn_softmax").batch(images)


def test_wrong_matrices():
    with pytest.raises(ValueError, match="11 tokens are not 1 prefix tokens and 3x3 patches"):
        rollout(random_attention(1, 1, 11, 2), 0.9, "mean")
    with pytest.raises(ValueError, match="3x4 patches"):
        rollout(random_attention(1, 1, 10, 2), 0.9, "mean", grid=(3, 4))
    with pytest.raises(ValueError, match="must have the shape"):
        rollout([torch.rand(1, 5, 5)], 0.9, "mean")
    with pytest.raises(ValueError, match="all of one shape"):
        rollout(random_attention(1, 1, 5, 1) + random_attention(1, 1, 10, 1), 0.9, "mean")
