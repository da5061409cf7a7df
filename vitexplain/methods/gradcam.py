"""Grad-CAM on tokens: the channels of the last block's input, weighted by their gradients.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", equations 1 and 2, a token's features being the channels at its patch:

    w_k = mean_patches(dy_c/da_k),    map = (sum_k w_k a_k)^+

a is the last attention's input, the output of that block's first normalisation: after it, the
classifier reads nothing but the class token, and patches have no gradient any more.
"""

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.capture import forward, inference_state
from vitexplain.attention.tokens import (
    WINDOWED,
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    check_supported,
)
from vitexplain.methods.base import CategoryMethod, Choose, chosen_logits, on_grid


class GradCam(CategoryMethod):
    """Grad-CAM of a timm ViT's tokens, for one category of each image.

    In Swin its maps are as coarse as the last stage's grid.

    Args:
        model: a timm VisionTransformer; used in evaluation mode, left as it was found.

    Raises:
        UnsupportedModel: if the model can't be explained, or its last block has several branches.
    """

    linear = True

    def __init__(self, model: nn.Module):
        model = check_supported(model)
        self.model = model
        if not any(hasattr(blocks_of(model)[-1], name) for name in ("attn", "in_norm")):
            raise UnsupportedModel(model, "the attention of its last block reads no single input")

    def _scores(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        seen: list[Tensor] = []
        with ExitStack() as undo:
            undo.enter_context(
                inference_state(self.model, freeze=True, fused=not isinstance(self.model, WINDOWED))
            )
            self._see(seen, undo)
            logits = forward(self.model, images)
        categories = choose(logits.detach())
        scores = []
        for logit, again in chosen_logits(logits, categories):
            (gradient,) = torch.autograd.grad(logit, seen, retain_graph=again)
            scores.append(_weighted_sum(seen[0].detach(), gradient, layout))
        return scores, logits, categories

    def _see(self, seen: list[Tensor], undo: ExitStack) -> None:
        """Put the last attention's input into `seen`; autograd then begins there."""

        def see(tokens: Tensor) -> Tensor:
            seen.append(tokens.detach().requires_grad_())
            return seen[0]

        last = blocks_of(self.model)[-1]
        if isinstance(self.model, WINDOWED) or not hasattr(last, "attn"):
            # attention itself reads windows there, or is part of the block
            norm = last.norm1 if isinstance(self.model, WINDOWED) else last.in_norm
            undo.callback(norm.register_forward_hook(lambda _m, _i, tokens: see(tokens)).remove)
        else:
            hook = last.attn.register_forward_pre_hook
            undo.callback(hook(lambda _m, inputs: (see(inputs[0]), *inputs[1:])).remove)


def _weighted_sum(features: Tensor, gradient: Tensor, layout: TokenLayout) -> np.ndarray:
    """sum_k w_k a_k (B, h, w) from features (B, N, C), or (B, h, w, C), and their gradient."""
    grid = layout.grid
    if features.ndim == 4:
        grid = tuple(features.shape[1:3])
        features, gradient = features.flatten(1, 2), gradient.flatten(1, 2)
    else:
        features, gradient = (t[:, layout.prefix_tokens :] for t in (features, gradient))
    weights = gradient.mean(dim=1, keepdim=True)  # (B, 1, C)
    return on_grid((weights * features).sum(dim=-1), grid)
