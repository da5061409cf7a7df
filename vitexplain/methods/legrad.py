"""LeGrad: how sensitive each block's own score is to its attention.

Bousselham, Boggust, Chaybouti, Strobelt & Kuehne 2024, "LeGrad: An Explainability Method for Vision
Transformers via Feature Formation Sensitivity", section 3: the tokens Z_l behind block l are scored
as if they were the last ones, and attention counts as far as more of it would raise that score,

    s_l = head(norm(mean_i Z_l,i))_c,    E_l = mean_heads,rows((ds_l/dA_l)^+),    mask = mean_l E_l.

The gradient alone counts, not its product with attention, and that of all rows. Where the model
has an attention pool, this makes one token of Z_l in place of the mean.
"""

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from vit_rollout import largest_is_one
from vitexplain.attention.capture import CapturedAttention, capture_attention, forward
from vitexplain.attention.checks import check_settings
from vitexplain.attention.tokens import (
    WINDOWED,
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    check_supported,
)
from vitexplain.methods.base import Choose, OfCategory, scores


class LeGrad(OfCategory):
    """LeGrad of a timm ViT, for one category of each image: two forward passes.

    Args:
        model: a timm VisionTransformer; used in evaluation mode, left as it was found.
        start_block: first block that counts, 0 for all of them.

    Raises:
        UnsupportedModel: if the model can't be explained, or its blocks differ in width.
        RequestError: if start_block is out of range.
    """

    def __init__(self, model: nn.Module, start_block: int = 0):
        check_supported(model)
        if isinstance(model, WINDOWED):
            raise UnsupportedModel(model, "its head takes the last stage's tokens only")
        check_settings(0, "mean", start_block, False, len(blocks_of(model)))
        self.model, self.start_block = model, start_block

    def _maps(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        with torch.no_grad(), capture_attention(self.model, layout, reduce=torch.numel) as captured:
            logits = forward(self.model, images)
            captured.blocks()  # complete, or the model is refused
        categories = choose(logits)
        found: list[list[Tensor]] = [[] for _ in categories[0]]  # of each category, each block
        with (
            ExitStack() as undo,
            capture_attention(self.model, layout, track_gradient=True) as captured,
        ):
            for number, block in enumerate(blocks_of(self.model)):

                def score(_block, _inputs, tokens, number=number):
                    if number >= self.start_block:
                        self._sensitivities(captured, number, tokens, categories, found)
                    captured.branches[number].clear()  # not all blocks' matrices at once
                    return tokens.detach()  # each block's score is its own

                undo.callback(block.register_forward_hook(score).remove)
            self.model.forward_features(images)
        sums = [torch.stack(each).mean(dim=0)[:, layout.prefix_tokens :] for each in found]
        return [largest_is_one(each, layout.grid) for each in sums], logits, categories

    def _sensitivities(
        self,
        captured: CapturedAttention,
        number: int,
        tokens: Tensor,
        categories: list[list[int]],
        found: list[list[Tensor]],
    ) -> None:
        """Adds (B, N) of one block, whose output is `tokens` (B, N, C), for each category."""
        branches = captured.branches[number]
        pooled = tokens
        if not captured.layout.pooled_tokens:
            # all tokens alike, so that whatever the head reads is their mean
            pooled = tokens.mean(dim=1, keepdim=True).expand_as(tokens)
        logits = self.model.forward_head(self.model.norm(pooled))
        for into, (score, again) in zip(found, scores(logits, categories), strict=True):
            gradients = torch.autograd.grad(score, branches, retain_graph=again)
            into.append(sum(g.float().clamp(min=0).mean(dim=(1, 2)) for g in gradients))
