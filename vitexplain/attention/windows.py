"""Swin's windows: attention within windows, written into the token matrix of the whole grid.

Swin (Liu et al. 2021) and Swin V2 (Liu et al. 2022) let a token attend only to those of its
window, shift the windows in every other block, and from stage to stage merge 2x2 tokens into one.
Rollout multiplies matrices over all tokens, so each window's attention is put where its tokens are
in the grid, and merging becomes a matrix of its own: a merged token is the mean of its parts.

Shapes: a stage's grid h x w has N = h*w tokens in row-major order; windows of A tokens, W of them
in an image.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_KEPT = 64  # windows, which are the same for every batch
_KEPT: dict[tuple, "Windows"] = {}


@dataclass(frozen=True)
class Windows:
    """Where the windows of one block lie in its grid.

    Attributes:
        tokens: N.
        places: (W, A), the token at each place of each window; N where there is only padding.
        open: (W, A, A), True where a query of the window may attend to a key.
        paths: how many of the N*N entries of the matrix can be other than 0.
    """

    tokens: int
    places: Tensor
    open: Tensor
    paths: int

    def spread(self, fused: Tensor) -> Tensor:
        """(B*W, A, A), heads fused, -> (B, N, N); attention to and from padding is left out."""
        count, area = self.places.shape
        batch, n = len(fused) // count, self.tokens
        rows = self.places[:, :, None].expand(count, area, area)
        columns = self.places[:, None, :].expand(count, area, area)
        whole = fused.new_zeros(batch, (n + 1) ** 2)  # the last row and column take the padding
        index = (rows * (n + 1) + columns).flatten().expand(batch, -1)
        fused = fused.view(batch, count, area, area) * self.open
        whole.scatter_(1, index, fused.flatten(1))
        return whole.view(batch, n + 1, n + 1)[:, :n, :n]


def windows_of(block: nn.Module, height: int, width: int) -> Windows:
    """The windows that a Swin block makes of a height x width grid, on its device."""
    device = next(block.parameters()).device
    key = (
        *(getattr(type(block), "get_attn_mask", None), tuple(block.window_size)),
        *(tuple(block.shift_size), height, width, device),
    )
    windows = _KEPT.get(key)
    if windows is None:
        with torch.inference_mode(False):  # of use to later passes, with gradients or without
            windows = _made(block, height, width)
            places, is_open = windows.places.to(device), windows.open.to(device)
        windows = replace(windows, places=places, open=is_open)
        if len(_KEPT) >= MOST_KEPT:
            _KEPT.clear()
        _KEPT[key] = windows
    return windows


def _made(block: nn.Module, height: int, width: int) -> Windows:
    down, across = block.window_size
    tokens = height * width
    # every token's number, from 1 on, in the shifted and padded grid; 0 is padding
    numbers = torch.arange(1, tokens + 1).view(height, width)
    numbers = numbers.roll((-block.shift_size[0], -block.shift_size[1]), dims=(0, 1))
    numbers = F.pad(numbers, (0, -width % across, 0, -height % down))
    rows, columns = numbers.shape[0] // down, numbers.shape[1] // across
    # cut into windows: (rows, down, columns, across) -> (W, A)
    places = numbers.view(rows, down, columns, across).transpose(1, 2).reshape(-1, down * across)
    present = places > 0
    allowed = present[:, :, None] & present[:, None, :]
    if any(block.shift_size):
        # a mask keeps apart what the shift brought together from opposite edges
        mask = block.get_attn_mask(torch.zeros(1, *numbers.shape, 1)).cpu()  # (W, A, A)
        allowed &= mask == 0
    places = torch.where(present, places - 1, tokens)
    return Windows(tokens, places, allowed, int(allowed.sum()))


@lru_cache(maxsize=8)
def merging(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(N', N), float32: how 2x2 tokens of a height x width grid become one; rows sum to 1.

    An odd grid is padded at its right and lower edge, where fewer tokens make one.
    """
    with torch.inference_mode(False):
        return _merging(height, width).to(device)


def _merging(height: int, width: int) -> Tensor:
    tokens = height * width
    rows, columns = torch.arange(height) // 2, torch.arange(width) // 2
    merged = rows[:, None] * ((width + 1) // 2) + columns
    matrix = torch.zeros((height + 1) // 2 * ((width + 1) // 2), tokens)
    matrix[merged.flatten(), torch.arange(tokens)] = 1
    return matrix / matrix.sum(dim=1, keepdim=True)
