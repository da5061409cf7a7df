"""What one token attends to, and which patches are like it.

For a token t of N, after the pass over one image:

- its attention in each block: row t of A_l, of one head or all (Vaswani et al. 2017, equation 1);
- its rollout: row t of A~_L ... A~_1 (Abnar & Zuidema 2020, section 3), which patches have reached
  it through all blocks;
- the cosine of its final features, after the last norm, with those of every patch (as in Siméoni et
  al. 2025, "DINOv3").

In Swin, a patch is a token of the first grid; in later ones it is the merged token that it became
part of. Its attention there is within the window that this token is in.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitexplain.attention.capture import CapturedAttention, capture_attention, forward
from vitexplain.attention.checks import (
    check_block,
    check_one_image,
    check_rollout_options,
    images_for,
)
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import (
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    check_supported,
    prefix_names,
    token_layout,
)
from vitexplain.attention.windows import windows_of
from vitexplain.errors import RequestError
from vitexplain.images.region import Region
from vitexplain.methods.base import on_grid
from vitexplain.methods.product import discard, fuse_heads, of_head, propagate


@dataclass(frozen=True)
class TokenMaps:
    """The maps, float32, of one token: (h, w) on the patch grid, in Swin on each block's own grid.

    Attributes:
        token: its number among all N.
        patch: its row and column on the patch grid; None of a prefix token.
        attention: its row of one block, at the patches; >= 0, the sum at most 1.
        blocks: the same of each block.
        rollout: its row of the rollout, likewise.
        cosine: of its final features with each patch's, -1 to 1.
    """

    token: int
    patch: tuple[int, int] | None
    attention: np.ndarray
    blocks: tuple[np.ndarray, ...]
    rollout: np.ndarray
    cosine: np.ndarray


def token_maps(
    model: nn.Module,
    tensor: Tensor,
    tokens: Sequence[int],
    *,
    block: int = -1,
    head: int | None = None,
    head_fusion: str = "mean",
    discard_ratio: float = 0.9,
    start_block: int = 0,
) -> list[TokenMaps]:
    """The maps of some tokens of one image (1, 3, H, W), from one forward pass.

    Args:
        model: a timm ViT; left as it was found.
        block, head: of the attention; negative blocks count from the last, None fuses all heads.
        head_fusion, discard_ratio, start_block: of the rollout, see vit_rollout.

    Raises:
        UnsupportedModel: if its attention can't be captured.
        RequestError: if an argument is out of range.
    """
    model = check_supported(model)
    blocks = len(blocks_of(model))
    check_rollout_options(discard_ratio, head_fusion, start_block, False, blocks)
    check_block(block, blocks)
    images = images_for(model, tensor)
    check_one_image(images)
    layout = token_layout(model, *images.shape[2:])
    for token in tokens:
        if not 0 <= token < layout.tokens:
            raise RequestError(f"token must be from 0 to {layout.tokens - 1}, not {token}")
    with torch.inference_mode():
        captured, of_heads, features = _one_pass(model, images, layout, head, head_fusion)
        found = []
        for token in tokens:
            patch = _patch_of(token, layout)
            rows = tuple(_rows(captured, of_heads, token, patch))
            rollout = _rollout(captured, discard_ratio, start_block, token, patch)
            cosine = _cosines(features, token, patch, layout)
            found.append(TokenMaps(token, patch, rows[block], rows, rollout, cosine))
        return found


def token_named(
    name: str, model: nn.Module, layout: TokenLayout, region: Region
) -> tuple[int, Region | None]:
    """A token of "X,Y" (pixels of the image), "class" or "register:1", and its patch in pixels.

    Raises:
        RequestError: if there is none of that name.
    """
    prefixes = {each.replace(" ", ":"): n for n, each in enumerate(prefix_names(model, layout))}
    if name in prefixes:
        return prefixes[name], None
    try:
        x, y = map(float, name.split(","))
    except ValueError:
        others = f", or {' or '.join(prefixes)}" if prefixes else ""
        raise RequestError(f"--query takes X,Y in pixels{others}, not {name!r}") from None
    token = token_at(x, y, layout, region)
    row, column = _patch_of(token, layout)
    down, across = region.height / layout.grid[0], region.width / layout.grid[1]
    left, top = region.left + column * across, region.top + row * down
    return token, Region(left, top, left + across, top + down)


def token_at(x: float, y: float, layout: TokenLayout, region: Region) -> int:
    """The token of the patch at a pixel of the image.

    Args:
        region: the part of the image that the patches cover, in its pixels.

    Raises:
        RequestError: if the model did not see that pixel.
    """
    rows, columns = layout.grid
    if not (math.isfinite(x) and math.isfinite(y)):
        raise RequestError(f"a pixel is two numbers, not {x},{y}")
    column = math.floor((x - region.left) / region.width * columns)
    row = math.floor((y - region.top) / region.height * rows)
    if not (0 <= row < rows and 0 <= column < columns):
        raise RequestError(
            f"the model did not see pixel {x:g},{y:g}: its patches are from "
            f"{region.left:.0f},{region.top:.0f} to {region.right:.0f},{region.bottom:.0f}"
        )
    return layout.prefix_tokens + row * columns + column


def _patch_of(token: int, layout: TokenLayout) -> tuple[int, int] | None:
    if token < layout.prefix_tokens:
        return None
    return divmod(token - layout.prefix_tokens, layout.grid[1])


def _one_pass(
    model: nn.Module, images: Tensor, layout: TokenLayout, head: int | None, head_fusion: str
) -> tuple[CapturedAttention, list[Tensor], Tensor]:
    """The attention with its heads fused; of each block that of one head; the features (N, C).

    Attention is (1, N, N), in Swin of windows, (W, A, A).
    """
    shadow = shadow_of(model)
    of_heads: list[Tensor] = []
    last: list[Tensor] = []

    def reduce(attention: Tensor) -> Tensor:
        of_heads.append(of_head(attention, head, head_fusion))
        return fuse_heads(attention, head_fusion)

    blocks_of(shadow)[-1].register_forward_hook(lambda _b, _i, tokens: last.append(tokens))
    with capture_attention(shadow, layout, reduce=reduce) as captured:
        forward(shadow, images)
    if len(of_heads) != len(blocks_of(shadow)):
        raise UnsupportedModel(model, "its blocks have several branches of attention")
    norm = shadow.norm if not isinstance(shadow.norm, nn.Identity) else shadow.fc_norm
    features = norm(last[0])[0].float()
    return captured, of_heads, features.flatten(0, -2)


def _rows(
    captured: CapturedAttention,
    of_heads: Sequence[Tensor],
    token: int,
    patch: tuple[int, int] | None,
) -> Iterator[np.ndarray]:
    """What a token attends to in each block, (h, w)."""
    if not captured.grids:
        yield from (_at_patches(each[:, token], captured.layout) for each in of_heads)
        return
    blocks = zip(blocks_of(captured.model), captured.grids, of_heads, strict=True)
    for block, grid, attention in blocks:
        whole = windows_of(block, *grid).spread(attention)  # (1, N, N)
        yield on_grid(whole[:, _merged(patch, captured.grids, grid)], grid)[0]


def _merged(patch: tuple[int, int], grids: Sequence[tuple[int, int]], grid: tuple[int, int]) -> int:
    """The token of a later grid that a patch of the first one has become part of."""
    halved = list(dict.fromkeys(grids)).index(grid)
    return (patch[0] >> halved) * grid[1] + (patch[1] >> halved)


def _rollout(
    captured: CapturedAttention,
    discard_ratio: float,
    start_block: int,
    token: int,
    patch: tuple[int, int] | None,
) -> np.ndarray:
    # what is discarded goes in place, and each token needs the whole
    attention = captured.factors(
        [matrix.clone() for matrix in captured.summed()], start_block=start_block
    )
    if captured.grids:
        token = _merged(patch, captured.grids, captured.grids[-1])
    last = attention.factors[-1].matrix
    start = F.one_hot(torch.tensor([token]), last.shape[-2]).to(last)
    kept = discard(attention.factors, discard_ratio, captured.layout.prefix_tokens)
    return _at_patches(propagate(kept, start), captured.layout)


def _cosines(
    features: Tensor, token: int, patch: tuple[int, int] | None, layout: TokenLayout
) -> np.ndarray:
    directions = F.normalize(features, dim=1)
    if not layout.last_tokens:
        return _at_patches((directions @ directions[token])[None], layout)
    grids = [layout.grid]  # each stage merges 2x2 tokens
    while grids[-1][0] * grids[-1][1] != layout.last_tokens:
        height, width = grids[-1]
        grids.append(((height + 1) // 2, (width + 1) // 2))
    token = _merged(patch, grids, grids[-1])
    return on_grid((directions @ directions[token])[None], grids[-1])[0]


def _at_patches(row: Tensor, layout: TokenLayout) -> np.ndarray:
    """(1, N) -> (h, w)."""
    return on_grid(row[:, layout.prefix_tokens :], layout.grid)[0]
