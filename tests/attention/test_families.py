"""Every family that is supported, against a recording of its softmaxes and the slow product."""

import numpy as np
import pytest
import timm
import torch

import reference
from families import FAMILIES, SMALL, make
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention.tokens import token_layout


def slow(name, attentions, gradients, ratio):
    """Masks of both images from the recorded matrices: rollout, or weighted by gradients."""
    _, prefix, read = FAMILIES[name]
    pool = attentions[-1] if read.startswith("pool") else None
    blocks = attentions[:-1] if pool is not None else attentions
    tokens = blocks[0].shape[-1]
    side = round((tokens - prefix) ** 0.5)
    masks = []
    for image in range(len(attentions[0])):

        def fused(index, image=image):
            heads = attentions[index][image].detach().double().numpy()
            if gradients is None:
                return reference.fuse(heads, "max") if heads.shape[1] > 1 else heads.max(axis=0)
            gradient = gradients[index][image].double().numpy()
            if heads.shape[1] > 1:
                return reference.weighted(heads, gradient, "mean")
            return np.maximum(heads * gradient, 0).mean(axis=0)

        if pool is not None:
            row = fused(-1)[0]
            weights = np.concatenate([np.zeros(tokens - len(row)), row])
        else:
            weights = np.zeros(tokens)
            rows = {"token": slice(0, 1), "both": slice(0, 2), "patches": slice(prefix, None)}
            weights[rows[read]] = 1 / len(weights[rows[read]])
        matrices = [fused(index) for index in range(len(blocks))]
        masks.append(
            reference.rollout(matrices, ratio, prefix, (side, side), weights, 0, pool is not None)
        )
    return np.stack(masks)


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    model = make(name)
    side = (SMALL | FAMILIES[name][0])["img_size"]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    assert token_layout(model, side, side).prefix_tokens == FAMILIES[name][1]
    rollout = VITAttentionRollout(model, head_fusion="max", discard_ratio=0.5).explain(images)
    graded = VITAttentionGradRollout(model, discard_ratio=0.3).explain(images, [1, 4])
    attentions, gradients, logits = reference.softmaxes(model, images, [1, 4])
    assert len(attentions) == 2 + FAMILIES[name][2].startswith("pool")
    torch.testing.assert_close(rollout.logits, logits, atol=1e-4, rtol=1e-4)
    assert np.ptp(rollout.masks) > 0.1
    np.testing.assert_allclose(rollout.masks, slow(name, attentions, None, 0.5), atol=1e-4)
    expected = slow(name, attentions, gradients, 0.3)
    np.testing.assert_allclose(graded.masks, expected, atol=1e-3)


def test_grid_is_that_of_the_input():
    """9 x 16 patches must not become 12 x 12: a marked patch lights up where it is."""
    model = timm.create_model("eva02_tiny_patch14_224", img_size=(126, 224), depth=1).eval()
    layout = token_layout(model, 126, 224)
    assert layout.grid == (9, 16)
    n = layout.tokens
    marked = 1 + 5 * 16 + 11

    def attend_to_the_marked(_layer, _inputs, attention):
        forced = torch.full_like(attention, 1e-6)
        forced[..., marked] = 1 - 1e-6 * (n - 1)
        return forced

    model.blocks[0].attn.attn_drop.register_forward_hook(attend_to_the_marked)
    mask = VITAttentionRollout(model).batch(torch.randn(1, 3, 126, 224))[0]
    assert mask.shape == (9, 16)
    assert np.unravel_index(mask.argmax(), mask.shape) == (5, 11)
