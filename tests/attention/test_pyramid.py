"""Rollout where the grid shrinks: matrices against the models' own arithmetic, and influence."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention import pyramid
from vitexplain.attention.families import UnsupportedModel
from vitexplain.errors import RequestError
from vitexplain.methods.product import fuse_heads
from vitexplain.methods.registry import METHODS

NAMES = (
    *("pit_ti_224", "pit_ti_distilled_224", "levit_128s", "levit_conv_128s", "hiera_tiny_224"),
    *("twins_svt_small", "twins_pcpvt_small"),
)
slow = partial(pytest.param, marks=pytest.mark.slow)  # of 3,136 patches
ONE_OF_EACH = ("pit_ti_224", "levit_128s", "hiera_tiny_224")


@pytest.fixture(scope="module")
def models():
    made = {}
    for name in NAMES:
        torch.manual_seed(0)
        small = {"embed_dim": 24, "num_heads": 1} if "hiera" in name else {}
        made[name] = timm.create_model(name, num_classes=5, **small).eval().requires_grad_(False)
        for head in ("head", "head_dist"):
            layer = getattr(made[name], head, None)
            for module in () if layer is None else layer.modules():
                if isinstance(module, nn.Linear):  # Hiera's begins near 0
                    nn.init.normal_(module.weight)
    return made


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def blocks_of(model):
    """The modules that attend, in order; LeViT's own ones between its stages too."""
    kinds = ("Attention", "AttentionDownsample", "MaskUnitAttention")
    return [module for module in model.modules() if type(module).__name__ in kinds]


@pytest.mark.parametrize("name", ONE_OF_EACH)
@torch.no_grad()
def test_matrices_are_what_attention_does_to_values(name, models, image):
    """A block's output before its projection is the matrix times the values, in token order."""
    model, seen = models[name], []
    modules = blocks_of(model)

    def see(module, inputs, _output):
        proj = getattr(module, "proj", None)
        values = (module.kv if hasattr(module, "kv") else module.qkv)(inputs[0])
        seen.append((module, values, before_projection(module, proj, inputs[0])))

    hooks = [module.register_forward_hook(see) for module in modules]
    attentions, _ = pyramid.pyramid_attention(model, image)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(attentions) == pyramid.attentions_of(model)
    for head in (0, -1):
        factors = pyramid.pyramid_factors(model, attentions, lambda a, h=head: a[:, h])
        matrices = [factor.matrix[0] for factor in factors if factor.matrix is not None]
        for matrix, (module, values, output) in zip(matrices, seen, strict=True):
            torch.testing.assert_close(
                matrix @ values_of(module, values[0], head), of_head(module, output[0], head),
                atol=1e-4, rtol=1e-3,
            )  # fmt: skip


def before_projection(module, proj, tokens):
    """What goes into a module's projection when it is given these tokens."""
    seen = []
    hook = proj.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    handles = dict(module._forward_hooks)
    module._forward_hooks.clear()  # it is run again: nobody else is to see that
    with torch._C.DisableTorchFunction():
        module(tokens)
    module._forward_hooks.update(handles)
    hook.remove()
    return seen[0]


def values_of(module, flat, head):
    """(N, d): a head's values of each token."""
    if type(module).__name__ == "MaskUnitAttention":
        return flat.unflatten(1, (3, module.heads, -1))[:, 2, head]
    if hasattr(module, "key_dim"):  # LeViT: query, key and value within each head
        widths = [module.key_dim, module.val_dim]
        widths = widths if hasattr(module, "kv") else [module.key_dim, *widths]
        return flat.unflatten(1, (module.num_heads, -1))[:, head].split(widths, dim=1)[-1]
    return flat.unflatten(1, (3, module.num_heads, -1))[:, 2, head]


def of_head(module, flat, head):
    heads = getattr(module, "heads", None) or module.num_heads
    return flat.unflatten(1, (heads, -1))[:, head]


@torch.no_grad()
def test_what_a_patch_of_hiera_reaches_is_what_it_changes(models, image):
    """The influence test, while attention is in units: one token changed after the embedding."""
    model = models["hiera_tiny_224"]
    attentions, _ = pyramid.pyramid_attention(model, image)
    factors = pyramid.pyramid_factors(model, attentions, lambda a: fuse_heads(a, "mean"))
    start = model.unroll(model._pos_embed(model.patch_embed(image)))
    for token in (0, 1000, 3135):
        reached = torch.zeros(1, start.shape[1])
        reached[0, token] = 1
        before = after = start
        after = start.clone()
        after[0, token] += torch.randn(start.shape[2])
        for block, factor in zip(model.blocks[:3], factors[:3], strict=True):
            before, after = block(before), block(after)
            whole = factor.matrix[0] + factor.residual
            reached = (reached @ whole.T > 0).float()
            changed = (after - before).abs().amax(dim=2) > 0
            assert torch.equal(changed, reached > 0)
        assert 0 < int(changed.sum()) < changed.numel()


@torch.no_grad()
def test_what_a_patch_of_twins_reaches_is_what_it_changes(models, image):
    """The influence test in the first stage: squares, the convolution, then all of them."""
    model = models["twins_svt_small"]
    attentions, _ = pyramid.pyramid_attention(model, image)
    factors = pyramid.pyramid_factors(model, attentions, lambda a: fuse_heads(a, "mean"))
    start, size = model.patch_embeds[0](image)
    first, second = model.blocks[0]
    parts = (
        lambda x: first(x, size),
        lambda x: model.pos_block[0](x, size),
        lambda x: second(x, size),
    )
    for token in (0, 1500, 3135):
        before, after = start, start.clone()
        after[0, token] += torch.randn(start.shape[2])
        reached = torch.zeros(1, start.shape[1])
        reached[0, token] = 1
        counts = []
        for part, factor in zip(parts, factors[:3], strict=True):
            before, after = part(before), part(after)
            whole = factor.residual + (0 if factor.matrix is None else factor.matrix[0])
            reached = (reached @ whole.T > 0).float()
            assert torch.equal((after - before).abs().amax(dim=2) > 0, reached > 0)
            counts.append(int(reached.sum()))
        assert counts[0] == 49 < counts[1] < counts[2] == 3136


@torch.no_grad()
def test_twins_squares_are_what_its_layers_read(models, image):
    """Matrix times values is attention before its projection; keys are read from their squares."""
    model = models["twins_svt_small"]
    local, wide = (block.attn for block in model.blocks[0])
    seen = []
    hook = local.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    attentions, _ = pyramid.pyramid_attention(model, image)
    hook.remove()
    (factor, *_) = pyramid.pyramid_factors(model, attentions, lambda a: a[:, 1])
    values = local.qkv(seen[0])[0].unflatten(1, (3, local.num_heads, -1))[:, 2, 1]
    found = []
    hook = local.proj.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0]))
    local(seen[0], (56, 56))
    hook.remove()
    expected = found[0][0].unflatten(1, (local.num_heads, -1))[:, 1]
    torch.testing.assert_close(factor.matrix[0] @ values, expected, atol=1e-4, rtol=1e-3)
    keys = pyramid._squares(56, 56, wide.sr_ratio)  # (49, 3136)
    tokens = torch.randn(1, wide.dim, 56, 56)
    for token in (0, 1000, 3135):
        changed = tokens.clone()
        changed.flatten(2)[..., token] += 1
        moved = (wide.sr(changed) - wide.sr(tokens)).flatten(2)[0].norm(dim=0) > 1e-6
        assert torch.equal(moved, keys[:, token] > 0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("pvt_v2_b0", lambda m: (m.stages[0].blocks[0].mlp, (8, 8)), 64),
        ("mvitv2_tiny", lambda m: (m.stages[0].blocks[0].attn.pool_q, None), 64),
        ("maxvit_tiny_tf_224", lambda m: (m.stages[0].blocks[0].conv, None), 64),
    ],
)
def test_why_others_are_left_out(name, layer, size):
    """One token changed before a layer that is no attention changes its neighbours, too."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    module, grid = layer(model)
    channels = next(module.parameters()).shape[1 if grid else 0]
    if grid:
        tokens = torch.randn(1, size, channels)
        changed = tokens.clone()
        changed[0, 27] += 1
        moved = (module(changed, grid) - module(tokens, grid)).norm(dim=2)[0] > 0
    else:
        tokens = torch.randn(1, channels, 8, 8)
        changed = tokens.clone()
        changed[0, :, 3, 3] += 1
        moved = (module(changed) - module(tokens)).norm(dim=1).flatten() > 0
    assert int(moved.sum()) > 1


@torch.no_grad()
def test_pits_merging_is_what_its_convolution_reads(models, image):
    model = models["pit_ti_224"]
    steps = [step for step in pyramid._steps(model) if step.arrange is None]
    assert [tuple(step.residual.shape) for step in steps] == [(197, 730), (50, 197)]
    pool = model.transformers[1].pool
    tokens = torch.randn(1, pool.conv.in_channels, 27, 27)
    for patch in (0, 13, 400, 728):
        changed = tokens.clone()
        changed.flatten(2)[:, :, patch] += 1
        moved = (pool.conv(changed) - pool.conv(tokens)).flatten(2)[0].norm(dim=0)  # (196,)
        column = steps[0].residual[1:, 1 + patch]
        assert torch.equal(moved > 1e-6, column > 0)
        order = column[column > 0].argsort()
        assert bool((moved[column > 0][order].diff() > -0.35 * moved.max()).all())
    assert torch.equal(steps[0].residual[0], torch.eye(730)[0])  # the class token stays what it is


@pytest.mark.parametrize("name", [*NAMES[:5], *(slow(name) for name in NAMES[5:])])
def test_rollout_is_the_product_of_the_matrices(name, models, image):
    model = models[name]
    found = VITAttentionRollout(model, discard_ratio=0).explain(image)
    attentions, logits = pyramid.pyramid_attention(model, image)
    whole = None
    for factor in pyramid.pyramid_factors(model, attentions, lambda a: a.mean(dim=1)):
        if factor.matrix is None:
            each = factor.residual
        else:
            each = factor.matrix[0] + (0 if factor.residual is None else factor.residual)
            each = each / each.sum(dim=1, keepdim=True)
        whole = each if whole is None else each @ whole
    layout = pyramid.pyramid_layout(model)
    row = whole[list(layout.readout_rows)].mean(dim=0)
    assert float(row.sum()) == pytest.approx(1, abs=1e-4)
    expected = pyramid.in_rows(model, row[None, layout.prefix_tokens :])[0]
    np.testing.assert_allclose(found.scores[0].ravel(), expected, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(image), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits, model(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_gradients_are_those_of_the_attention(name, models, image):
    """The logit moves by the gradient times a small change of one attention weight."""
    model = models[name]
    attentions, logits = pyramid.pyramid_attention(model, image, track_gradient=True)
    gradients = torch.autograd.grad(logits[0, 3], attentions)
    for number in (0, len(attentions) - 1):
        place = np.unravel_index(int(gradients[number].abs().argmax()), gradients[number].shape)
        step = 1e-2
        moved = [with_weight(model, image, number, place, sign * step)[0, 3] for sign in (1, -1)]
        slope = float(moved[0] - moved[1]) / (2 * step)
        assert slope == pytest.approx(float(gradients[number][place]), rel=0.02)


@torch.no_grad()
def with_weight(model, image, number, place, change):
    """The logits with one weight of one attention changed."""
    count = iter(range(100))

    class Changed(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if func is torch.Tensor.softmax and next(count) == number:
                found = found.clone()
                found[tuple(place)] += change
            return found

    with pyramid.inference_state(model, freeze=True), Changed():
        return model(image)


@pytest.mark.parametrize("name", [*NAMES[:4], *(slow(name) for name in NAMES[4:])])
def test_a_map_for_each_category_and_batches(name, models, image):
    model = models[name]
    images = torch.cat([image, image.flip(3)])
    method = VITAttentionGradRollout(model, discard_ratio=0.5)
    first, second = method.explain_several(images, [[1, 4], [2, 0]])
    np.testing.assert_allclose(first.scores, method.explain(images, [1, 2]).scores, atol=1e-5)
    alone = method.explain(images[1:], [0])
    np.testing.assert_allclose(second.scores[1:], alone.scores, atol=1e-5)
    assert first.masks.shape[1:] == pyramid.pyramid_layout(model).grid
    assert np.abs(first.masks - second.masks).max() > 0.01
    contrast = method.explain(images, [1, 1], against=[4])
    assert contrast.masks.min() < 0 < contrast.masks.max()


def test_start_block_leaves_attention_out_but_not_merging(models, image):
    model = models["hiera_tiny_224"]
    last = VITAttentionRollout(model, discard_ratio=0, start_block=11).explain(image).scores
    # every row of attention sums to 1, and the residual beside it is no part of the map
    assert last.sum() == pytest.approx(1 / 2, abs=1e-4)
    merged = last[0].reshape(7, 8, 7, 8)  # the last grid's places, of 8 x 8 patches each
    np.testing.assert_allclose(merged, np.broadcast_to(merged[:, :1, :, :1], merged.shape))
    with pytest.raises(RequestError, match="start_block must be from 0 to 11, not 12"):
        VITAttentionRollout(model, start_block=12)


def test_the_model_is_left_as_it_was(models, image):
    for model in models.values():
        before = {name: value.clone() for name, value in model.state_dict().items()}
        VITAttentionGradRollout(model.train()).explain(image, [1])
        assert model.training
        assert not any(m._forward_hooks for m in model.modules())
        model.eval()
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])


def test_other_methods_name_the_one_that_works(models):
    for name in ("relevance", "legrad", "attnlrp", "value_rollout"):
        with pytest.raises(UnsupportedModel, match=r"only both rollouts follow.*grad_rollout"):
            METHODS[name].make(models["pit_ti_224"])
    with pytest.raises(UnsupportedModel, match="only both rollouts follow"):
        VITAttentionRollout(models["levit_128s"], as_published=True)
    found = METHODS["gradcam"].make(models["hiera_tiny_224"])
    assert found(torch.randn(1, 3, 224, 224), 2).shape == (7, 7)


def test_what_is_not_timms_own_is_refused(models):
    class Own(nn.Identity):
        pass

    model = timm.create_model("levit_128s")
    model.stem.own = Own()
    with pytest.raises(UnsupportedModel, match="not timm's"):
        VITAttentionRollout(model)
