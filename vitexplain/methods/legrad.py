"""LeGrad: how sensitive each block's own score is to its attention.

Bousselham, Boggust, Chaybouti, Strobelt & Kuehne 2024, "LeGrad: An Explainability Method for Vision
Transformers via Feature Formation Sensitivity", section 3: the tokens Z_l after block l are scored
as if they were the last ones, and attention counts as far as more of it would raise that score,

    s_l = head(norm(mean_i Z_l,i))_c,    E_l = mean_heads,rows((ds_l/dA_l)^+),    map = mean_l E_l.

The gradient alone counts, not its product with attention, and all rows count. Where the model has
an attention pool, that pools Z_l in place of the mean, and it is the pool's own attention over Z_l
that counts as A_l, as in the authors' code for SigLIP.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.capture import capture_attention, forward
from vitexplain.attention.checks import check_start_block
from vitexplain.attention.readout import is_timms_own
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import (
    WINDOWED,
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    check_supported,
)
from vitexplain.methods.base import CategoryMethod, Choose, chosen_logits, on_grid
from vitexplain.targets import Chosen


class LeGrad(CategoryMethod):
    """LeGrad of a timm ViT, for one category of each image: two forward passes.

    Args:
        model: a timm VisionTransformer; used in evaluation mode, left as it was found.
        start_block: first block that counts, 0 for all of them.

    Raises:
        UnsupportedModel: if the model can't be explained, or its blocks differ in width.
        RequestError: if start_block is out of range.
    """

    def __init__(self, model: nn.Module, start_block: int = 0):
        model = check_supported(model)
        if isinstance(model, WINDOWED):
            raise UnsupportedModel(model, "its head takes the last stage's tokens only")
        check_start_block(start_block, len(blocks_of(model)))
        self.model, self.start_block = model, start_block

    def _scores(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        with torch.no_grad(), capture_attention(self.model, layout, reduce=torch.numel) as captured:
            logits = forward(self.model, images)
            captured.blocks()  # complete, or the model is refused
        categories = choose(logits)
        return self.of_categories(images, layout, categories), logits, categories

    def of_categories(
        self, images: Tensor, layout: TokenLayout, categories: list[list[Chosen]]
    ) -> list[np.ndarray]:
        """K times the patches' scores (B, h, w), from one forward pass.

        Args:
            categories: K for each of the B images.

        It is called on a shadow, with gradients enabled.

        Raises:
            UnsupportedModel: if the attention of some block passes no hook.
        """
        # for each category, (B, N) of each block
        sensitivities: list[list[Tensor]] = [[] for _ in categories[0]]
        with (
            ExitStack() as undo,
            capture_attention(self.model, layout, track_gradient=True) as captured,
        ):
            for number, block in enumerate(blocks_of(self.model)):

                def score(_block, _inputs, tokens, number=number):
                    branches = captured.branches[number]
                    if number >= self.start_block:
                        logits = self._logits_of(tokens, layout, images)
                        counted = [captured.pool] if layout.pooled_tokens else branches
                        if not counted:
                            reason = f"the attention of its block {number} was not seen by LeGrad"
                            raise UnsupportedModel(self.model, reason)
                        of_categories = self._sensitivities(logits, counted, categories)
                        for into, each in zip(sensitivities, of_categories, strict=True):
                            into.append(each)
                    branches.clear()  # not all blocks' matrices at once
                    return tokens.detach()  # each block's score is its own

                undo.callback(block.register_forward_hook(score).remove)
            if is_timms_own(self.model):
                self.model.forward_features(images)
            else:
                forward(self.model, images)
        scores = []
        for of_blocks in sensitivities:
            columns = torch.stack(of_blocks).mean(dim=0)  # all tokens, or those that are pooled
            patches = columns[:, -layout.grid[0] * layout.grid[1] :]
            scores.append(on_grid(patches, layout.grid))
        return scores

    def _logits_of(self, tokens: Tensor, layout: TokenLayout, images: Tensor) -> Tensor:
        """The logits of a block's output (B, N, C), as if it were the last block's."""
        pooled = tokens
        if not layout.pooled_tokens:
            # all tokens alike, so that their mean is what the head pools
            pooled = tokens.mean(dim=1, keepdim=True).expand_as(tokens)
        if is_timms_own(self.model):
            return self.model.forward_head(self.model.norm(pooled))
        return _logits_after(pooled, self.model, images)

    def _sensitivities(
        self, logits: Tensor, attentions: list[Tensor], categories: list[list[Chosen]]
    ) -> Iterator[Tensor]:
        """E_l (B, columns) of one block for each category, from its branches' attention or the
        pool's."""
        for score, again in chosen_logits(logits, categories):
            gradients = torch.autograd.grad(score, attentions, retain_graph=again)
            yield sum(gradient.float().clamp(min=0).mean(dim=(1, 2)) for gradient in gradients)


def _logits_after(tokens: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """The logits that a model with a head of its own gives if these are the last block's tokens."""
    shadow = shadow_of(model)
    for block in blocks_of(shadow):
        block._forward_hooks.clear()
        block.forward = lambda *_, **__: tokens
    return forward(shadow, images)
