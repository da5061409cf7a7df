"""Fused on the way or captured whole: the same masks."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import ParallelThingsBlock

from families import FAMILIES, SMALL, make
from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention import fused
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.images.reading import open_image
from vitexplain.models.loading import load_model


def hooked(model):
    """The same model, looked at by somebody else, so that its attention is captured whole."""
    for block in model.blocks:
        for name, layer in block.named_modules():
            if name.endswith("attn_drop"):
                layer.register_forward_hook(lambda *_: None)
    assert not fused.can_fuse(model, "attn_drop")
    return model


def both_ways(model, images, categories, **settings):
    assert fused.can_fuse(model, "attn_drop")
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
    monkeypatch.setattr(fused, "CHUNK", 1)
    parts = both_ways(make_vit(), images, [0, 1, 2], head_fusion=fusion)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_parallel_branches(images):
    model = make_vit(block_fn=ParallelThingsBlock)
    a, b, c, d = both_ways(model, images, [0, 1, 2], discard_ratio=0.3)
    np.testing.assert_allclose(a, c, atol=1e-5)
    np.testing.assert_allclose(b, d, atol=1e-4)


def test_a_boolean_mask_is_minus_infinity():
    """Eva takes masks; what is masked is not attended to."""
    query, key, value = torch.randn(3, 2, 3, 5, 4).unbind(0)
    mask = torch.rand(2, 1, 5, 5) > 0.3
    mask[..., 0] = True
    bias = fused._as_bias(mask, query)
    output, whole = fused._attend(query, key, value, bias, 0.5, "max", rows=5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.5)
    torch.testing.assert_close(output, expected)
    assert not whole[~mask[:, 0]].any()


def test_nothing_behind_the_last_attention_is_computed_for_masks_alone(images):
    model = make_vit()
    seen = []
    for name in ("blocks.1.mlp", "blocks.2.norm1", "blocks.2.mlp", "norm", "head"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    masks = VITAttentionRollout(model).batch(images)
    assert seen == ["blocks.1.mlp", "blocks.2.norm1"]
    explanation = VITAttentionRollout(model).explain(images)
    assert seen[2:] == ["blocks.1.mlp", "blocks.2.norm1", "blocks.2.mlp", "norm", "head"]
    np.testing.assert_array_equal(explanation.masks, masks)
    with torch.no_grad():
        torch.testing.assert_close(explanation.logits, model(images), atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("explainer", [VITAttentionRollout, VITAttentionGradRollout])
def test_attention_that_is_not_finite_is_refused(explainer, images):
    model = make_vit()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[:] = torch.nan
    with pytest.raises(UnsupportedModel, match="not finite"):
        explainer(model).batch(images)


def test_attention_over_other_tokens_is_refused(images):
    model = make_vit()
    attention = model.blocks[1].attn
    forward = attention.forward
    attention.forward = lambda x, **kwargs: torch.cat([forward(x[:, :9], **kwargs), x[:, 9:]], 1)
    with pytest.raises(UnsupportedModel, match="where 17 tokens to 17 were due"):
        VITAttentionRollout(model).batch(images)


def test_no_graph_and_no_gradient_is_left(images):
    model = make_vit()
    VITAttentionGradRollout(model).explain_several(images, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("name", ["both.png", "panda.jpg", "viaduct.jpg"])
def test_gradients_in_bfloat16_change_a_map_by_less_than_a_hundredth(name, examples, monkeypatch):
    """32 x 32 patches of the bundled model; also where the processor has to do it in software."""
    monkeypatch.setattr(fused, "_has_bf16", lambda _device: True)
    loaded = load_model("bundled", img_size=(512, 512))
    tensor = loaded.transform(open_image(examples / name))[None]
    rough = VITAttentionGradRollout(loaded.model).explain(tensor)
    exact = VITAttentionGradRollout(loaded.model, exact=True).explain(tensor)
    assert torch.equal(rough.logits, exact.logits)
    assert 0 < np.abs(rough.masks - exact.masks).max() < 0.01  # measured: at most 0.0032


def test_fewer_tokens_keep_the_models_precision(images, monkeypatch):
    masks = []
    for has_bf16 in (True, False):
        monkeypatch.setattr(fused, "_has_bf16", lambda _device, has=has_bf16: has)
        masks.append(VITAttentionGradRollout(make_vit()).batch(images, [0, 1, 2]))
    assert np.array_equal(*masks)
