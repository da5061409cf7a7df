"""The arithmetic of the script that papers of 2021 to 2025 used, so that their maps can be redone.

It differs from attention rollout in several steps, and is kept here, apart from the rest, for
comparison only. For one image and a model with one prefix token:

- each entry [i, j] is divided by the sum of row j, where the paper divides it by that of row i;
- the weakest entries are dropped over all N*N, and of the class token only [0, 0] is spared
  (with gradients, nothing is);
- with gradients, block l's attention is weighed with block L+1-l's gradient, that gradient is the
  one with respect to the scores before the softmax, and heads are averaged before the clamp;
- the overlay adds heatmap and image and divides by the brightest value.

All matrices are of one image; block 1 comes first.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitexplain.errors import RequestError


def published_rollout(fused: Sequence[Tensor], discard_ratio: float, layout) -> np.ndarray:
    """(1, h, w) mask from the fused attention (1, N, N) of each block."""
    _check(fused[0], layout)
    return _mask([_discard(matrix, discard_ratio, spare_first=True) for matrix in fused], layout)


def published_grad_rollout(
    attentions: Sequence[Tensor], gradients: Sequence[Tensor], discard_ratio: float, layout
) -> np.ndarray:
    """(1, h, w) mask from attention and its gradient, (1, H, N, N) each, of each block."""
    _check(attentions[0], layout)
    before_softmax = [
        attention * (gradient - (attention * gradient).sum(dim=-1, keepdim=True))
        for attention, gradient in zip(attentions, gradients, strict=True)
    ]
    fused = [
        (attention * gradient).mean(dim=1).clamp(min=0)
        for attention, gradient in zip(attentions, reversed(before_softmax), strict=True)
    ]
    return _mask([_discard(matrix, discard_ratio, spare_first=False) for matrix in fused], layout)


def _check(matrix: Tensor, layout) -> None:
    if layout.prefix_tokens != 1 or layout.readout_rows != (0,):
        raise RequestError(
            "as_published needs a model with a class token and no other prefix token"
        )
    if len(matrix) != 1:
        raise RequestError(f"as_published explains one image at a time, not {len(matrix)}")


def _discard(fused: Tensor, discard_ratio: float, *, spare_first: bool) -> Tensor:
    flat = fused.flatten().clone()
    weakest = flat.topk(int(flat.numel() * discard_ratio), largest=False).indices
    flat[weakest[weakest != 0] if spare_first else weakest] = 0
    return flat.view(fused.shape[1:])


def _mask(matrices: Sequence[Tensor], layout) -> np.ndarray:
    identity = torch.eye(len(matrices[0]), device=matrices[0].device)
    result = identity
    for matrix in matrices:
        a = (matrix + identity) / 2
        result = (a / a.sum(dim=-1)) @ result
    mask = result[0, 1:].reshape(1, *layout.grid).cpu().numpy()
    return mask / max(mask.max(), np.finfo(np.float32).tiny)
