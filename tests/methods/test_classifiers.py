"""Methods that need no attention, on models of all kinds."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from captum.attr import Occlusion
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from vitexplain import explain
from vitexplain.attention.class_attention import class_blocks
from vitexplain.attention.families import check_classifier
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.errors import RequestError
from vitexplain.faithfulness.measures import evaluate_images
from vitexplain.faithfulness.sanity import stages_of
from vitexplain.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
OF_CLASSIFIERS = ("gradcam", "integrated_gradients", "occlusion")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("vitexplain.methods.integrated_gradients.STEPS", 8)


def made(name, **changes):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **changes).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_gradcam_is_the_class_activation_map_where_the_head_is_pool_and_linear(name):
    """There the gradient is the classifier's row over h*w at every place (Zhou et al. 2016)."""
    model = made(name)
    images = torch.randn(3, 3, 96, 128)
    with torch.no_grad():
        features = model.forward_features(images)
        categories = model(images).argmax(dim=1).tolist()  # something speaks for these
    masks = METHODS["gradcam"].make(model).batch(images, categories)
    rows = model.get_classifier().weight[categories]
    for mask, feature, row in zip(masks, features, rows, strict=True):
        expected = np.maximum(np.einsum("c,chw->hw", row.numpy(), feature.numpy()), 0)
        np.testing.assert_allclose(mask, expected / expected.max(), atol=1e-5)


def tokens_of(side, prefix=0):
    return lambda t: t[:, prefix:].reshape(len(t), side, side, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "layer", "reshape"),
    [
        ("test_resnet", lambda m: m.layer4, None),
        ("test_convnext", lambda m: m.stages[-1], None),
        ("test_mambaout", lambda m: m.stages[-1], lambda t: t.permute(0, 3, 1, 2)),
        ("mixer_s32_224", lambda m: m.norm, tokens_of(7)),
        ("cait_xxs24_224", lambda m: m.blocks_token_only[-1].norm1, tokens_of(14, 1)),
    ],
)
def test_gradcam_is_that_of_pytorch_grad_cam(name, layer, reshape):
    model = made(name, **({"depth": 1, "embed_dim": 48} if "cait" in name else {}))
    if "mixer" in name:
        nn.init.normal_(model.head.weight)  # zeros before training
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    mask = METHODS["gradcam"].make(model)(image, 3)
    with GradCAM(model, [layer(model)], reshape_transform=reshape) as cam:
        cam.get_target_width_height = lambda _images: mask.shape[::-1]  # not enlarged
        (expected,) = cam(image.requires_grad_(), [ClassifierOutputTarget(3)])
    mask = (mask - mask.min()) / (mask.max() - mask.min())  # as it does
    np.testing.assert_allclose(mask, expected / expected.max(), atol=1e-4)


@pytest.mark.parametrize(("name", "patch"), [("test_resnet", 32), ("test_vit", 16)])
def test_occlusion_is_that_of_captum(name, patch):
    model = made(name)
    images = torch.randn(2, 3, 160, 160)
    found = METHODS["occlusion"].make(model).explain(images, [1, 3])
    windows = {"sliding_window_shapes": (3, patch, patch), "strides": (3, patch, patch)}
    theirs = Occlusion(model).attribute(images, target=torch.tensor([1, 3]), **windows)
    expected = theirs[:, 0, patch // 2 :: patch, patch // 2 :: patch]
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)


def test_integrated_gradients_add_up_to_the_difference_of_logits(monkeypatch):
    """Completeness, on images that are no multiple of a patch."""
    monkeypatch.setattr("vitexplain.methods.integrated_gradients.STEPS", 32)
    model = made("test_resnet")
    images = torch.randn(2, 3, 100, 140)
    found = METHODS["integrated_gradients"].make(model).explain(images, [1, 3])
    assert found.scores.shape == (2, 7, 9)
    with torch.no_grad():
        lost = (model(images) - model(torch.zeros_like(images)))[[0, 1], [1, 3]]
    np.testing.assert_allclose(found.scores.sum(axis=(1, 2)), lost, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("method", OF_CLASSIFIERS)
@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_every_small_model_of_timm(name, method):
    model = made(name)
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    found = METHODS[method].make(model).explain(image, [3])
    assert np.isfinite(found.scores).all()
    assert found.masks.shape[1] > 1
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", OF_CLASSIFIERS)
def test_several_categories_and_contrasts(method):
    model, image = made("test_resnet"), torch.randn(2, 3, 96, 96)
    explains = METHODS[method].make(model)
    first, second = explains.explain_several(image, [[1, 4], [2, 0]])
    np.testing.assert_allclose(first.scores, explains.explain(image, [1, 2]).scores, atol=1e-5)
    np.testing.assert_allclose(second.scores, explains.explain(image, [4, 0]).scores, atol=1e-5)
    contrast = explains.explain(image, [1, 1], against=[4])
    parts = [explains.explain(image, [k, k]).scores for k in (1, 4)]
    np.testing.assert_allclose(contrast.scores, parts[0] - parts[1], atol=1e-4)


def test_a_single_feature_is_no_grid_and_that_is_what_the_refusal_says():
    model = made("resnet18")
    with pytest.raises(UnsupportedModel, match="of a 32x32 image, no grid of 4 or more features"):
        METHODS["gradcam"].make(model).batch(torch.randn(1, 3, 32, 32))
    assert METHODS["gradcam"].make(model).batch(torch.randn(1, 3, 64, 64)).shape == (1, 2, 2)


def test_nothing_in_favour_is_an_empty_map():
    model = made("test_resnet")
    nn.init.constant_(model.get_classifier().weight, -1)  # features are >= 0
    assert not METHODS["gradcam"].make(model).batch(torch.randn(1, 3, 64, 64), [1]).any()


class Lightning(nn.Module):
    """What people have around a network: a part of its outputs, by a module of their own."""

    def __init__(self):
        super().__init__()
        self.net = made("test_resnet")

    def forward(self, images):
        return self.net(images)[:, 1:4]


@pytest.mark.parametrize("method", OF_CLASSIFIERS)
def test_a_network_in_a_module_of_ones_own(method):
    wrapper, images = Lightning(), torch.randn(1, 3, 96, 96)
    found = METHODS[method].make(wrapper).explain(images, [0])
    expected = METHODS[method].make(wrapper.net).explain(images, [1])
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert found.logits.shape == (1, 3)


def test_the_call_explains_any_model():
    both = ROOT / "examples" / "both.png"
    model = made("test_resnet")
    found = explain(both, "top", model=model, method="occlusion")
    assert found.map.shape == (5, 5)
    assert -1 <= found.faithfulness() <= 1
    with pytest.raises(RequestError, match="--model test_resnet --method gradcam"):
        explain(both, model=model)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: timm.create_model("test_resnet", num_classes=0), "no categories: its embedding"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "its class is not timm's"),
        (
            lambda: nn.ModuleList([made("test_resnet"), made("test_convnext")]),
            "several models, pass one",
        ),
    ],
)
def test_refused_with_a_reason(model, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        check_classifier(model())


@pytest.mark.parametrize(
    ("name", "changes", "grid"),
    [
        ("cait_xxs24_224", {"depth": 1, "embed_dim": 48}, (14, 14)),
        ("xcit_nano_12_p16_224", {"depth": 1}, (14, 14)),
        ("volo_d1_224", {}, (14, 14)),
    ],
)
def test_class_attention_is_that_of_its_queries_and_keys(name, changes, grid):
    """softmax(q k^T / sqrt(d)), by hand from the block's own layers."""
    model = made(name, **changes)
    blocks = class_blocks(model)
    seen = []
    hook = blocks[-1].attn.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    model(image)
    hook.remove()
    attn, tokens = blocks[-1].attn, seen[0]
    heads = attn.num_heads
    if hasattr(attn, "kv"):
        query, key = attn.q(tokens[:, :1]), attn.kv(tokens)[..., : tokens.shape[2]]
    else:
        query, key = attn.q(tokens[:, :1]), attn.k(tokens)
    query, key = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key))
    expected = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)  # (1, H, 1, N)
    for head in (None, 1):
        found = METHODS["attention"].make(model, head=head).explain(image)
        row = expected.mean(dim=1) if head is None else expected[:, head]
        np.testing.assert_allclose(found.scores, row[:, 0, 1:].view(1, *grid), atol=1e-5)
    torch.testing.assert_close(found.logits, model(image), atol=1e-4, rtol=1e-4)
    with pytest.raises(RequestError, match=r"block must be from 0 to \d, not 9"):
        METHODS["attention"].make(model, block=9)
    with pytest.raises(RequestError, match=r"head must be from 0 to \d+, not 99"):
        METHODS["attention"].make(model, head=99)(image)


def test_methods_are_evaluated_on_any_classifier():
    model, images = made("test_resnet"), torch.randn(2, 3, 96, 96)
    methods = {name: METHODS[name] for name in ("gradcam", "attention_rollout")}
    found = evaluate_images(model, images, (0.2, 0.2, 0.2), methods, [1, 2], steps=10, few=1)
    assert list(found.values) == ["gradcam"]
    assert "not blocks of attention" in found.left_out["attention_rollout"]
    assert np.isfinite([each.mean() for each in found.values["gradcam"].values()]).all()
    assert list(stages_of(model)) == ["fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
