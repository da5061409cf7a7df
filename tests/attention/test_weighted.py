"""Backward passes: of several categories, in bfloat16, and nothing is left of them."""

import numpy as np
import pytest
import torch

from families import hooked
from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vitexplain.attention import weighted
from vitexplain.images.reading import open_image
from vitexplain.models.loading import load_model


@pytest.mark.parametrize("way", [lambda model: model, hooked], ids=["fused", "hooked"])
def test_several_categories_from_one_forward_pass(way, images):
    model = way(make_vit(global_pool="map", class_token=False))
    passes = []
    model.norm.register_forward_hook(lambda *_: passes.append(1))
    explainer = VITAttentionGradRollout(model, discard_ratio=0.5)
    several = explainer.explain_several(images, [[0, 5], [1, 1], [6, 2]])
    assert len(passes) == 1
    assert [explanation.categories for explanation in several] == [[0, 1, 6], [5, 1, 2]]
    for explanation in several:
        one = explainer.explain(images, explanation.categories)
        np.testing.assert_allclose(explanation.masks, one.masks, atol=1e-6)
    top1 = explainer.explain_several(images, 3)
    expected = several[0].logits.topk(3, dim=1).indices.T.tolist()
    assert [explanation.categories for explanation in top1] == expected


def test_no_graph_and_no_gradient_is_left(images):
    model = make_vit()
    VITAttentionGradRollout(model).explain_several(images, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both.png", "panda.jpg", "viaduct.jpg"])
def test_gradients_in_bfloat16_change_a_map_by_less_than_a_hundredth(name, examples, monkeypatch):
    """32 x 32 patches of the bundled model; also where the processor has to do it in software."""
    monkeypatch.setattr(weighted, "_has_bf16", lambda _device: True)
    loaded = load_model("bundled", img_size=(512, 512))
    tensor = loaded.transform(open_image(examples / name))[None]
    rough = VITAttentionGradRollout(loaded.model).explain(tensor)
    exact = VITAttentionGradRollout(loaded.model, exact=True).explain(tensor)
    assert torch.equal(rough.logits, exact.logits)
    assert 0 < np.abs(rough.masks - exact.masks).max() < 0.01  # measured: at most 0.0032


def test_fewer_tokens_keep_the_models_precision(images, monkeypatch):
    masks = []
    for has_bf16 in (True, False):
        monkeypatch.setattr(weighted, "_has_bf16", lambda _device, has=has_bf16: has)
        masks.append(VITAttentionGradRollout(make_vit()).batch(images, [0, 1, 2]))
    assert np.array_equal(*masks)
