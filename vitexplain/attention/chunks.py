"""Attention in pieces that stay in the processor's cache, and its heads fused piece by piece.

B images, H heads, n queries, N keys. The matrix (B, H, n, N) of a block is never made as a whole:
at 1370 tokens and 6 heads it would take 45 MB for each image, and several times that with what is
made of it.
"""

from collections.abc import Iterator
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from vitexplain.device import total_memory

# Bytes of attention worked on at once, few enough to stay in the cache from the scores to the last
# product. Gradient rollout of DINOv2-S at 518 pixels, on two cores with 32 MB of shared cache, is
# equally fast from 1 to 16 MB, takes a fifth longer with 64 MB and half as long again with 256 KB,
# because of its many small calls.
CHUNK = 4 * 2**20
# The same on a GPU, where each piece costs half a dozen launches of some microseconds, and no cache
# holds what is worked on: this share of the memory, or so many bytes where it isn't known.
GPU_SHARE = 16
GPU_CHUNK = 512 * 2**20

Part = tuple[slice, slice, slice]  # some of the images, of their heads, of the query rows


def rows_at_once(row_bytes: int, device: torch.device) -> int:
    """How many rows of attention, each of `row_bytes`, make a piece; at least one."""
    return max(1, _piece_bytes(device) // row_bytes)


def _piece_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return CHUNK
    return (total_memory(device) or GPU_CHUNK * GPU_SHARE) // GPU_SHARE


def parts(query: Tensor, keys: int) -> Iterator[Part]:
    """The pieces of the attention of query (B, H, n, d) to `keys` tokens.

    A piece holds several heads, or some of the rows of one head. On a CPU it holds as many images
    as there are threads: each thread then works on an image of its own, in its own cache. On a GPU
    it holds as many as fit with a whole head.
    """
    batch, heads, queries, _ = query.shape
    row_bytes = keys * query.element_size()
    if query.device.type == "cpu":
        images = min(torch.get_num_threads(), batch)
    else:
        images = min(batch, max(1, rows_at_once(row_bytes, query.device) // queries))
    rows = rows_at_once(images * row_bytes, query.device)
    step = max(1, rows // queries)
    starts = product(range(0, batch, images), range(0, heads, step), range(0, queries, rows))
    for image, head, row in starts:
        yield slice(image, image + images), slice(head, head + step), slice(row, row + rows)


def softmax_of(query: Tensor, key: Tensor, bias: Tensor | None, scale: float, part: Part) -> Tensor:
    """softmax(scale Q K^T + bias), (b, h, n, N), of one piece.

    Args:
        bias: (B or 1, H or 1, n, N), added to the scores.
    """
    images, heads, rows = part
    queries, keys = query[part].flatten(0, 1), key[images, heads].flatten(0, 1)
    scores = torch.baddbmm(
        queries.new_empty(1, 1, 1), queries, keys.transpose(1, 2), beta=0, alpha=scale
    )
    scores = scores.view(*query[part].shape[:3], keys.shape[1])
    if bias is not None:
        bias = bias[images] if bias.shape[0] > 1 else bias
        scores += (bias[:, heads] if bias.shape[1] > 1 else bias)[:, :, rows]
    return scores.softmax(dim=-1)


class FusedHeads:
    """Fuses heads that come in pieces, the first head's before the others'."""

    OF_SEVERAL: ClassVar = {"mean": torch.sum, "max": torch.amax, "min": torch.amin}
    OF_TWO: ClassVar = {"mean": torch.add, "max": torch.maximum, "min": torch.minimum}

    def __init__(self, head_fusion: str, query: Tensor, keys: int, into: Tensor | None = None):
        """Fuses into `into`, (B, n, N) float32; None for new memory."""
        batch, self.count, queries, _ = query.shape
        self.head_fusion = head_fusion
        if into is None:
            into = query.new_empty(batch, queries, keys, dtype=torch.float32)
        self.fused = into

    def add(self, values: Tensor, part: Part) -> None:
        """Take in one piece, values (b, h, n, N)."""
        images, heads, rows = part
        into = self.fused[images, rows]
        fuse = self.OF_SEVERAL[self.head_fusion]
        values = values.float()
        if heads.start == 0:
            fuse(values, dim=1, out=into)
        else:
            values = fuse(values, dim=1) if values.shape[1] > 1 else values[:, 0]
            self.OF_TWO[self.head_fusion](into, values, out=into)

    def result(self) -> Tensor:
        """(B, n, N) float32, once all pieces are in."""
        return self.fused.div_(self.count) if self.head_fusion == "mean" else self.fused
