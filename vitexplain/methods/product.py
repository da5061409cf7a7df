"""The product of rollout: what reaches the tokens that the classifier pools, through all blocks.

With A_l a block's attention (B, N, N), heads fused, block 1 first, and r (B, N) how much the
classifier reads each token,

    attention rollout   r A~_L ... A~_1,  A~_l = rownorm(A_l + I)      Abnar & Zuidema 2020, eq. 1
    relevance           r (I + A_L) ... (I + A_1)                      Chefer et al. 2021, eq. 6

at the patches' columns. Only that row is computed, from the last block to the first: O(L N^2), in
place of O(L N^3) for whole matrices.

A patch that the classifier reads has a share in this row for being itself, which no attention has
brought there: r_j at its own column by residual connections alone. A map is without it, as Chefer
et al. explain R - I: it would be the same for every patch of a mean, and most of the map. What an
attention pool reads is attention, and stays.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitexplain.attention.capture import AttentionFactors, Factor
from vitexplain.attention.pyramid import PyramidFactor
from vitexplain.attention.tokens import TokenLayout
from vitexplain.errors import RequestError
from vitexplain.methods.base import largest_is_one, on_grid

# Every 43rd entry makes the sample of `select`. 43 is prime, so that the stride does not hit the
# same columns in every row of a matrix.
SAMPLED = 43


def fuse_heads(attention: Tensor, head_fusion: str) -> Tensor:
    """(B, H, N, N) -> (B, N, N) in float32, by the heads' mean, maximum or minimum."""
    attention = attention.float()
    if head_fusion == "mean":
        return attention.mean(dim=1)
    return attention.amax(dim=1) if head_fusion == "max" else attention.amin(dim=1)


def of_head(attention: Tensor, head: int | None, head_fusion: str) -> Tensor:
    """(B, H, N, N) -> (B, N, N) in float32: one head's, or all of them fused if it is None.

    Raises:
        RequestError: if there is no such head.
    """
    if head is None:
        return fuse_heads(attention, head_fusion)
    if head not in range(attention.shape[1]):
        raise RequestError(f"head must be from 0 to {attention.shape[1] - 1}, not {head}")
    return attention[:, head].float()


def rollout_scores(
    attention: AttentionFactors, layout: TokenLayout, discard_ratio: float
) -> np.ndarray:
    """The patches' shares (B, h, w) of what the classifier reads, by attention rollout.

    The factors are used up: their weakest entries are set to 0 in place.
    """
    kept = discard(attention.factors, discard_ratio, layout.prefix_tokens)
    stayed, moved = paths(kept, _readout(attention, layout))
    row = moved if attention.pool is None else stayed + moved
    return on_grid(row[:, layout.prefix_tokens :], layout.grid)


def pyramid_scores(
    factors: Sequence[PyramidFactor], layout: TokenLayout, discard_ratio: float
) -> Tensor:
    """The patches' shares (B, h*w), in the model's order, on a grid that shrinks.

    A~_l = rownorm(F_l + M_l), M_l saying how tokens are merged where they are; without a residual
    connection, M_l is 0. See vitexplain.attention.pyramid.

    Args:
        factors: used up, their weakest entries are set to 0 in place.
    """
    last = next(factor.matrix for factor in reversed(factors) if factor.matrix is not None)
    stayed = layout.readout_weights(last)[:, None]  # (B, 1, N)
    moved = torch.zeros_like(stayed)
    for factor in reversed(factors):
        if factor.matrix is None:
            stayed, moved = stayed @ factor.residual, moved @ factor.residual
            continue
        kept = discard_weakest_(factor.matrix, discard_ratio, layout.prefix_tokens, factor.paths)
        sums = kept.sum(dim=-1)[:, None] + (factor.residual is not None)
        sums = torch.where(sums > 0, sums, 1)
        stayed, moved = stayed / sums, moved / sums
        attended = (stayed + moved) @ kept
        if factor.residual is None:
            stayed, moved = torch.zeros_like(attended), attended
        else:
            stayed, moved = stayed @ factor.residual, moved @ factor.residual + attended
    return moved[:, 0, layout.prefix_tokens :]


def relevance_scores(attention: AttentionFactors, layout: TokenLayout) -> np.ndarray:
    """The patches' relevance (B, h, w): R <- R + A_l R, R = I at first, block 1 first; less I."""
    stayed = _readout(attention, layout)[:, None]  # (B, 1, N)
    moved = torch.zeros_like(stayed)
    for factor in reversed(attention.factors):
        if factor.matrix.ndim == 2:
            # merged tokens are what they were made of; blocks have a residual connection
            stayed, moved = stayed @ factor.matrix, moved @ factor.matrix
        else:
            moved = moved + (stayed + moved) @ factor.matrix
    row = moved if attention.pool is None else stayed + moved
    return on_grid(row[:, 0, layout.prefix_tokens :], layout.grid)


def masks_of_matrices(
    fused: Sequence[Tensor],
    layout: TokenLayout,
    discard_ratio: float,
    readout: Tensor | None,
    start_block: int,
) -> np.ndarray:
    """Attention rollout's maps (B, h, w) from each block's matrix (B, N, N), heads fused."""
    factors, prefix = [Factor(matrix) for matrix in fused[start_block:]], layout.prefix_tokens
    readout = layout.readout_weights(fused[-1]) if readout is None else readout
    _, moved = paths(discard(factors, discard_ratio, prefix), readout)
    return largest_is_one(on_grid(moved[:, prefix:], layout.grid))


def discard(factors: Sequence[Factor], discard_ratio: float, prefix_tokens: int) -> list[Tensor]:
    """The factors' matrices, the weakest entries of each block's set to 0, in place."""
    kept = []
    for factor in factors:
        matrix = factor.matrix
        if matrix.ndim == 3:  # (N', N) says how tokens are merged: nothing is discarded there
            matrix = discard_weakest_(matrix, discard_ratio, prefix_tokens, factor.paths)
        kept.append(matrix)
    return kept


def discard_weakest_(
    fused: Tensor, discard_ratio: float, prefix_tokens: int, paths: int | None = None
) -> Tensor:
    """Set the weakest entries of each image of fused (B, N, N) to 0, in place.

    Of the N * (N - P) entries in patch columns, those below the value at rank
    floor(discard_ratio * N * (N - P)) go: exactly that many, unless values tie at the threshold.
    Ties stay, so that the order of the patches can't decide. Columns of prefix tokens are never
    cut. A row that ends up empty becomes the identity's once the residual is added.

    Args:
        paths: how many entries can be other than 0; the share is of these. None for all.
    """
    patch_columns = fused[:, :, prefix_tokens:]
    entries = patch_columns[0].numel()
    paths = entries if paths is None else paths
    rank = entries - paths + int(discard_ratio * paths)
    if discard_ratio and rank:
        threshold = _value_at_rank(patch_columns.flatten(1), rank)  # (B,)
        if fused.device.type != "cpu":
            patch_columns.masked_fill_(patch_columns < threshold[:, None, None], 0)
            return fused
        prefix_columns = fused[:, :, :prefix_tokens].clone()
        below = torch.nextafter(threshold, torch.zeros_like(threshold) - 1)
        # over all columns, since only whole matrices are contiguous; on a CPU, a boolean mask would
        # take seven times as long
        for matrix, value in zip(fused, below.tolist(), strict=True):
            torch.threshold_(matrix, value, 0)
        fused[:, :, :prefix_tokens] = prefix_columns
    return fused


def propagate(matrices: Sequence[Tensor], readout: Tensor) -> Tensor:
    """readout A~_L ... A~_1 with A~_l = rownorm(matrix_l + I), as (B, N).

    Args:
        matrices: (B, N, N) of each block, entries >= 0, block 1 first; (N', N) where tokens are
            merged, which is a factor as it is.
        readout: (B, N), the row to start from.
    """
    stayed, moved = paths(matrices, readout)
    return stayed + moved


def paths(matrices: Sequence[Tensor], readout: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of `propagate`'s row, (B, N) each, neither of them a difference.

    Returns:
        what came by residual connections (and mergings) alone, readout_j prod_l 1 / (rowsum_l,j
        + 1) without merging; and what at least one block's attention has moved.
    """
    stayed = readout[:, None]  # (B, 1, N)
    moved = torch.zeros_like(stayed)
    for matrix in reversed(matrices):
        if matrix.ndim == 2:
            stayed, moved = stayed @ matrix, moved @ matrix
            continue
        # v rownorm(F + I) = w F + w with w = v / (rowsum(F) + 1): A~ itself is never made
        sums = matrix.sum(dim=-1)[:, None].add_(1)
        stayed, moved = stayed / sums, moved / sums
        moved = torch.baddbmm(moved, stayed + moved, matrix)
    return stayed[:, 0], moved[:, 0]


def select(values: np.ndarray, rank: int) -> np.floating:
    """The value at position `rank` (0-based) of (M,), were it sorted; exact.

    A sample bounds it from both sides, and only the values in between are put in order (Floyd &
    Rivest 1975, "Expected time bounds for selection"): never slower than numpy's introselect, and
    several times as fast on processors for which that has no vector instructions.
    """
    sample = np.sort(values[::SAMPLED])
    place, margin = rank // SAMPLED, math.isqrt(len(sample))
    low, high = sample[max(place - margin, 0)], sample[min(place + margin, len(sample) - 1)]
    above = values >= low
    rank_there = rank - (len(values) - np.count_nonzero(above))
    between = np.compress(above & (values <= high), values)
    if not 0 <= rank_there < len(between):  # the sample was not like the whole
        between, rank_there = values, rank
    return np.partition(between, rank_there)[rank_there]


def _value_at_rank(values: Tensor, rank: int) -> Tensor:
    """The value at position `rank` (0-based) of each row of (B, M), were it sorted; (B,)."""
    if values.device.type != "cpu":
        # CUDA's kthvalue has one block of threads work on each row, and is not deterministic
        return values.sort(dim=1).values[:, rank]
    at_rank = np.array([select(row, rank) for row in values.numpy()])
    return torch.from_numpy(at_rank)


def _readout(attention: AttentionFactors, layout: TokenLayout) -> Tensor:
    """(B, N): how much the classifier reads each token after the last block."""
    return layout.readout_weights(attention.factors[-1].matrix, attention.pool)
