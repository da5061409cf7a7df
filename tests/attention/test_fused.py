"""Fused during the pass or captured whole: the same maps."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import ParallelThingsBlock

from families import FAMILIES, SMALL, hooked, make
from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention import chunks
from vitexplain.attention.intercept import can_intercept


def both_ways(model, images, categories, **settings):
    assert can_intercept(model)
    masks = []
    for network in (model, hooked(model)):
        masks.append(VITAttentionRollout(network, **settings).batch(images))
        masks.append(VITAttentionGradRollout(network, **settings).batch(images, categories))
    return masks


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("name", FAMILIES)
def test_same_masks_as_from_whole_matrices(name, fusion):
    side = (SMALL | FAMILIES[name][0])["img_size"]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(4))
    a, b, c, d = both_ways(make(name), images, [2, 0], head_fusion=fusion, discard_ratio=0.4)
    np.testing.assert_allclose(a, c, atol=1e-5)
    np.testing.assert_allclose(b, d, atol=2e-4)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_heads_may_come_one_at_a_time(fusion, images, monkeypatch):
    whole = both_ways(make_vit(), images, [0, 1, 2], head_fusion=fusion)
    monkeypatch.setattr(chunks, "CHUNK", 1)
    parts = both_ways(make_vit(), images, [0, 1, 2], head_fusion=fusion)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_parallel_branches(images):
    model = make_vit(block_fn=ParallelThingsBlock)
    a, b, c, d = both_ways(model, images, [0, 1, 2], discard_ratio=0.3)
    np.testing.assert_allclose(a, c, atol=1e-5)
    np.testing.assert_allclose(b, d, atol=1e-4)
