"""Gradient attention rollout: the map of one category.

As attention rollout (vit_rollout), with each block's attention replaced by

    E_l = fuse_heads((A_l * dy_c/dA_l)^+),

y_c being the logit of category c: an attention weight counts as far as a larger one would have
raised that logit. The clamp at 0 comes before the heads are fused, so that heads can't cancel.
Each block's attention is weighed with the gradient of the same block. The weighting is that of
Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability" (equation 5), put into the
product of Abnar & Zuidema 2020; the combination is a practice, not a paper's method.

Where E is small against the identity, the product is close to a sum over the blocks.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from vit_rollout import VITAttentionRollout, fuse_heads, product_masks
from vitexplain.attention.capture import (
    CapturedAttention,
    Factor,
    capture_attention,
    forward,
    sum_branches,
)
from vitexplain.attention.checks import check_matrices, check_settings
from vitexplain.attention.tokens import TokenLayout
from vitexplain.attention.weighted import WeightedPass
from vitexplain.methods.as_published import published_grad_rollout
from vitexplain.methods.base import Choose, OfCategory, scores


class VITAttentionGradRollout(OfCategory, VITAttentionRollout):
    """Gradient attention rollout of a timm ViT, for one category of each image.

    Only gradients with respect to the attention matrices are taken: the model may be frozen, and
    no `.grad` appears anywhere.

    Args and errors as for VITAttentionRollout. With `as_published`, heads are always averaged.
    From 1024 tokens on, gradients (not attention, not logits) are calculated in bfloat16 where the
    processor does so in hardware; `exact` keeps to the model's own precision.
    """

    def __init__(
        self,
        model: nn.Module,
        attention_layer_name: str = "attn_drop",
        discard_ratio: float = 0.9,
        head_fusion: str = "mean",
        start_block: int = 0,
        as_published: bool = False,
        exact: bool = False,
    ):
        super().__init__(
            model, attention_layer_name, head_fusion, discard_ratio, start_block, as_published
        )
        self.exact = exact

    def _maps(self, images: Tensor, layout: TokenLayout, choose: Choose):
        run = self._weigh_fused if self._can_fuse() else self._weigh_hooked
        return run(images, layout, choose)

    def _weigh_fused(self, images: Tensor, layout: TokenLayout, choose: Choose):
        passed = WeightedPass(self.model, layout, self.head_fusion, exact=self.exact)
        logits = passed.run(images)
        categories = choose(logits.detach())
        masks = [
            self._masks(passed.factors(score, self.start_block, again=again), layout)
            for score, again in scores(logits, categories)
        ]
        return masks, logits, categories

    def _weigh_hooked(self, images: Tensor, layout: TokenLayout, choose: Choose):
        with capture_attention(
            self.model, layout, self.attention_layer_name, track_gradient=True
        ) as captured:
            logits = forward(self.model, images)
        categories = choose(logits.detach())
        masks = [
            self._category_masks(captured, *captured.gradients(score, again=again))
            for score, again in scores(logits, categories)
        ]
        return masks, logits, categories

    def _category_masks(
        self,
        captured: CapturedAttention,
        gradients: list[list[Tensor]],
        pool_gradient: Tensor | None,
    ) -> np.ndarray:
        """Masks from every block's branches, and the pool's matrix if there is one."""
        layout = captured.layout
        if self.as_published:
            first = [branches[0].detach() for branches in captured.blocks()]
            first_gradients = [branches[0] for branches in gradients]
            return published_grad_rollout(first, first_gradients, self.discard_ratio, layout)
        weighted = [
            [weigh(a.detach(), g, self.head_fusion) for a, g in zip(*branches, strict=True)]
            for branches in zip(captured.blocks(), gradients, strict=True)
        ]
        pool = None
        if captured.pool is not None:
            pool = weigh(captured.pool.detach(), pool_gradient, self.head_fusion)
        attention = captured.factors(sum_branches(weighted), pool, self.start_block)
        return self._masks(attention, layout)


def grad_rollout(
    attentions: Sequence[Tensor],
    gradients: Sequence[Tensor],
    discard_ratio: float = 0.9,
    head_fusion: str = "mean",
    *,
    prefix_tokens: int = 1,
    grid: tuple[int, int] | None = None,
    readout: Tensor | None = None,
    start_block: int = 0,
    as_published: bool = False,
) -> np.ndarray:
    """Gradient attention rollout of captured matrices alone.

    Args:
        attentions: softmaxed attention of each block, (B, H, N, N), block 1 first.
        gradients: of each image's logit with respect to these, in the same order.
        Others as for vit_rollout.rollout.

    Returns:
        (B, h, w) float32, the largest value of each image 1.

    Raises:
        RequestError: if an argument is out of range or the shapes do not fit together.
    """
    check_settings(discard_ratio, head_fusion, start_block, as_published, len(attentions))
    check_matrices(attentions, gradients)
    layout = TokenLayout.of_matrix(attentions[0].shape[-1], prefix_tokens, grid)
    attentions = [attention.detach() for attention in attentions]
    if as_published:
        return published_grad_rollout(attentions, gradients, discard_ratio, layout)
    fused = [weigh(a, g, head_fusion) for a, g in zip(attentions, gradients, strict=True)]
    if readout is None:
        readout = layout.readout_weights(fused[0])
    factors = [Factor(matrix) for matrix in fused[start_block:]]
    return product_masks(factors, readout, layout, discard_ratio)


def weigh(attention: Tensor, gradient: Tensor, head_fusion: str) -> Tensor:
    """fuse_heads((A * dy/dA)^+): (B, H, N, N) twice -> (B, N, N)."""
    return fuse_heads((attention * gradient).clamp(min=0), head_fusion)
