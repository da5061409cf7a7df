"""Attention rollout: how much of each patch reaches what the classifier reads.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (section 3, equation 1): the
residual connection adds the identity to each block's attention, and information flows along the
product of all blocks,

    A~_l = rownorm(fuse_heads(A_l) + I),    R = A~_L ... A~_2 A~_1,

block 1 first; every row of R sums to 1. The mask is the row of R that the classifier reads, at
the patches' columns. Only that row is computed: v <- v A~_l from the last block to the first.

Two refinements are not in the paper: heads may be fused by their maximum or minimum, and the
weakest entries of each block may be set to 0 (`discard_ratio`).

Rollout knows nothing of categories; see vit_grad_rollout for one category's map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.capture import (
    AttentionFactors,
    Factor,
    capture_attention,
    forward,
)
from vitexplain.attention.checks import (
    check_matrices,
    check_one_image,
    check_settings,
    images_for,
)
from vitexplain.attention.fused import fused_factors
from vitexplain.attention.intercept import can_intercept
from vitexplain.attention.tokens import TokenLayout, blocks_of, check_supported, token_layout
from vitexplain.methods.as_published import published_rollout

SAMPLED = 43  # one of so many entries; prime, lest rows of a matrix give always the same columns


@dataclass(frozen=True)
class Explanation:
    """What one forward pass told of B images.

    Attributes:
        masks: (B, h, w) float32 numpy, the largest value of each 1 (all 0 where no patch counts).
        logits: (B, categories) on the CPU; (B, features) for a model without a classifier.
        layout: the tokens of this input, and which of them the classifier reads.
        categories: the category explained, for each image; None if the method has none.
    """

    masks: np.ndarray
    logits: Tensor
    layout: TokenLayout
    categories: list[int] | None = None


class VITAttentionRollout:
    """Attention rollout of a timm ViT.

    Args:
        model: a timm VisionTransformer; used in evaluation mode, left as it was found.
        attention_layer_name: part of the name of the modules that attention passes through.
        head_fusion: "mean" (as in the paper), "max" or "min".
        discard_ratio: share of the patch-column entries of each block set to 0, in [0, 1).
        start_block: first block of the product, 0 for all of them. Large models park global
            information in background patches early on; from the middle on maps follow objects.
        as_published: the arithmetic of the widely used older script (methods/as_published).

    Raises:
        UnsupportedModel: if the model's attention can't be rolled out.
        RequestError: if an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        attention_layer_name: str = "attn_drop",
        head_fusion: str = "mean",
        discard_ratio: float = 0.9,
        start_block: int = 0,
        as_published: bool = False,
    ):
        check_supported(model)
        check_settings(discard_ratio, head_fusion, start_block, as_published, len(blocks_of(model)))
        self.model = model
        self.attention_layer_name = attention_layer_name
        self.head_fusion = head_fusion
        self.discard_ratio = discard_ratio
        self.start_block = start_block
        self.as_published = as_published

    def __call__(self, input_tensor: Tensor) -> np.ndarray:
        """The mask (h, w) of one image (1, 3, H, W): float32, largest value 1."""
        check_one_image(input_tensor)
        return self.batch(input_tensor)[0]

    def batch(self, input_tensor: Tensor) -> np.ndarray:
        """The masks (B, h, w) of B images (B, 3, H, W): float32, largest value of each 1.

        Nothing behind the last attention is computed.
        """
        return self._run(input_tensor, only_attention=True)[0]

    def explain(self, input_tensor: Tensor) -> Explanation:
        """Masks and logits of B images (B, 3, H, W), from one forward pass.

        Raises:
            UnsupportedModel: if what passes the hooks is not attention over the input's tokens.
            RequestError: if the input is not a batch of images of a size that the model takes.
        """
        masks, layout, logits = self._run(input_tensor, only_attention=False)
        return Explanation(masks, logits, layout)

    def _run(
        self, input_tensor: Tensor, *, only_attention: bool
    ) -> tuple[np.ndarray, TokenLayout, Tensor | None]:
        images = images_for(self.model, input_tensor)
        layout = token_layout(self.model, *images.shape[2:])
        run = self._run_fused if self._can_fuse() else self._run_hooked
        with torch.inference_mode():
            masks, logits = run(images, layout, only_attention)
        return masks, layout, None if logits is None else logits.float().cpu().clone()

    def _can_fuse(self) -> bool:
        return not self.as_published and can_intercept(self.model, self.attention_layer_name)

    def _run_fused(
        self, images: Tensor, layout: TokenLayout, only_attention: bool
    ) -> tuple[np.ndarray, Tensor | None]:
        attention, logits = fused_factors(
            self.model,
            images,
            layout,
            self.head_fusion,
            self.start_block,
            with_logits=not only_attention,
        )
        return self._masks(attention, layout), logits

    def _run_hooked(
        self, images: Tensor, layout: TokenLayout, _only_attention: bool
    ) -> tuple[np.ndarray, Tensor]:
        def fuse(attention: Tensor) -> Tensor:
            return fuse_heads(attention, self.head_fusion)

        with capture_attention(
            self.model, layout, self.attention_layer_name, reduce=fuse
        ) as captured:
            logits = forward(self.model, images)
        fused = captured.summed()
        if self.as_published:
            return published_rollout(fused, self.discard_ratio, layout), logits
        pool = None if captured.pool is None else fuse(captured.pool)
        return self._masks(captured.factors(fused, pool, self.start_block), layout), logits

    def _masks(self, attention: AttentionFactors, layout: TokenLayout) -> np.ndarray:
        factors = attention.factors
        readout = layout.readout_weights(factors[-1].matrix, attention.pool)
        return product_masks(factors, readout, layout, self.discard_ratio)


def rollout(
    attentions: Sequence[Tensor],
    discard_ratio: float = 0.9,
    head_fusion: str = "mean",
    *,
    prefix_tokens: int = 1,
    grid: tuple[int, int] | None = None,
    readout: Tensor | None = None,
    start_block: int = 0,
    as_published: bool = False,
) -> np.ndarray:
    """Attention rollout of captured matrices alone.

    Args:
        attentions: softmaxed attention of each block, (B, H, N, N), block 1 first.
        discard_ratio: share of the patch-column entries of each block set to 0, in [0, 1).
        head_fusion: "mean", "max" or "min".
        prefix_tokens: how many of the N tokens stand before the patches.
        grid: (h, w) of the patches; by default they are taken to form a square.
        readout: (B, N), how much the classifier reads each token. By default the first token's
            row; without prefix tokens, the mean over the patches' rows.
        start_block: first block of the product, 0 for all of them.
        as_published: the arithmetic of the older script; one image, one prefix token.

    Returns:
        (B, h, w) float32, the largest value of each image 1.

    Raises:
        RequestError: if an argument is out of range or the shapes do not fit together.
    """
    check_settings(discard_ratio, head_fusion, start_block, as_published, len(attentions))
    check_matrices(attentions)
    layout = TokenLayout.of_matrix(attentions[0].shape[-1], prefix_tokens, grid)
    fused = [fuse_heads(attention.detach(), head_fusion) for attention in attentions]
    if as_published:
        return published_rollout(fused, discard_ratio, layout)
    if readout is None:
        readout = layout.readout_weights(fused[0])
    factors = [Factor(matrix) for matrix in fused[start_block:]]
    return product_masks(factors, readout, layout, discard_ratio)


def fuse_heads(attention: Tensor, head_fusion: str) -> Tensor:
    """(B, H, N, N) -> (B, N, N) in float32, by the heads' mean, maximum or minimum."""
    attention = attention.float()
    if head_fusion == "mean":
        return attention.mean(dim=1)
    return attention.amax(dim=1) if head_fusion == "max" else attention.amin(dim=1)


def product_masks(
    factors: Sequence[Factor], readout: Tensor, layout: TokenLayout, discard_ratio: float
) -> np.ndarray:
    """(B, h, w) masks from all factors, the first block's first, and the read-out (B, N).

    The factors are used up: the weakest entries are set to 0 in place.
    """
    prefix = layout.prefix_tokens
    kept = [
        discard_weakest_(factor.matrix, discard_ratio, prefix, factor.paths)
        if factor.matrix.ndim == 3
        else factor.matrix
        for factor in factors
    ]
    return largest_is_one(propagate(kept, readout)[:, prefix:], layout.grid)


def largest_is_one(patches: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """(B, h*w), >= 0, -> masks (B, h, w), float32; all 0 where nothing counts."""
    masks = patches.detach().float().cpu().numpy()
    largest = masks.max(axis=1, keepdims=True)
    return (masks / np.where(largest > 0, largest, 1)).reshape(-1, *grid)


def discard_weakest_(
    fused: Tensor, discard_ratio: float, prefix_tokens: int, paths: int | None = None
) -> Tensor:
    """Sets the weakest entries of each image of fused (B, N, N) to 0, in place.

    Of the N * (N - P) entries in patch columns, those below the value at rank
    floor(discard_ratio * N * (N - P)) go: exactly that many, unless values tie at the threshold.
    Ties stay, so that the order of the patches can't decide. Columns of prefix tokens are never
    cut. A row that ends up empty becomes the identity's once the residual is added. Where only
    `paths` entries can be other than 0, the share is of these.
    """
    patch_columns = fused[:, :, prefix_tokens:]
    entries = patch_columns[0].numel()
    paths = entries if paths is None else paths
    rank = entries - paths + int(discard_ratio * paths)
    if discard_ratio and rank:
        threshold = _value_at_rank(patch_columns.flatten(1), rank)  # (B,)
        prefix_columns = fused[:, :, :prefix_tokens].clone()
        below = torch.nextafter(threshold, torch.zeros_like(threshold) - 1)
        # over all columns, since only whole matrices are contiguous; a mask would take seven times
        # as long
        for matrix, value in zip(fused, below.tolist(), strict=True):
            torch.threshold_(matrix, value, 0)
        fused[:, :, :prefix_tokens] = prefix_columns
    return fused


def propagate(matrices: Sequence[Tensor], readout: Tensor) -> Tensor:
    """readout @ A~_L ... A~_1 with A~_l = rownorm(matrix_l + I), as (B, N).

    Args:
        matrices: (B, N, N) of each block, entries >= 0, block 1 first; (N', N) where tokens are
            merged, which is a factor as it is.
        readout: (B, N), the row to start from.
    """
    row = readout[:, None]  # (B, 1, N)
    for matrix in reversed(matrices):
        if matrix.ndim == 2:
            row = row @ matrix
            continue
        # v rownorm(F + I) = w F + w with w = v / (rowsum(F) + 1): A~ itself is never made
        weighted = row / (matrix.sum(dim=-1)[:, None] + 1)
        row = weighted @ matrix + weighted
    return row[:, 0]


def _value_at_rank(values: Tensor, rank: int) -> Tensor:
    """The value at position `rank` (0-based) of each row of (B, M), were it sorted; (B,)."""
    if values.device.type == "cuda":
        return values.kthvalue(rank + 1, dim=1).values
    at_rank = np.array([select(row, rank) for row in values.cpu().numpy()])
    return torch.from_numpy(at_rank).to(values.device)


def select(values: np.ndarray, rank: int) -> np.floating:
    """The value at position `rank` (0-based) of (M,), were it sorted; exact.

    A sample tells which values it can't be, and only the others are put in order (Floyd & Rivest
    1975, "Expected time bounds for selection"): a third of the time of numpy's introselect,
    which itself is several times faster than torch's kthvalue.
    """
    sample = np.sort(values[::SAMPLED])
    place, margin = rank // SAMPLED, 2 * math.isqrt(len(sample))
    low, high = sample[max(place - margin, 0)], sample[min(place + margin, len(sample) - 1)]
    between = np.compress((values >= low) & (values <= high), values)
    rank_there = rank - np.count_nonzero(values < low)
    if not 0 <= rank_there < len(between):  # the sample was not like the whole
        between, rank_there = values, rank
    return np.partition(between, rank_there)[rank_there]
