"""The two kinds of methods: what all of them return, and which categories may be asked for."""

from importlib import import_module

import numpy as np
import pytest
import torch

from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vitexplain.methods.base import CategoryMethod, ImageMethod, largest_is_one
from vitexplain.methods.classifier import ClassifierMethod
from vitexplain.methods.registry import METHODS

# evidence for and against
SIGNED = ("gradcam", "attnlrp", "consensus", "integrated_gradients", "occlusion")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_of_one_kind_and_of_no_other_method(name):
    module, class_name = METHODS[name].place
    kind = CategoryMethod if METHODS[name].of_category else ImageMethod
    (base,) = getattr(import_module(module), class_name).__bases__
    assert (base.__base__ if base is ClassifierMethod else base) is kind
    assert isinstance(METHODS[name].make(make_vit()), kind)


@pytest.mark.parametrize("name", METHODS)
def test_maps_are_the_positive_scores(name, images, monkeypatch):
    monkeypatch.setattr("vitexplain.methods.integrated_gradients.STEPS", 4)
    found = METHODS[name].make(make_vit()).explain(images)
    assert found.scores.shape == found.masks.shape == (3, 4, 4)
    assert found.scores.dtype == found.masks.dtype == np.float32
    assert (found.scores.min() < 0) == (name in SIGNED)
    for scores, mask in zip(found.scores, found.masks, strict=True):
        np.testing.assert_allclose(mask, np.maximum(scores, 0) / scores.max(), rtol=1e-6)


def test_largest_is_one():
    scores = np.array([[[-1, 2], [4, 0]], [[-3, -1], [0, -2]]], dtype=np.float32)
    assert largest_is_one(scores).tolist() == [[[0, 0.5], [1, 0]], [[0, 0], [0, 0]]]


def test_a_method_may_know_nothing_of_the_model():
    """As a baseline does: its scores come from the image alone."""

    class Brightness(ImageMethod):
        def __init__(self, model):
            self.model = model

        def _scores(self, images, layout, *, with_logits):
            patches = torch.nn.functional.adaptive_avg_pool2d(images.mean(dim=1), layout.grid)
            return patches.numpy(), self.model(images) if with_logits else None

    model = make_vit()
    image = torch.zeros(1, 3, 32, 32)
    image[..., 8:16, 24:] = 0.5
    expected = np.zeros((4, 4))
    expected[1, 3] = 1
    assert Brightness(model)(image).tolist() == expected.tolist()
    explanation = Brightness(model).explain(image)
    torch.testing.assert_close(explanation.logits, model(image).detach())
    assert not explanation.logits.is_inference()
    with pytest.raises(ValueError, match="2 images, not one"):
        Brightness(model)(image.repeat(2, 1, 1, 1))


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (0, "1 to 7 categories"),
        (8, "1 to 7 categories"),
        ([[1, 2]], "3 images"),
        ([[1], [1, 2], [1]], "equally many"),
        ([[], [], []], "equally many"),
        ([[1], [7], [1]], "0 to 6, not 7"),
    ],
)
def test_wrong_categories(categories, message, images):
    with pytest.raises(ValueError, match=message):
        VITAttentionGradRollout(make_vit()).explain_several(images, categories)
