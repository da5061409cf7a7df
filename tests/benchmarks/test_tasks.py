"""What passes a model is counted: against passes whose number is known."""

import numpy as np
import pytest
import torch

from benchmarks.tasks import MODEL, comparison, counted
from helpers import make_vit
from vitexplain.methods.integrated_gradients import STEPS
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import LoadedModel
from vitexplain.models.transform import InputTransform

DEPTH = 3


def test_plain_passes(images):
    model = make_vit()
    with counted(model) as passes:
        with torch.no_grad():
            model(images)
        model(images[:2])[0, 1].backward()
    assert passes.forward == pytest.approx(5)
    assert passes.backward == pytest.approx(1)  # nothing flows back to the second image
    model(images).sum().backward()
    assert passes.forward == pytest.approx(5)


def test_part_of_a_pass_is_part_of_an_image(images):
    model = make_vit()
    with counted(model) as passes:
        model.blocks[0](torch.randn(2, 17, 24))
    assert passes.forward == pytest.approx(2 / DEPTH)


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("occlusion", 1 + 16, 0),
        ("integrated_gradients", 1 + STEPS, STEPS),
        ("gradcam", 1, 1 / DEPTH),  # to the input of the last attention
    ],
)
def test_passes_of_methods(name, forward, backward, images):
    method = METHODS[name].make(make_vit())
    method(images[:1], 0)  # the first one of a model is followed by a plain pass that checks it
    with counted(method.model) as passes:
        method(images[:1], 0)
    assert passes.forward == pytest.approx(forward)
    assert passes.backward == pytest.approx(backward)


def test_comparison_is_that_of_all_methods():
    half = (0.5, 0.5, 0.5)
    names = [f"category {i}" for i in range(7)]
    loaded = LoadedModel(make_vit(), MODEL, InputTransform((32, 32), half, half), names)
    explainer, image = comparison(loaded)
    (found,) = explainer(image)
    assert [each.method["name"] for each in found.maps] == list(METHODS)
    assert np.isfinite([each.faithfulness for each in found.maps]).all()
