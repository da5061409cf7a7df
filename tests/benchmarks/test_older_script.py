"""The older script restated, against vitexplain's own `as_published`: two pieces of code."""

import cv2
import numpy as np
import pytest
import torch

from benchmarks.older_script import OlderGradRollout, OlderRollout, overlay
from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.drawing.overlay import draw_published


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("ratio", [0, 0.9])
def test_rollout(fusion, ratio, images):
    theirs = OlderRollout(make_vit(), fusion, ratio)
    ours = VITAttentionRollout(
        make_vit(), head_fusion=fusion, discard_ratio=ratio, as_published=True
    )
    for image in images.split(1):
        np.testing.assert_allclose(theirs(image), ours(image), atol=1e-5)


@pytest.mark.parametrize("ratio", [0, 0.9])
def test_grad_rollout(ratio, images):
    theirs = OlderGradRollout(make_vit(), ratio)
    ours = VITAttentionGradRollout(make_vit(), discard_ratio=ratio, as_published=True)
    for image, category in zip(images.split(1), (5, 0, 3), strict=True):
        np.testing.assert_allclose(theirs(image, category), ours(image, category), atol=1e-5)


def test_it_works_as_the_script_does(images):
    """All matrices are kept, and every parameter gets a gradient: that is what is timed."""
    model = make_vit()
    explain = OlderGradRollout(model)
    explain(images[:1], 0)
    assert [tuple(a.shape) for a in explain.attentions] == [(1, 3, 17, 17)] * 3
    assert len(explain.gradients) == 3
    for attention in explain.attentions:
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(1, 3, 17))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_overlay():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mask = np.array([[0.1, 1.0], [0.4, 0.7]], dtype=np.float32)
    theirs = cv2.cvtColor(overlay(image, mask), cv2.COLOR_BGR2RGB)
    ours = draw_published(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), mask)
    assert np.abs(theirs.astype(int) - ours).max() <= 1
