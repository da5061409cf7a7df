"""Attention on a grid that shrinks: PiT, LeViT, Hiera and Twins.

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
    Twins (Chu et al. 2021)    attention in squares, and of all patches to squares of them, each key
                               being the mean of its square; 2x2 patches are merged between stages,
                               and in each one a convolution of 3x3 adds positions, as in PiT

Other families mix neighbouring tokens outside of attention in every block, and are left out: MViTv2
pools queries, keys and values by convolutions of 3x3, PVTv2 has one in each MLP, and MaxViT one
before each pair of attentions. No product of attention matrices says what reaches what there.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from timm.models.hiera import Hiera
from timm.models.levit import Levit, LevitDistilled
from timm.models.pit import PoolingVisionTransformer
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn, Twins
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitexplain.attention.capture import forward, inference_state
from vitexplain.attention.families import UnsupportedModel, check_supported, timms_model
from vitexplain.attention.readout import has_own_code
from vitexplain.attention.tokens import TokenLayout, blocks_of, token_layout
from vitexplain.errors import RequestError

PYRAMIDS = (PoolingVisionTransformer, Levit, LevitDistilled, Hiera, Twins)
Fuse = Callable[[Tensor], Tensor]  # (B, H, N', N) -> (B, N', N)


@dataclass(frozen=True)
class Step:
    """What happens to the tokens in one attention, or between two.

    Attributes:
        residual: (N', N), its rows summing to 1: what the residual connection adds, or how tokens
            are merged; None without a residual connection.
        arrange: an attention as it was seen, and a function that fuses its heads -> (B, N', N);
            None where there is no attention.
        windows: how many there are; tokens attend to those in their own one.
    """

    residual: Tensor | None
    arrange: Callable[[Tensor, Fuse], Tensor] | None = None
    windows: int = 1


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
    if isinstance(found, Twins) and not _squares_fit(found):
        raise UnsupportedModel(
            found, "its squares go beyond the grid, and attend to padding", instead="gradcam"
        )
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
        height, width = images.shape[2:]
        if _grid_of(model, height, width) != _grid(model):
            raise RequestError(f"the model does not take {height}x{width} images")
        return pyramid_layout(model)
    return token_layout(model, *images.shape[2:])


def attentions_of(model: nn.Module) -> int:
    """How many attentions a pass has: what start_block counts."""
    if isinstance(model, Hiera):
        return len(model.blocks)
    if isinstance(model, Twins):
        return sum(map(len, model.blocks))
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
    """Every attention of a pass, as the model has it, and the logits.

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
    fuse: Fuse,
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
        if step.arrange is None:
            factors.append(PyramidFactor(None, residual))
            continue
        attention, number = attentions[number], number + 1
        if number <= start_block and residual is not None:
            factors.append(PyramidFactor(None, residual))
            continue
        matrix = step.arrange(attention, fuse)
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


def _whole(attention: Tensor, fuse: Fuse) -> Tensor:
    """Of all tokens: (B, H, N', N) -> (B, N', N)."""
    return fuse(attention)


def _in_units(attention: Tensor, fuse: Fuse) -> Tensor:
    """Hiera's: (B, H, W, n', n) -> (B, n'*W, n*W); unit w has the tokens w, W + w, 2 W + w, ..."""
    count = attention.shape[2]
    units = fuse(attention.movedim(2, 1).flatten(0, 1)).unflatten(0, (-1, count))  # (B, W, n', n)
    whole = units.new_zeros(len(units), units.shape[2], count, units.shape[3], count)
    each = torch.arange(count, device=units.device)
    whole[:, :, each, :, each] = units.transpose(0, 1)
    return whole.flatten(3, 4).flatten(1, 2)


def _in_squares(attention: Tensor, fuse: Fuse, places: Tensor) -> Tensor:
    """Twins' local one: (B, W, H, A, A) -> (B, N, N).

    Args:
        places: (W, A), the token at each place of each square.
    """
    count, area = places.shape
    squares = fuse(attention.flatten(0, 1)).unflatten(0, (-1, count))  # (B, W, A, A)
    whole = squares.new_zeros(len(squares), count * area, count * area)
    places = places.to(squares.device)
    whole[:, places[:, :, None], places[:, None, :]] = squares
    return whole


def _to_squares(attention: Tensor, fuse: Fuse, keys: Tensor) -> Tensor:
    """Twins' global one: (B, H, N, K) -> (B, N, N), keys (K, N) saying what each is made of."""
    return fuse(attention) @ keys.to(attention.device)


def _grid(model: nn.Module) -> tuple[int, int]:
    """(h, w) of the patches that the first attention reads."""
    if isinstance(model, PoolingVisionTransformer):
        return tuple(model.pos_embed.shape[2:])
    if isinstance(model, Hiera):
        return tuple(model.tokens_spatial_shape)
    if isinstance(model, Twins):
        return model.patch_embeds[0].H, model.patch_embeds[0].W
    side = round(model.stages[0].blocks[0].attn.attention_bias_idxs.shape[0] ** 0.5)
    return side, side


def _grid_of(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """The grid that the model would make of height x width images."""
    if isinstance(model, PoolingVisionTransformer):
        (side, _), (stride, _) = model.patch_embed.conv.kernel_size, model.patch_embed.conv.stride
        return (height - side) // stride + 1, (width - side) // stride + 1
    if isinstance(model, Levit):
        stride = model.stem.stride
        return -(-height // stride), -(-width // stride)
    stride = model.patch_stride if isinstance(model, Hiera) else model.patch_embeds[0].patch_size
    return height // stride[0], width // stride[1]


def _squares_fit(model: nn.Module) -> bool:
    sides = zip(model.patch_embeds, model.blocks, strict=True)
    return all(
        not isinstance(block.attn, LocallyGroupedAttn)
        or not (embed.H % block.attn.ws or embed.W % block.attn.ws)
        for embed, blocks in sides
        for block in blocks
    )


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
    if isinstance(model, Twins):
        return model.patch_embeds[-1].num_patches
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
    if isinstance(model, Twins):
        return _of_twins(model)
    return _of_pit(model) if isinstance(model, PoolingVisionTransformer) else _of_levit(model)


def _of_pit(model: nn.Module) -> Iterator[Step]:
    (height, width), prefix = _grid(model), _prefix(model)
    for stage in model.transformers:
        if stage.pool is not None:
            merged, (height, width) = _convolved(stage.pool.conv, height, width)
            yield Step(torch.block_diag(torch.eye(prefix), merged))
        tokens = torch.eye(prefix + height * width)
        yield from (Step(tokens, _whole) for _ in stage.blocks)


def _convolved(
    conv: nn.Conv2d, height: int, width: int, *, residual: bool = False
) -> tuple[Tensor, tuple[int, int]]:
    """(N', N): how much a depthwise convolution takes from each patch; the grid that it makes.

    Args:
        residual: what it makes is added to what it is given.
    """
    weight = conv.weight.detach().float().clone()  # (C, 1, k, k)
    if residual:
        weight[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] += 1
    sizes = weight.norm(dim=0)[None]
    each = torch.eye(height * width, device=sizes.device).view(-1, 1, height, width)
    found = F.conv2d(each, sizes, stride=conv.stride, padding=conv.padding)  # (N, 1, h', w')
    matrix = found.flatten(1).T.cpu()
    return matrix / matrix.sum(dim=1, keepdim=True), tuple(found.shape[2:])


def _of_levit(model: nn.Module) -> Iterator[Step]:
    for stage in model.stages:
        if not isinstance(stage.downsample, nn.Identity):
            yield Step(None, _whole)
        for block in stage.blocks:
            yield Step(torch.eye(block.attn.attention_bias_idxs.shape[0]), _whole)


def _of_hiera(model: nn.Module) -> Iterator[Step]:
    height, width = _grid(model)
    tokens = height * width
    for block in model.blocks:
        attn = block.attn
        after = tokens // attn.q_stride
        windows = tokens // (attn.q_stride * attn.window_size) if attn.use_mask_unit_attn else 1
        # token r is made of r, after + r, 2 after + r, ..., see timm's Unroll
        merged = torch.eye(after).repeat(1, attn.q_stride) / attn.q_stride
        # a unit is there also where it is the only one
        yield Step(merged, _in_units if attn.use_mask_unit_attn else _whole, windows)
        tokens = after


def _of_twins(model: nn.Module) -> Iterator[Step]:
    height, width = _grid(model)
    stages = zip(model.patch_embeds, model.blocks, model.pos_block, strict=True)
    for number, (embed, blocks, positions) in enumerate(stages):
        if number:
            yield Step(_squares(height, width, embed.patch_size[0]))
            height, width = height // embed.patch_size[0], width // embed.patch_size[1]
        tokens = torch.eye(height * width)
        for place, block in enumerate(blocks):
            yield _of_twins_block(block.attn, height, width, tokens)
            if place == 0:
                residual = positions.stride == 1
                yield Step(_convolved(positions.proj[0], height, width, residual=residual)[0])


def _of_twins_block(attn: nn.Module, height: int, width: int, tokens: Tensor) -> Step:
    if isinstance(attn, LocallyGroupedAttn):
        members = _squares(height, width, attn.ws) > 0  # (W, N)
        places = members.nonzero()[:, 1].view(len(members), -1)
        return Step(tokens, partial(_in_squares, places=places), len(places))
    if isinstance(attn, GlobalSubSampleAttn) and attn.sr is not None:
        keys = _squares(height, width, attn.sr_ratio)
        return Step(tokens, partial(_to_squares, keys=keys))
    return Step(tokens, _whole)


def _squares(height: int, width: int, side: int) -> Tensor:
    """(squares, N): the mean of each square of side x side patches."""
    each = torch.eye(height * width).view(-1, 1, height, width)
    return F.avg_pool2d(each, side).flatten(1).T


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
