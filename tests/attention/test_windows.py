"""Swin: windows and merging as the model itself treats them, found out by disturbing patches."""

import numpy as np
import pytest
import torch

import reference
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention.capture import capture_attention
from vitexplain.attention.tokens import UnsupportedModel, blocks_of, check_supported, token_layout
from vitexplain.attention.windows import merging, windows_of
from vitexplain.methods.product import fuse_heads, propagate
from windowed import MODELS, make

# name -> input size and window: whole windows; grids that need padding; not square
CASES = {
    "even": (64, 64, 4),
    "padded": (84, 84, 4),
    "oblong": (24, 72, 3),
}


@pytest.fixture(params=[(m, c) for m in MODELS for c in CASES], ids=lambda p: f"{p[0][:6]}-{p[1]}")
def case(request):
    name, size = request.param
    height, width, window = CASES[size]
    return make(name, height, width, window, depths=(2, 1)), height, width


def factors_of(model, images):
    layout = token_layout(model, *images.shape[2:])
    with torch.no_grad(), capture_attention(model, layout) as captured:
        model(images)
    fused = [fuse_heads(branches[0], "mean") for branches in captured.blocks()]
    return captured.factors(fused).factors, layout


def last_tokens(model, embedded):
    """(N', C): what comes out of the stages, by timm's own code."""
    with torch.no_grad():
        return model.layers(embedded).flatten(1, 2)[0]


@pytest.mark.slow
def test_what_can_reach_a_token_is_what_changes_it(case):
    """Disturb one patch at a time: just those outputs change that the product says it reaches."""
    model, height, width = case
    model.double()  # so that a small change is still one
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    images = images.double()
    factors, layout = factors_of(model, images)
    matrices = [factor.matrix for factor in factors]
    reached = [
        propagate(matrices, torch.eye(layout.last_tokens)[[row]])[0] > 0
        for row in range(layout.last_tokens)
    ]
    reached = torch.stack(reached)  # (N', N)
    assert 0 < reached.float().mean() < 1
    with torch.no_grad():
        embedded = model.patch_embed(images)
        before = last_tokens(model, embedded)
        for patch in range(layout.tokens):
            disturbed = embedded.clone()
            disturbed[0, patch // layout.grid[1], patch % layout.grid[1]] += torch.randn(12)
            changed = (last_tokens(model, disturbed) != before).any(dim=1)
            assert torch.equal(changed, reached[:, patch]), patch


def test_every_row_sums_to_1_and_padding_takes_the_rest(case):
    model, height, width = case
    factors, layout = factors_of(model, torch.randn(2, 3, height, width))
    assert [factor.matrix.ndim for factor in factors] == [3, 3, 2, 3]
    sides = zip(layout.grid, blocks_of(model)[0].window_size, strict=True)
    padded = any(side % window for side, window in sides)
    for factor in factors:
        sums = factor.matrix.sum(dim=-1)
        assert sums.max() <= 1 + 1e-5
        if factor.matrix.ndim == 2 or not padded:
            torch.testing.assert_close(sums, torch.ones_like(sums))
    readout = torch.full((2, layout.last_tokens), 1 / layout.last_tokens)
    row = propagate([factor.matrix for factor in factors], readout)
    torch.testing.assert_close(row.sum(dim=1), torch.ones(2))


def test_attention_is_at_its_tokens_places():
    """A block's own output from the big matrix: attention times values, as the block computes."""
    model = make(MODELS[0], 36, 36, 4)
    block = model.layers[0].blocks[1]
    assert block.shift_size == (2, 2)
    tokens = torch.randn(2, 9, 9, 12)
    seen = []
    hook = block.attn.attn_drop.register_forward_hook(lambda _l, _i, out: seen.append(out))
    block.attn.fused_attn = False
    with torch.no_grad():
        expected = block._attn(tokens).flatten(1, 2)
        hook.remove()
        (attention,) = seen
        windows = windows_of(block, 9, 9)
        values = block.attn.qkv(tokens).unflatten(3, (3, 2, 6))[:, :, :, 2].flatten(1, 2)
        heads = []
        for head in range(2):
            matrix = windows.spread(attention[:, head])
            heads.append(matrix @ values[:, :, head])
            # padding has the values of a zero: only the bias
            bias = block.attn.qkv.bias.view(3, 2, 6)[2, head]
            heads[-1] += (1 - matrix.sum(dim=2, keepdim=True)) * bias
        found = block.attn.proj(torch.cat(heads, dim=2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_merging_takes_four_tokens_or_those_there_are():
    matrix = merging(3, 4)
    assert matrix.shape == (4, 12)
    assert matrix[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert matrix[3].nonzero().flatten().tolist() == [10, 11]
    assert matrix[0, 0] == 0.25
    assert matrix[3, 11] == 0.5


@pytest.mark.parametrize("name", MODELS)
def test_masks_against_the_slow_calculation(name):
    """Without windows smaller than the grid, Swin is an ordinary transformer with merging."""
    model = make(name, 16, 16, 4, depths=(1, 1))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    rollout = VITAttentionRollout(model, head_fusion="max", discard_ratio=0.4).batch(images)
    graded = VITAttentionGradRollout(model, discard_ratio=0.2).batch(images, [3, 0])
    attentions, gradients, _ = reference.softmaxes(model, images, [3, 0])
    merge = merging(4, 4).double().numpy()
    for image in range(2):
        for masks, ratio, by_gradient in ((rollout, 0.4, False), (graded, 0.2, True)):
            factors, alone = [], []
            for attention, gradient in zip(attentions, gradients, strict=True):
                heads, of_heads = (
                    t[image].detach().double().numpy() for t in (attention, gradient)
                )
                fused = (
                    reference.weighted(heads, of_heads, "mean")
                    if by_gradient
                    else reference.fuse(heads, "max")
                )
                kept = reference.discard(fused, ratio, 0)
                factors.append(reference.with_residual(kept))
                alone.append(np.diag(1 / (kept.sum(axis=1) + 1)))
            product = factors[1] @ merge @ factors[0] - alone[1] @ merge @ alone[0]
            row = np.full(4, 1 / 4) @ product
            expected = (row / row.max()).reshape(4, 4)
            np.testing.assert_allclose(masks[image], expected, atol=1e-4)


def test_discarding_counts_the_paths_there_are():
    """Most entries of the big matrix are no paths: a ratio of 0.5 must still cut half of those."""
    model = make(MODELS[0], 32, 32, 4)
    images = torch.randn(1, 3, 32, 32)
    masks = [VITAttentionRollout(model, discard_ratio=r).batch(images) for r in (0, 0.5, 0.9)]
    assert np.abs(masks[0] - masks[1]).max() > 0.01
    assert np.abs(masks[1] - masks[2]).max() > 0.01


def test_gradient_of_a_half_that_does_not_count():
    """A head that reads nothing of a category gives an empty map, one that does a full one."""
    model = make(MODELS[0], 32, 32, 4)
    with torch.no_grad():
        model.head.fc.weight[2] = 0
    images = torch.randn(1, 3, 32, 32)
    explainer = VITAttentionGradRollout(model, discard_ratio=0)
    # only the residual connection is left: every patch reaches its own place alike
    assert np.ptp(explainer.batch(images, [2])) < 1e-6
    assert np.ptp(explainer.batch(images, [1])) > 0.01


def test_other_pooling_is_refused():
    with pytest.raises(UnsupportedModel, match="reads no token"):
        check_supported(make(MODELS[0], 32, 32, 4, global_pool=""))
    with pytest.raises(UnsupportedModel, match="max pooling"):
        check_supported(make(MODELS[0], 32, 32, 4, global_pool="max"))
