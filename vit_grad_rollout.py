"""Gradient attention rollout: the map of one category.

As attention rollout (vit_rollout), with each block's attention replaced by

    E_l = fuse_heads((A_l * dy_c/dA_l)^+),      A_l (B, H, N, N) -> E_l (B, N, N),

y_c being the logit of category c: an attention weight counts as far as a larger one would have
raised that logit. Each block's attention is weighted by the gradient of the same block. The clamp
at 0 comes before the heads are fused, so that heads can't cancel. Then, as there,

    A~_l = rownorm(discard_weakest(E_l) + I),    R = A~_L ... A~_2 A~_1.

The weighting is that of Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability"
(equation 5), put into the product of Abnar & Zuidema 2020; the combination is a practice, not a
paper's method. Where E is small against the identity, the product is close to a sum over the
blocks.

The weighting is in vitexplain/methods/weighting.py, the product in vitexplain/methods/product.py.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.capture import capture_attention, forward
from vitexplain.attention.checks import check_matrices, check_rollout_options
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
from vitexplain.methods.as_published import published_grad_rollout
from vitexplain.methods.base import (
    CategoryMethod,
    Choose,
    Explanation,
    chosen_logits,
    largest_is_one,
    on_grid,
)
from vitexplain.methods.product import (
    fuse_heads,
    masks_of_matrices,
    pyramid_scores,
    rollout_scores,
)
from vitexplain.methods.weighting import gradient_weighted, weighted_attention

__all__ = ["Explanation", "VITAttentionGradRollout", "grad_rollout"]


class VITAttentionGradRollout(CategoryMethod):
    """Gradient attention rollout of a timm ViT, for one category of each image.

    Only gradients with respect to the attention matrices are taken: the model may be frozen, and
    no `.grad` appears anywhere.

    Args and errors as for VITAttentionRollout. With `as_published`, heads are always averaged.
    From 1024 tokens on, gradients (not attention, not logits) are computed in bfloat16 where the
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
        model = check_rollable(model, as_published=as_published)
        blocks = count_blocks(model)
        check_rollout_options(discard_ratio, head_fusion, start_block, as_published, blocks)
        self.model = model
        self.attention_layer_name = attention_layer_name
        self.head_fusion = head_fusion
        self.discard_ratio = discard_ratio
        self.start_block = start_block
        self.as_published = as_published
        self.exact = exact

    def _scores(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        if isinstance(self.model, PYRAMIDS):
            return self._pyramid_scores(images, layout, choose)
        if self.as_published:
            return self._published_scores(images, layout, choose)
        weighted, logits, categories = weighted_attention(
            self.model,
            images,
            layout,
            choose,
            self.head_fusion,
            start_block=self.start_block,
            layer_name=self.attention_layer_name,
            exact=self.exact,
        )
        scores = [rollout_scores(each, layout, self.discard_ratio) for each in weighted]
        return scores, logits, categories

    def _layout(self, images: Tensor) -> TokenLayout:
        return rollout_layout(self.model, images)

    def _pyramid_scores(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        attentions, logits = pyramid_attention(self.model, images, track_gradient=True)
        categories = choose(logits.detach())
        fuse = partial(fuse_heads, head_fusion=self.head_fusion)
        scores = []
        for logit, again in chosen_logits(logits, categories):
            gradients = torch.autograd.grad(logit, attentions, retain_graph=again)
            weighted = [
                (attention.detach() * gradient).clamp(min=0)
                for attention, gradient in zip(attentions, gradients, strict=True)
            ]
            factors = pyramid_factors(self.model, weighted, fuse, self.start_block)
            shares = pyramid_scores(factors, layout, self.discard_ratio)
            scores.append(on_grid(in_rows(self.model, shares), layout.grid))
        return scores, logits, categories

    def _published_scores(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        with capture_attention(
            self.model, layout, self.attention_layer_name, track_gradient=True
        ) as captured:
            logits = forward(self.model, images)
        categories = choose(logits.detach())
        attentions = [branches[0].detach() for branches in captured.blocks()]
        scores = []
        for logit, again in chosen_logits(logits, categories):
            of_blocks, _ = captured.gradients(logit, again=again)
            gradients = [branches[0] for branches in of_blocks]
            scores.append(published_grad_rollout(attentions, gradients, self.discard_ratio, layout))
        return scores, logits, categories


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
    blocks = len(attentions)
    check_rollout_options(discard_ratio, head_fusion, start_block, as_published, blocks)
    check_matrices(attentions, gradients)
    layout = TokenLayout.of_matrix(attentions[0].shape[-1], prefix_tokens, grid)
    attentions = [attention.detach() for attention in attentions]
    if as_published:
        return largest_is_one(published_grad_rollout(attentions, gradients, discard_ratio, layout))
    weighted = [
        gradient_weighted(attention, gradient, head_fusion)
        for attention, gradient in zip(attentions, gradients, strict=True)
    ]
    return masks_of_matrices(weighted, layout, discard_ratio, readout, start_block)
