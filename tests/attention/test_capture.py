import numpy as np
import pytest
import timm
import torch
from timm.layers import DiffAttention
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from torch import nn

import reference
from helpers import LAYOUTS, make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention.capture import capture_attention, forward
from vitexplain.attention.tokens import UnsupportedModel, token_layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout):
    arguments, prefix, readout = LAYOUTS[layout]
    found = token_layout(make_vit(**arguments), 32, 32)
    assert (found.prefix_tokens, found.grid, found.readout) == (prefix, (4, 4), readout)
    assert found.tokens == prefix + 16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_captured_matrices_are_the_models_attention(layout, images):
    model = make_vit(**LAYOUTS[layout][0])
    _, expected = reference.forward(model, images)
    with torch.no_grad(), capture_attention(model, token_layout(model, 32, 32)) as captured:
        forward(model, images)
    for (attention,), wanted in zip(captured.blocks(), expected, strict=True):
        torch.testing.assert_close(attention, wanted.detach(), atol=1e-6, rtol=1e-5)


def state_of(model):
    return (
        [
            (m.training, getattr(m, "fused_attn", None), len(m._forward_hooks), set(m.__dict__))
            for m in model.modules()
        ],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        getattr(model, "grad_checkpointing", None),
    )


@pytest.mark.parametrize("explainer", [VITAttentionRollout, VITAttentionGradRollout])
@pytest.mark.parametrize("pool", ["token", "map"])
def test_model_is_left_as_it_was(explainer, pool, images):
    model = make_vit(global_pool=pool, class_token=pool == "token", attn_drop_rate=0.5)
    model.train()
    model.blocks[1].eval()
    model.blocks[0].attn.fused_attn = False
    model.head.weight.requires_grad_(False)
    model.set_grad_checkpointing()
    before = state_of(model)
    first = explainer(model).batch(images)
    assert state_of(model) == before
    # dropout was off: the same again
    assert np.array_equal(explainer(model).batch(images), first)

    def fail(*_):
        raise RuntimeError("half way")

    hook = model.blocks[1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="half way"):
        explainer(model).batch(images)
    hook.remove()
    assert state_of(model) == before


def test_fused_attention_is_what_users_have_and_is_switched_off(images):
    model = make_vit()
    assert all(block.attn.fused_attn for block in model.blocks)
    seen = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda *_: seen.append(1))
    model(images)
    assert not seen
    VITAttentionRollout(model).batch(images)
    assert len(seen) == 3


def pooled_by_hand(model, images):
    """(logits, blocks' attention, pool's attention (B, H, 1, K)) of an attention-pooled ViT."""
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    attentions = []
    for block in model.blocks:
        out, attention = reference.attend(block.attn, block.norm1(tokens))
        attentions.append(attention)
        tokens = tokens + out
        tokens = tokens + block.mlp(block.norm2(tokens))
    x, pool = model.norm(tokens), model.attn_pool
    if not model.pool_include_prefix:
        x = x[:, model.num_prefix_tokens :]
    b, k, c = x.shape
    query = pool.q(pool.latent.expand(b, -1, -1)).reshape(b, 1, pool.num_heads, -1).transpose(1, 2)
    key, value = pool.kv(x).reshape(b, k, 2, pool.num_heads, -1).permute(2, 0, 3, 1, 4)
    attention = torch.softmax(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5, dim=3)
    y = pool.proj((attention @ value).transpose(1, 2).reshape(b, 1, c))
    y = y + pool.mlp(pool.norm(y))
    return model.head(model.fc_norm(y[:, 0])), attentions, attention


@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_attention_pooling(with_prefix, fusion, images):
    """The pooling query's attention is the row that starts the product, gradient included."""
    model = make_vit(global_pool="map", reg_tokens=1, pool_include_prefix=with_prefix)
    logits, attentions, pool = pooled_by_hand(model, images)
    torch.testing.assert_close(logits, model(images), atol=1e-5, rtol=1e-4)
    gradients = torch.autograd.grad(logits[:, 2].sum(), [*attentions, pool])
    plain = VITAttentionRollout(model, head_fusion=fusion, discard_ratio=0.5)
    of_category = VITAttentionGradRollout(model, head_fusion=fusion, discard_ratio=0.5)
    masks, category_masks = plain.batch(images), of_category.batch(images, [2] * 3)
    fuse_row = {"mean": lambda m: m.mean(0), "max": lambda m: m.max(0)}[fusion]
    for index in range(3):
        matrices = reference.of_image(attentions, index)
        grads = reference.of_image(gradients, index)
        row = reference.of_image([pool], index)[0][:, 0]
        padding = [0.0] * (18 - row.shape[1])
        expected = reference.rollout(
            [reference.fuse(a, fusion) for a in matrices],
            0.5, 2, (4, 4), [*padding, *fuse_row(row)], pooled=True,
        )  # fmt: skip
        np.testing.assert_allclose(masks[index], expected, atol=2e-6)
        weighted_row = np.maximum(row * grads[-1][:, 0], 0)
        expected = reference.rollout(
            [reference.weighted(a, g, fusion) for a, g in zip(matrices, grads, strict=False)],
            0.5, 2, (4, 4), [*padding, *fuse_row(weighted_row)], pooled=True,
        )  # fmt: skip
        np.testing.assert_allclose(category_masks[index], expected, atol=2e-5)


def test_parallel_branches_are_one_block(images):
    """Two attentions side by side are summed in the residual stream, so their maps are too."""
    model = make_vit(block_fn=ParallelThingsBlock)
    tokens, fused = model._pos_embed(model.patch_embed(images)), []
    for block in model.blocks:
        branches = [reference.attend(b.attn, b.norm(tokens)) for b in block.attns]
        fused.append([a for _, a in branches])
        tokens = tokens + sum(out for out, _ in branches)
        tokens = tokens + sum(ffn(tokens) for ffn in block.ffns)
    masks = VITAttentionRollout(model, discard_ratio=0.5).batch(images)
    for index in range(3):
        summed = [sum(reference.fuse(a, "mean") for a in reference.of_image(block, index))
                  for block in fused]  # fmt: skip
        expected = reference.rollout(summed, 0.5, 1, (4, 4), [1.0] + [0.0] * 16)
        np.testing.assert_allclose(masks[index], expected, atol=2e-6)
    assert VITAttentionGradRollout(model).batch(images).max() == 1


def test_parallel_scaling_block(images):
    """There the flag and the dropout are the block's own."""
    model = make_vit(block_fn=ParallelScalingBlock, qkv_bias=True)
    block = model.blocks[0]
    tokens = model._pos_embed(model.patch_embed(images))
    _, q, k, _ = torch.split(block.in_proj(block.in_norm(tokens)), block.in_split, dim=-1)
    q, k = (t.view(3, 17, 3, 8).transpose(1, 2) for t in (q, k))
    expected = torch.softmax(q @ k.transpose(2, 3) / 8**0.5, dim=3)
    with torch.no_grad(), capture_attention(model, token_layout(model, 32, 32)) as captured:
        forward(model, images)
    torch.testing.assert_close(captured.blocks()[0][0], expected.detach(), atol=1e-6, rtol=1e-5)
    assert len(captured.blocks()) == 3


def vit_models():
    return timm.list_models(module="vision_transformer") + timm.list_models(module="deit")


@pytest.mark.slow
def test_every_model_of_the_family_has_a_layout():
    """All of timm's vision_transformer.py and deit.py, built without memory.

    Two blocks do: in these files, all blocks of a model are alike.
    """
    refused = []
    for name in vit_models():
        with torch.device("meta"):
            model = timm.create_model(name, depth=2)
        _, height, width = model.pretrained_cfg["input_size"]
        try:
            layout = token_layout(model, height, width)
        except UnsupportedModel as error:
            assert name in str(error)
            refused.append(name)
        else:
            assert layout.tokens == model.pos_embed.shape[1] + (
                model.num_prefix_tokens if model.no_embed_class else 0
            )
    assert len(vit_models()) > 170
    differential = ("vit_dlittle_", "vit_dpwee_", "vit_dwee_")
    assert refused == [name for name in vit_models() if name.startswith(differential)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "test_vit",
        "test_vit2",
        "test_vit3",
        "test_vit4",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_18x2_224",
        "vit_pwee_patch16_reg1_gap_256",
        "vit_base_patch32_clip_224",
    ],
)
def test_models_of_timm_end_to_end(name):
    """The acceptance test passes, every map peaks at 1, and the grid is that of the patches."""
    torch.manual_seed(0)
    changes = {"img_size": 112} if "dinov2" in name else {}
    model = timm.create_model(name, num_classes=11, **changes).eval()
    height, width = model.patch_embed.img_size
    images = torch.randn(2, 3, height, width)
    # random weights attend so evenly that a high discard ratio could leave nothing to read
    masks = VITAttentionRollout(model, discard_ratio=0).batch(images)
    patch = model.patch_embed.patch_size[0]
    assert masks.shape == (2, height // patch, width // patch)
    assert masks.max(axis=(1, 2)).tolist() == [1, 1]
    assert masks.min() >= 0
    assert VITAttentionGradRollout(model).batch(images, [1, 2]).shape == masks.shape


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18", "not blocks of attention over one grid"),
        ("maxvit_tiny_rw_224", "convolutions between its windows and grids"),
        ("cait_xxs24_224", "mixed after the softmax"),
        ("xcit_nano_12_p16_224", "between channels"),
        ("vit_dlittle_patch16_reg1_gap_256", "signed"),
    ],
)
def test_refused_with_a_reason_and_the_command_that_works(name, reason):
    with torch.device("meta"):
        model = timm.create_model(name)
    for explainer in (VITAttentionRollout, VITAttentionGradRollout):
        with pytest.raises(UnsupportedModel, match=reason) as caught:
            explainer(model)
        assert name in str(caught.value)
        assert str(caught.value).endswith(f"vit_explain.py --model {name} --method gradcam")
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"global_pool": "max"}, "max pooling"),
        ({"global_pool": "avgmax"}, "max pooling"),
        ({"global_pool": "prr"}, "AttentionPoolPrr"),
        ({"attn_layer": DiffAttention, "embed_dim": 48}, "signed"),
    ],
)
def test_vits_without_a_row_to_read_are_refused(changes, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        VITAttentionRollout(make_vit(**changes))


class Replace(nn.Module):
    """Stands in for `attn_drop` and passes on the changed attention."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, attention):
        return self.change(attention)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a * 0.9, "do not sum to 1"),
        (lambda a: a - torch.inf, "do not sum to 1"),
        (lambda a: a * torch.nan, "do not sum to 1"),
        (lambda a: a[:, :, :5, :5], r"captured \(3, 3, 5, 5\)"),
        (lambda a: a.flatten(0, 1), r"captured \(9, 17, 17\)"),
    ],
)
def test_acceptance_test(change, reason, images):
    model = make_vit()
    model.blocks[1].attn.attn_drop = Replace(change)
    with pytest.raises(UnsupportedModel, match=reason):
        VITAttentionRollout(model).batch(images)


def test_block_whose_attention_never_passes_is_refused(images):
    model = make_vit()
    block = model.blocks[1]
    block.forward = lambda x, **_: x + block.mlp(x)
    with pytest.raises(UnsupportedModel, match="only 2 of its 3 blocks"):
        VITAttentionRollout(model).batch(images)


def test_block_that_runs_twice_is_refused(images):
    model = make_vit()
    block, once = model.blocks[1], model.blocks[1].forward
    block.forward = lambda x, **_: once(once(x))
    with pytest.raises(UnsupportedModel, match="twice"):
        VITAttentionRollout(model).batch(images)
