"""Attention weighted by the gradient of one category's logit.

Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers" (ICCV), equation 5: with y_c the logit of category c,

    E_l = fuse_heads((A_l * dy_c/dA_l)^+).

The gradient is that of the same block. The negative part is dropped before the heads are fused, so
that heads can't cancel. Gradient rollout and relevance multiply these matrices, each in its way.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from vitexplain.attention.capture import (
    AttentionFactors,
    CapturedAttention,
    capture_attention,
    forward,
    sum_branches,
)
from vitexplain.attention.intercept import can_intercept
from vitexplain.attention.tokens import TokenLayout
from vitexplain.attention.weighted import WeightedPass
from vitexplain.methods.base import Choose, chosen_logits
from vitexplain.methods.product import fuse_heads


def gradient_weighted(attention: Tensor, gradient: Tensor, head_fusion: str) -> Tensor:
    """E = fuse_heads((A * dy/dA)^+): (B, H, N, N) twice -> (B, N, N)."""
    return fuse_heads((attention * gradient).clamp(min=0), head_fusion)


def weighted_attention(
    model: nn.Module,
    images: Tensor,
    layout: TokenLayout,
    choose: Choose,
    head_fusion: str,
    *,
    start_block: int = 0,
    layer_name: str = "attn_drop",
    exact: bool = False,
) -> tuple[Iterator[AttentionFactors], Tensor, list[list[int]]]:
    """The weighted attention of K categories, the logits, and what `choose` made of these.

    Args:
        start_block: blocks before it are left out.
        layer_name: part of the name of the modules that attention passes through.
        exact: keep gradients in the model's own precision, however many tokens there are.

    Returns:
        for each category the E_l of B images; each by a backward pass of its own, and only when it
        is asked for, so that those of one category at a time are in memory.

    Raises:
        UnsupportedModel: if what is captured is not attention over the input's tokens.
    """
    one_pass = (
        WeightedPass(model, layout, head_fusion, exact=exact)
        if can_intercept(model, layer_name)
        else _HookedPass(model, layout, head_fusion, layer_name)
    )
    logits = one_pass.run(images)
    categories = choose(logits.detach())
    weighted = (
        one_pass.factors(logit, start_block, again=again)
        for logit, again in chosen_logits(logits, categories)
    )
    return weighted, logits, categories


class _HookedPass:
    """As WeightedPass, from whole attention matrices that pass through hooks."""

    def __init__(self, model: nn.Module, layout: TokenLayout, head_fusion: str, layer_name: str):
        self.model, self.layout = model, layout
        self.head_fusion, self.layer_name = head_fusion, layer_name
        self.captured = CapturedAttention(model, layout)

    def run(self, images: Tensor) -> Tensor:
        with capture_attention(
            self.model, self.layout, self.layer_name, track_gradient=True
        ) as self.captured:
            return forward(self.model, images)

    def factors(self, score: Tensor, start_block: int = 0, *, again: bool) -> AttentionFactors:
        captured = self.captured
        gradients, pool_gradient = captured.gradients(score, again=again)
        weighted = []
        for branches, of_branches in zip(captured.blocks(), gradients, strict=True):
            pairs = zip(branches, of_branches, strict=True)
            weighted.append([self._weighted(attention, gradient) for attention, gradient in pairs])
        pool = None
        if captured.pool is not None:
            pool = self._weighted(captured.pool, pool_gradient)
        return captured.factors(sum_branches(weighted), pool, start_block)

    def _weighted(self, attention: Tensor, gradient: Tensor) -> Tensor:
        return gradient_weighted(attention.detach(), gradient, self.head_fusion)
