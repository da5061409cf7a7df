"""The arithmetic of the script that papers of 2021 to 2025 used, to reproduce their maps.

It differs from attention rollout in several steps, and is kept here, apart from the rest, for
comparison only. For one image and a model with one prefix token:

- each entry [i, j] is divided by the sum of row j, where the paper divides it by that of row i;
- the weakest entries are dropped over all N*N, and of the class token only [0, 0] is spared
  (with gradients, nothing is);
- with gradients, block l's attention is weighted by block L+1-l's gradient, that gradient is the
  one with respect to the scores before the softmax, and heads are averaged before the clamp;
- the overlay adds heatmap and image and divides by the brightest value (drawing/overlay).

All matrices are of one image; block 1 comes first.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitexplain.attention.tokens import TokenLayout
from vitexplain.errors import RequestError
from vitexplain.methods.base import on_grid


def published_rollout(
    fused: Sequence[Tensor], discard_ratio: float, layout: TokenLayout
) -> np.ndarray:
    """The patches' scores (1, h, w), from the fused attention (1, N, N) of each block."""
    _check(fused[0], layout)
    kept = [_discard(matrix, discard_ratio, spare_first=True) for matrix in fused]
    return _product(kept, layout)


def published_grad_rollout(
    attentions: Sequence[Tensor],
    gradients: Sequence[Tensor],
    discard_ratio: float,
    layout: TokenLayout,
) -> np.ndarray:
    """The patches' scores (1, h, w), from each block's attention and gradient (1, H, N, N)."""
    _check(attentions[0], layout)
    before_softmax = [
        attention * (gradient - (attention * gradient).sum(dim=-1, keepdim=True))
        for attention, gradient in zip(attentions, gradients, strict=True)
    ]
    fused = [
        (attention * gradient).mean(dim=1).clamp(min=0)
        for attention, gradient in zip(attentions, reversed(before_softmax), strict=True)
    ]
    kept = [_discard(matrix, discard_ratio, spare_first=False) for matrix in fused]
    return _product(kept, layout)


def _check(matrix: Tensor, layout: TokenLayout) -> None:
    """Raise RequestError unless it is one image, of a model with a class token alone."""
    if layout.prefix_tokens != 1 or layout.readout_rows != (0,):
        raise RequestError(
            "as_published needs a model with a class token and no other prefix token"
        )
    if len(matrix) != 1:
        raise RequestError(f"as_published explains one image at a time, not {len(matrix)}")


def _discard(fused: Tensor, discard_ratio: float, *, spare_first: bool) -> Tensor:
    """(1, N, N) -> (N, N), the lowest entries 0."""
    flat = fused.flatten().clone()
    weakest = flat.topk(int(flat.numel() * discard_ratio), largest=False).indices
    flat[weakest[weakest != 0] if spare_first else weakest] = 0
    return flat.view(fused.shape[1:])


def _product(matrices: Sequence[Tensor], layout: TokenLayout) -> np.ndarray:
    """(1, h, w): row 0 of the product without column 0."""
    identity = torch.eye(len(matrices[0])).to(matrices[0])
    result = identity
    for matrix in matrices:
        a = (matrix + identity) / 2
        result = (a / a.sum(dim=-1)) @ result
    return on_grid(result[:1, 1:], layout.grid)
