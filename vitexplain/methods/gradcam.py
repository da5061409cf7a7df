"""Grad-CAM: the channels of the last grid of features, weighted by their gradients.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", equations 1 and 2, the channels at each place (h, w) being a's:

    w_k = mean_places(dy_c/da_k),    map = (sum_k w_k a_k)^+

In a CNN, a is the last map of features, as in the paper. In a ViT, whose classifier may read
nothing but the class token, it is the last attention's input, the output of that block's first
normalisation: after it, patches have no gradient any more. All other models have what comes nearest
to these, see vitexplain.attention.last_grid.
"""

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.capture import inference_state
from vitexplain.attention.families import GLOBAL
from vitexplain.attention.last_grid import FEWEST, LastGrid, watch
from vitexplain.attention.readout import has_own_code
from vitexplain.attention.tokens import (
    WINDOWED,
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    token_layout,
)
from vitexplain.methods.base import Choose, chosen_logits, on_grid
from vitexplain.methods.classifier import ClassifierMethod

See = Callable[[Tensor], Tensor]


class GradCam(ClassifierMethod):
    """Grad-CAM of an image classifier, for one category of each image.

    Maps are as coarse as the model's last grid: 7x7 in Swin, and in most CNNs.
    """

    def _layout(self, images: Tensor) -> TokenLayout | None:
        if isinstance(self.model, GLOBAL + WINDOWED) and has_own_code(self.model):
            return token_layout(self.model, *images.shape[2:])  # it says where its patches are
        return super()._layout(images)

    def _scores(
        self, images: Tensor, layout: TokenLayout | None, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        seen: list[Tensor] = []

        def see(features: Tensor) -> Tensor:
            """Autograd begins at what was last seen."""
            seen.append(features.detach().requires_grad_())
            return seen[-1]

        grid = None
        last = None if layout is None else _last_attention(self.model)
        if last is None:
            grid = self._last_grid(images)
            if grid is None:
                height, width = images.shape[2:]
                reason = f"of a {height}x{width} image, {NO_GRID}"
                raise UnsupportedModel(self.model, reason, instead="occlusion")
        with ExitStack() as undo:
            undo.enter_context(
                inference_state(self.model, freeze=True, fused=not isinstance(self.model, WINDOWED))
            )
            if last is None:
                watch(self.model, grid.place, see, undo)
            else:
                _watch_input(last, see, undo)
            logits = self._logits(images)
        if not logits.requires_grad:
            raise UnsupportedModel(self.model, "no gradient passes its head", instead="occlusion")
        categories = choose(logits.detach())
        scores = []
        for logit, again in chosen_logits(logits, categories):
            (gradient,) = torch.autograd.grad(logit, seen[-1:], retain_graph=again)
            scores.append(_weighted_sum(seen[-1].detach(), gradient, grid, layout))
        return scores, logits, categories


class WatchedFeatures:
    """Grad-CAM of the input of a ViT's last attention, in a pass that something else is read from.

    Args:
        model: a shadow of a ViT.
        undo: takes the hooks off again.

    Attributes:
        features: (B, N, C), once the forward pass has been; None where there is no such input.
        gradient: (B, N, C), of the score of the latest backward pass; None if it did not get here,
            as where autograd begins at the last attention.
    """

    def __init__(self, model: nn.Module, undo: ExitStack):
        self.features: Tensor | None = None
        self.gradient: Tensor | None = None
        last = _last_attention(model)
        if last is not None:
            _watch_input(last, self._see, undo)

    def scores(self, layout: TokenLayout) -> np.ndarray:
        """sum_k w_k a_k (B, h, w), of the latest backward pass."""
        return _weighted_sum(self.features, self.gradient, None, layout)

    def _see(self, features: Tensor) -> Tensor:
        self.features = features.detach()
        if features.requires_grad:
            features.register_hook(self._keep)
        return features

    def _keep(self, gradient: Tensor) -> None:
        self.gradient = gradient


NO_GRID = f"no grid of {FEWEST} or more features that its outputs read was seen"


def _last_attention(model: nn.Module) -> nn.Module | None:
    """What reads the tokens of a ViT's last block; None if several branches do."""
    last = blocks_of(model)[-1]
    if isinstance(model, WINDOWED):
        return last.norm1  # attention itself reads windows there
    return getattr(last, "attn", getattr(last, "in_norm", None))


def _watch_input(last: nn.Module, see: See, undo: ExitStack) -> None:
    """Pass what is read by an attention, or comes from the norm before it, through `see`."""
    if "Norm" in type(last).__name__:
        undo.callback(last.register_forward_hook(lambda _m, _i, tokens: see(tokens)).remove)
        return
    hook = last.register_forward_pre_hook
    undo.callback(hook(lambda _m, inputs: (see(inputs[0]), *inputs[1:])).remove)


def _weighted_sum(
    features: Tensor, gradient: Tensor, grid: LastGrid | None, layout: TokenLayout | None
) -> np.ndarray:
    """sum_k w_k a_k (B, h, w) from features, as they lie in the model, and their gradient."""
    if grid is None:
        shape = layout.grid if features.ndim == 3 else tuple(features.shape[1:3])
        grid = LastGrid("", shape, True, layout.prefix_tokens)
    features, gradient = grid.patches(features), grid.patches(gradient)  # (B, h*w, C)
    weights = gradient.mean(dim=1, keepdim=True)  # (B, 1, C)
    return on_grid((weights * features).sum(dim=-1), grid.shape)
