"""A shadow computes what its model does, and the model is not touched."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from helpers import make_vit
from vitexplain.attention.shadow import shadow_of
from vitexplain.errors import RequestError
from vitexplain.methods.registry import METHODS


def state(model):
    """All that can be seen of a model, module by module."""
    seen = [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()]
    for name, module in model.named_modules():
        hooks = [len(getattr(module, each)) for each in vars(module) if each.endswith("_hooks")]
        flags = {k: v for k, v in vars(module).items() if isinstance(v, bool)}
        seen.append((name, sorted(vars(module)), hooks, flags))
    return seen


def test_same_memory_other_modules():
    model = make_vit().train()
    shadow = shadow_of(model)
    for parameter, twin in zip(model.parameters(), shadow.parameters(), strict=True):
        assert parameter.data_ptr() == twin.data_ptr()
        assert not twin.requires_grad
    assert not {id(m) for m in model.modules()} & {id(m) for m in shadow.modules()}
    assert not any(m.training for m in shadow.modules())
    with torch.no_grad():
        model.head.bias.fill_(3)  # trained on: the shadow follows
    assert shadow.head.bias.tolist() == [3] * 7


def test_own_weights_can_be_changed():
    model = make_vit()
    before = model.head.weight.clone()
    shadow_of(model, own_weights=True).head.weight.zero_()
    assert torch.equal(model.head.weight, before)


def test_whatever_refers_to_a_module_refers_to_the_shadows():
    class Tied(VisionTransformer):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.in_lists = [(block,) for block in self.blocks]
            self.by_name = {"last": self.blocks[-1]}
            self.first = self.blocks[0].forward
            self.part = partial(nn.Module.__call__, self.norm)
            self.norm.weight = self.blocks[0].norm1.weight

    model = make_vit(Tied)
    shadow = shadow_of(model)
    assert [block for (block,) in shadow.in_lists] == list(shadow.blocks)
    assert shadow.by_name["last"] is shadow.blocks[-1]
    assert shadow.first.__self__ is shadow.blocks[0]
    assert shadow.part.args == (shadow.norm,)
    assert shadow.norm.weight is shadow.blocks[0].norm1.weight


def test_hooks_of_the_shadow_stay_apart():
    model, seen = make_vit(), []
    model.norm.register_forward_hook(lambda *_: seen.append("mine"))
    shadow = shadow_of(model)
    shadow.norm.register_forward_hook(lambda *_: seen.append("shadow's"))
    images = torch.randn(1, 3, 32, 32)
    model(images)
    assert seen == ["mine"]
    shadow(images)
    assert seen == ["mine", "mine", "shadow's"]


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    with pytest.raises(RequestError, match="no weights"):
        METHODS["attention_rollout"].make(model).batch(torch.randn(1, 3, 32, 32))


def test_weights_of_inference_mode_can_be_explained():
    expected = make_vit()
    with torch.inference_mode():
        model = make_vit()
    images = torch.randn(2, 3, 32, 32)
    for name in ("grad_rollout", "attnlrp", "gradcam", "legrad", "integrated_gradients"):
        masks = [METHODS[name].make(each).batch(images, [1, 2]) for each in (model, expected)]
        np.testing.assert_array_equal(*masks)


@pytest.mark.slow
def test_threads_explain_and_predict_on_one_model():
    """8 threads explain by all methods and 8 predict, 300 calls: all right, nothing left."""
    model = make_vit().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a prediction in training mode must be comparable
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    makers = [METHODS[name].make(model) for name in METHODS]
    expected = [method.batch(images) for method in makers]
    with torch.no_grad():
        logits = model(images)
    before = state(model)

    def explain(number):
        place, which = number % len(makers), number % 8
        found = makers[place].batch(images[which : which + 1])
        np.testing.assert_allclose(found[0], expected[place][which], atol=2e-4)

    def predict(number):
        which = number % 8
        found = model(images[which : which + 1])
        assert found.requires_grad
        torch.testing.assert_close(found[0].detach(), logits[which], atol=1e-5, rtol=1e-5)

    with ThreadPoolExecutor(8) as explaining, ThreadPoolExecutor(8) as predicting:
        running = [explaining.submit(explain, number) for number in range(150)]
        running += [predicting.submit(predict, number) for number in range(150)]
        for each in running:
            each.result()
    assert state(model) == before
