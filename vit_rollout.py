"""Attention rollout: how much of each patch reaches what the classifier pools.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (section 3, equation 1). With
A_l the softmaxed attention of block l, (B, H, N, N), rows = queries, columns = keys, block 1 first:

    F_l  = fuse_heads(A_l)              over the H heads: mean, or max, min       (B, N, N)
    F_l  = discard_weakest(F_l)         the lowest share of its patch columns becomes 0
    A~_l = rownorm(F_l + I)             the identity stands for the residual connection
    R    = A~_L ... A~_2 A~_1           every row sums to 1

The map is the row of R that the classifier pools (a class token's, or a mean of rows), at the
patches' columns, divided by its maximum. Only that row is computed, v <- v A~_l from the last block
to the first: O(L N^2) instead of O(L N^3). Patches that are pooled themselves have a share in it
for being there, by the residual connections alone; the map is without that.

The paper fuses heads by their mean and discards nothing; max, min and `discard_ratio` are
refinements. The steps are functions of vitexplain/methods/product.py. Rollout knows nothing of
categories; vit_grad_rollout makes the map of one.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor, nn

from vitexplain.attention.capture import CapturedAttention, capture_attention, forward
from vitexplain.attention.checks import check_matrices, check_rollout_options
from vitexplain.attention.fused import fused_factors
from vitexplain.attention.intercept import can_intercept
from vitexplain.attention.pyramid import (
    PYRAMIDS,
    check_rollable,
    count_blocks,
    in_rows,
    pyramid_attention,
    pyramid_factors,
    rollout_layout,
)
from vitexplain.attention.tokens import TokenLayout
from vitexplain.methods.as_published import published_rollout
from vitexplain.methods.base import Explanation, ImageMethod, largest_is_one, on_grid
from vitexplain.methods.product import (
    fuse_heads,
    masks_of_matrices,
    pyramid_scores,
    rollout_scores,
)

__all__ = ["Explanation", "VITAttentionRollout", "rollout"]


class VITAttentionRollout(ImageMethod):
    """Attention rollout of a timm ViT.

    Args:
        model: a timm VisionTransformer, or one of attention.pyramid; used in evaluation mode, left
            as it was found.
        attention_layer_name: part of the name of the modules that attention passes through.
        head_fusion: "mean" as in the paper, "max" or "min". The command's default is "max", as in
            the older script's published images (see vitexplain.methods.registry).
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
        model = check_rollable(model, as_published=as_published)
        blocks = count_blocks(model)
        check_rollout_options(discard_ratio, head_fusion, start_block, as_published, blocks)
        self.model = model
        self.attention_layer_name = attention_layer_name
        self.head_fusion = head_fusion
        self.discard_ratio = discard_ratio
        self.start_block = start_block
        self.as_published = as_published

    def _layout(self, images: Tensor) -> TokenLayout:
        return rollout_layout(self.model, images)

    def _scores(
        self, images: Tensor, layout: TokenLayout, *, with_logits: bool
    ) -> tuple[np.ndarray, Tensor | None]:
        if isinstance(self.model, PYRAMIDS):
            fuse = partial(fuse_heads, head_fusion=self.head_fusion)
            attentions, logits = pyramid_attention(self.model, images)
            factors = pyramid_factors(self.model, attentions, fuse, self.start_block)
            shares = pyramid_scores(factors, layout, self.discard_ratio)
            return on_grid(in_rows(self.model, shares), layout.grid), logits
        if self.as_published:
            captured, logits = self._capture(images, layout)
            return published_rollout(captured.summed(), self.discard_ratio, layout), logits
        if can_intercept(self.model, self.attention_layer_name):
            attention, logits = fused_factors(
                self.model,
                images,
                layout,
                self.head_fusion,
                self.start_block,
                with_logits=with_logits,
            )
        else:
            captured, logits = self._capture(images, layout)
            pool = None if captured.pool is None else fuse_heads(captured.pool, self.head_fusion)
            attention = captured.factors(captured.summed(), pool, self.start_block)
        # discard the weakest entries, add the identity, normalise the rows, multiply
        return rollout_scores(attention, layout, self.discard_ratio), logits

    def _capture(self, images: Tensor, layout: TokenLayout) -> tuple[CapturedAttention, Tensor]:
        """Each block's attention, heads fused, and the logits, by hooks."""
        fuse = partial(fuse_heads, head_fusion=self.head_fusion)
        with capture_attention(
            self.model, layout, self.attention_layer_name, reduce=fuse
        ) as captured:
            return captured, forward(self.model, images)


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
            row; without prefix tokens, the mean over the patches' rows. What stays of it at a
            patch by the residual connections alone is no part of the map.
        start_block: first block of the product, 0 for all of them.
        as_published: the arithmetic of the older script; one image, one prefix token.

    Returns:
        (B, h, w) float32, the largest value of each image 1.

    Raises:
        RequestError: if an argument is out of range or the shapes do not fit together.
    """
    blocks = len(attentions)
    check_rollout_options(discard_ratio, head_fusion, start_block, as_published, blocks)
    check_matrices(attentions)
    layout = TokenLayout.of_matrix(attentions[0].shape[-1], prefix_tokens, grid)
    fused = [fuse_heads(attention.detach(), head_fusion) for attention in attentions]
    if as_published:
        return largest_is_one(published_rollout(fused, discard_ratio, layout))
    return masks_of_matrices(fused, layout, discard_ratio, readout, start_block)
