"""Attention over all patches on a grid that shrinks: PiT, LeViT and Hiera.

Rollout means there what it means in Swin. A block's matrix says how much each of its N' output
tokens takes from each of its N input tokens; where a block also shrinks the grid, N' < N, and what
stands for the residual connection is how tokens are merged: a merged token is the mean of its
parts. So the product over all blocks goes from the last tokens back to the patches.

    PiT (Heo et al. 2021)      blocks of a ViT; between its stages a depthwise convolution of stride
                               2 merges 3x3 patches, each counting by the size of its weights
    LeViT (Graham et al. 2021) between its stages an attention whose queries are every other patch;
                               it has no residual connection
    Hiera (Ryali et al. 2023)  attention in units of the mask, in later stages of all patches; some
                               blocks take the largest of 4 queries, and the largest of 4 tokens

Other families mix neighbouring tokens outside of attention in every block, and are left out:
MViTv2 pools queries, keys and values by convolutions, PVTv2 has one in each MLP, Twins one in each
stage and MaxViT three in each block. No product of attention matrices says what reaches what there.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from timm.models.hiera import Hiera
from timm.models.levit import Levit, LevitDistilled
from timm.models.pit import PoolingVisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitexplain.attention.capture import forward, inference_state
from vitexplain.attention.families import UnsupportedModel, check_supported, timms_model
from vitexplain.attention.readout import has_own_code
from vitexplain.attention.tokens import TokenLayout, blocks_of, token_layout

PYRAMIDS = (PoolingVisionTransformer, Levit, LevitDistilled, Hiera)


@dataclass(frozen=True)
class Step:
    """What happens to the tokens in one attention, or between two.

    Attributes:
        residual: (N', N), its rows summing to 1: what the residual connection adds, or how tokens
            are merged; None without a residual connection.
        windows: an attention is (B, H, windows, ...) if there are several, each of them having
            every windows-th token.
        attends: whether there is an attention.
    """

    residual: Tensor | None
    windows: int = 1
    attends: bool = True


@dataclass(frozen=True)
class PyramidFactor:
    """One factor of the rollout's product.

    Attributes:
        matrix: (B, N', N), an attention with its heads fused; None where tokens are only merged.
        residual: as in Step.
        paths: how many entries of the matrix can be other than 0.
    """

    matrix: Tensor | None
    residual: Tensor | None
    paths: int = 0


def check_rollable(model: nn.Module, *, as_published: bool = False) -> nn.Module:
    """The model that `model` is, or holds, if rollout explains it: a ViT, or one of PYRAMIDS.

    Args:
        as_published: by the arithmetic of the older script, which knows one grid.

    Raises:
        UnsupportedModel: if it does not.
    """
    try:
        found = timms_model(model)
    except UnsupportedModel:
        return check_supported(model)  # which says why
    if as_published or not isinstance(found, PYRAMIDS):
        return check_supported(model)
    if has_own_code(found):
        raise UnsupportedModel(found, "it has code that is not timm's", instead="gradcam")
    pooling = _pooling(found)
    if pooling != ("token" if isinstance(found, PoolingVisionTransformer) else "avg"):
        raise UnsupportedModel(
            found, f"its pooling ({pooling or 'none'}) reads no token", instead="gradcam"
        )
    return found


def count_blocks(model: nn.Module) -> int:
    """How many blocks, or attentions, rollout multiplies."""
    return attentions_of(model) if isinstance(model, PYRAMIDS) else len(blocks_of(model))


def rollout_layout(model: nn.Module, images: Tensor) -> TokenLayout:
    """The tokens of these images, of any model that rollout explains."""
    if isinstance(model, PYRAMIDS):
        return pyramid_layout(model)
    return token_layout(model, *images.shape[2:])


def attentions_of(model: nn.Module) -> int:
    """How many attentions a pass has: what start_block counts."""
    if isinstance(model, Hiera):
        return len(model.blocks)
    stages = model.transformers if isinstance(model, PoolingVisionTransformer) else model.stages
    shrinking = [getattr(stage, "downsample", nn.Identity()) for stage in stages]
    return sum(len(stage.blocks) for stage in stages) + sum(
        not isinstance(each, nn.Identity) for each in shrinking
    )


def pyramid_layout(model: nn.Module) -> TokenLayout:
    """The patches of a pyramid, and its last tokens, which the classifier reads."""
    grid, prefix = _grid(model), _prefix(model)
    last = _last_tokens(model)
    if isinstance(model, PoolingVisionTransformer):
        readout = "class token" if prefix == 1 else "mean of the class and distillation tokens"
        return TokenLayout(prefix, grid, tuple(range(prefix)), readout, last_tokens=last)
    readout = f"mean over {last} patches, merged from {grid[0] * grid[1]}"
    return TokenLayout(0, grid, tuple(range(last)), readout, last_tokens=last)


def pyramid_attention(
    model: nn.Module, images: Tensor, *, track_gradient: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Every attention of a pass, (B, H, N', N) or (B, H, windows, N'/windows, N/windows); logits.

    Args:
        track_gradient: make them differentiable, autograd beginning at the first one.

    Raises:
        UnsupportedModel: if they are not as many as the model has blocks of them.
    """
    seen: list[Tensor] = []
    with ExitStack() as undo:
        undo.enter_context(inference_state(model, freeze=True))
        undo.enter_context(_Softmax(seen, track_gradient=track_gradient))
        logits = forward(model, images)
    if len(seen) != attentions_of(model):
        raise UnsupportedModel(model, f"{len(seen)} attentions were seen, not one for each block")
    return seen, logits


def pyramid_factors(
    model: nn.Module,
    attentions: list[Tensor],
    fuse: Callable[[Tensor], Tensor],
    start_block: int = 0,
) -> list[PyramidFactor]:
    """The rollout's factors, the first one first.

    Args:
        attentions: as pyramid_attention gives them; used up.
        fuse: (B, H, N', N) -> (B, N', N).
        start_block: attentions before it are left out, but not the merging of tokens.
    """
    factors, number = [], 0
    for step in _steps(model):
        residual = None if step.residual is None else step.residual.to(attentions[0].device)
        if not step.attends:
            factors.append(PyramidFactor(None, residual))
            continue
        attention, number = attentions[number], number + 1
        if number <= start_block and residual is not None:
            factors.append(PyramidFactor(None, residual))
            continue
        if step.windows == 1:
            matrix = fuse(attention)
            factors.append(PyramidFactor(matrix, residual, matrix[0].numel()))
        else:
            windows = fuse(attention.movedim(2, 1).flatten(0, 1))  # (B*W, n', n)
            matrix = _spread(windows.unflatten(0, (-1, step.windows)))
            factors.append(PyramidFactor(matrix, residual, matrix[0].numel() // step.windows))
    return factors


def in_rows(model: nn.Module, patches: Tensor) -> Tensor:
    """(B, h*w) of patches as the model orders them -> row by row."""
    if not isinstance(model, Hiera):
        return patches
    height, width = _grid(model)
    numbers = torch.arange(height * width, device=patches.device)
    order = model.unroll(numbers.view(1, -1, 1))[0, :, 0]
    rows = torch.empty_like(patches)
    rows[:, order] = patches
    return rows


def _spread(windows: Tensor) -> Tensor:
    """(B, W, n', n) -> (B, n'*W, n*W): window w has the tokens w, W + w, 2 W + w, ..."""
    batch, count, queries, keys = windows.shape
    whole = windows.new_zeros(batch, queries, count, keys, count)
    each = torch.arange(count, device=windows.device)
    whole[:, :, each, :, each] = windows.transpose(0, 1)
    return whole.reshape(batch, queries * count, keys * count)


def _grid(model: nn.Module) -> tuple[int, int]:
    """(h, w) of the patches that the first attention reads."""
    if isinstance(model, PoolingVisionTransformer):
        return tuple(model.pos_embed.shape[2:])
    if isinstance(model, Hiera):
        return tuple(model.tokens_spatial_shape)
    side = round(model.stages[0].blocks[0].attn.attention_bias_idxs.shape[0] ** 0.5)
    return side, side


def _pooling(model: nn.Module) -> str:
    """How the head pools the last tokens: "token", "avg", ..."""
    if isinstance(model, Hiera):  # its head has the norm after the pool
        return getattr(model.head, "pool_type", "")
    return str(model.global_pool or "")


def _prefix(model: nn.Module) -> int:
    return model.cls_token.shape[1] if isinstance(model, PoolingVisionTransformer) else 0


def _last_tokens(model: nn.Module) -> int:
    height, width = _grid(model)
    if isinstance(model, Hiera):
        return height * width // math.prod(block.attn.q_stride for block in model.blocks)
    if not isinstance(model, PoolingVisionTransformer):
        return model.stages[-1].blocks[-1].attn.attention_bias_idxs.shape[0]
    for stage in model.transformers[1:]:
        (stride, _), (side, _) = stage.pool.conv.stride, stage.pool.conv.kernel_size
        padding = stage.pool.conv.padding[0]
        height, width = ((n + 2 * padding - side) // stride + 1 for n in (height, width))
    return _prefix(model) + height * width


def _steps(model: nn.Module) -> Iterator[Step]:
    if isinstance(model, Hiera):
        return _of_hiera(model)
    return _of_pit(model) if isinstance(model, PoolingVisionTransformer) else _of_levit(model)


def _of_pit(model: nn.Module) -> Iterator[Step]:
    (height, width), prefix = _grid(model), _prefix(model)
    for stage in model.transformers:
        if stage.pool is not None:
            merged, (height, width) = _convolved(stage.pool.conv, height, width)
            yield Step(torch.block_diag(torch.eye(prefix), merged), attends=False)
        tokens = torch.eye(prefix + height * width)
        yield from (Step(tokens) for _ in stage.blocks)


def _convolved(conv: nn.Conv2d, height: int, width: int) -> tuple[Tensor, tuple[int, int]]:
    """(N', N): how much a depthwise convolution takes from each patch; the grid that it makes."""
    sizes = conv.weight.detach().float().norm(dim=0)[None]  # (1, 1, k, k), over the channels
    each = torch.eye(height * width, device=sizes.device).view(-1, 1, height, width)
    found = F.conv2d(each, sizes, stride=conv.stride, padding=conv.padding)  # (N, 1, h', w')
    matrix = found.flatten(1).T.cpu()
    return matrix / matrix.sum(dim=1, keepdim=True), tuple(found.shape[2:])


def _of_levit(model: nn.Module) -> Iterator[Step]:
    for stage in model.stages:
        if not isinstance(stage.downsample, nn.Identity):
            yield Step(None)
        for block in stage.blocks:
            yield Step(torch.eye(block.attn.attention_bias_idxs.shape[0]))


def _of_hiera(model: nn.Module) -> Iterator[Step]:
    height, width = _grid(model)
    tokens = height * width
    for block in model.blocks:
        attn = block.attn
        after = tokens // attn.q_stride
        windows = tokens // (attn.q_stride * attn.window_size) if attn.use_mask_unit_attn else 1
        # token r is made of r, after + r, 2 after + r, ..., see timm's Unroll
        yield Step(torch.eye(after).repeat(1, attn.q_stride) / attn.q_stride, windows)
        tokens = after


class _Softmax(TorchFunctionMode):
    """Keeps what every softmax gives: in these models that is attention."""

    def __init__(self, seen: list[Tensor], *, track_gradient: bool):
        super().__init__()
        self.seen, self.track_gradient = seen, track_gradient

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is not torch.Tensor.softmax:
            return found
        if self.track_gradient and not found.requires_grad:
            found = found.detach().requires_grad_()
        self.seen.append(found)
        return found
