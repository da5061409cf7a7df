"""Value rollout against explicit vectors: every token's contribution to every other one."""

import numpy as np
import pytest
import timm
import torch
from timm.layers import Attention
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import reference
from families import FAMILIES, SMALL, assert_well_formed, make
from helpers import LAYOUTS, expected_readout, make_vit
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.methods.value_rollout import (
    ValueRollout,
    norms_of_sums,
    output_weight,
    value_products,
)


class Calls(TorchFunctionMode):
    """Records the attention calls of a forward pass: (attention, values, output)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
            if (kwargs or {}).get("attn_mask") is not None:
                scores = scores + kwargs["attn_mask"]
            self.seen.append((scores.softmax(dim=3), value, output))
        return output


def calls(model, images):
    with torch.no_grad(), Calls() as recorded:
        model(images)
    return recorded.seen


def slow_norms(attention, value, weight):
    """rownorm(F) of one image, (H, n, N) and (H, N, d), from the vectors themselves."""
    heads, queries, tokens = attention.shape
    size = value.shape[2]
    norms = np.zeros((queries, tokens))
    for i in range(queries):
        for j in range(tokens):
            carried = np.zeros(len(weight))
            for h in range(heads):
                columns = weight[:, h * size : (h + 1) * size]
                carried += attention[h, i, j] * (columns @ value[h, j])
            norms[i, j] = np.sqrt((carried**2).sum())
    return norms / norms.sum(axis=1, keepdims=True)


def slow_mask(model, seen, image, read, prefix, start=0):
    def numpy(tensor):
        return tensor.detach().double().numpy()

    matrices = []
    for block, (attention, value, _) in zip(model.blocks[start:], seen[start:], strict=False):
        scale = block.gamma_1 if hasattr(block, "gamma_1") else block.ls1.gamma
        weight = numpy(block.attn.proj.weight) * numpy(scale)[:, None]
        matrices.append(slow_norms(numpy(attention[image]), numpy(value[image]), weight))
    pooled = read is None
    if pooled:
        attention, value, _ = seen[-1]
        weight = numpy(model.attn_pool.proj.weight)
        read = slow_norms(numpy(attention[image]), numpy(value[image]), weight)[0]
        read = np.concatenate([np.zeros(len(matrices[0]) - len(read)), read])
    return reference.rollout(matrices, 0, prefix, (4, 4), read, pooled=pooled)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("layout", [*LAYOUTS, "attention pool"])
def test_equals_explicit_vectors(layout, start, images):
    arguments, prefix, _ = LAYOUTS.get(layout, ({"global_pool": "map", "reg_tokens": 1}, 2, ""))
    model = make_vit(**arguments, depth=2, init_values=0.5)
    read = expected_readout(layout, prefix) if layout in LAYOUTS else None
    found = ValueRollout(model, start_block=start).explain(images)
    torch.testing.assert_close(found.logits, model(images).detach(), atol=1e-4, rtol=1e-4)
    assert found.categories is None
    seen = calls(model, images)
    for image in range(len(images)):
        expected = slow_mask(model, seen, image, read, prefix, start)
        np.testing.assert_allclose(found.masks[image], expected, atol=1e-5)
    only_masks = ValueRollout(model, start_block=start).batch(images)
    np.testing.assert_allclose(only_masks, found.masks, atol=1e-6)


@pytest.mark.parametrize(
    "name, read",
    [
        ("vit_relpos_base_patch16_cls_224", [1.0] + [0.0] * 16),
        ("beit_base_patch16_224", [0.0] + [1 / 16] * 16),
    ],
)
def test_position_bias_equals_explicit_vectors(name, read):
    model = make(name)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    masks = ValueRollout(model).batch(images)
    seen = calls(model, images)
    for image in range(2):
        expected = slow_mask(model, seen, image, read, prefix=1)
        np.testing.assert_allclose(masks[image], expected, atol=1e-4)


def test_many_tokens_in_pieces(monkeypatch, images):
    model = make_vit()
    whole = ValueRollout(model).batch(images)
    monkeypatch.setattr("vitexplain.attention.chunks.CHUNK", 3 * 3 * 17 * 4 * 5)  # five rows
    np.testing.assert_allclose(ValueRollout(model).batch(images), whole, atol=1e-6)


def test_what_carries_nothing_has_no_norm():
    """An attention sink: all look at token 2, whose value is 0."""
    attention = torch.full((1, 2, 5, 5), 0.01)
    attention[..., 2] = 0.96
    value = torch.randn(1, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    value[:, :, 2] = 0
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    norms = norms_of_sums(attention, value_products(value, weight))
    assert not norms[..., 2].any()
    assert (norms[..., [0, 1, 3, 4]] > 0).all()


@pytest.mark.parametrize(
    "name",
    [
        "deit3_small_patch16_224",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "beit_base_patch16_224",
        "vit_relpos_base_patch16_cls_224",
        "vit_pwee_patch16_reg1_gap_256",
    ],
)
def test_output_weight_is_what_makes_attention_an_addition(name):
    """Of two tokens the output layer adds the difference of their values, whatever its bias."""
    model = make(name)
    block = model.blocks[0]
    added = []
    if name.startswith("vit_pwee"):
        with torch.no_grad():
            block.mlp_out_proj.weight.zero_()
    last = getattr(block, "drop_path1", None) or block.drop_path
    last.register_forward_hook(lambda _layer, _inputs, output: added.append(output))
    side = (SMALL | FAMILIES[name][0])["img_size"]
    _, _, output = calls(model, torch.randn(1, 3, side, side))[0]
    values = output.transpose(1, 2).flatten(2)  # (B, N, H*d)
    expected = (values[:, 1:] - values[:, :-1]) @ output_weight(block).T
    torch.testing.assert_close(added[0][:, 1:] - added[0][:, :-1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_rope_224",
        "vit_pe_core_tiny_patch16_384",
        "vit_tiny_r_s16_p8_224",
        "vit_base_patch16_siglip_224",
    ],
)
def test_family(name):
    model = make(name)
    side = (SMALL | FAMILIES[name][0])["img_size"]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    found = ValueRollout(model).explain(images)
    assert_well_formed(found, model, images)
    alone = ValueRollout(model)(images[1:])
    np.testing.assert_allclose(found.masks[1], alone, atol=1e-4)


def test_grid_is_that_of_the_input():
    model = make_vit(img_size=(24, 40))
    assert ValueRollout(model)(torch.randn(1, 3, 24, 40)).shape == (3, 5)


def test_where_nothing_is_carried_there_is_nothing_to_see(images):
    model = make_vit(global_pool="avg", init_values=1.0)
    with torch.no_grad():
        for block in model.blocks:
            block.ls1.gamma.zero_()
    assert ValueRollout(model).batch(images).tolist() == np.zeros((3, 4, 4)).tolist()


def test_model_is_left_as_it_was(images):
    model = make_vit().train()
    fused = [block.attn.fused_attn for block in model.blocks]
    ValueRollout(model).batch(images)
    with pytest.raises(ValueError, match="does not take 40x40"):
        ValueRollout(model).batch(torch.randn(1, 3, 40, 40))
    assert all(module.training for module in model.modules())
    assert [block.attn.fused_attn for block in model.blocks] == fused
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def gated():
    model = make_vit()
    model.blocks[1].attn = Attention(24, num_heads=3, gated=True)
    return model


def without_linear_output():
    model = make_vit()
    model.blocks[1].attn.proj = nn.Sequential(model.blocks[1].attn.proj, nn.GELU())
    return model


@pytest.mark.parametrize(
    "model, reason",
    [
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "has no windows"),
        (lambda: timm.create_model("cait_xxs24_224"), "talking heads"),
        (lambda: make_vit(block_fn=ParallelThingsBlock), "ParallelThingsBlock.* plain sum"),
        (lambda: make_vit(block_fn=ResPostBlock), "ResPostBlock.* plain sum"),
        (lambda: make_vit(scale_attn_norm=True), "normalised before the output layer"),
        (gated, "gated"),
        (without_linear_output, "no linear output layer"),
    ],
)
def test_refusals(model, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        ValueRollout(model())


def test_start_block_out_of_range():
    with pytest.raises(ValueError, match="start_block must be from 0 to 2"):
        ValueRollout(make_vit(), start_block=3)
