"""Integrated gradients: the pixels' gradients on the way from a plain colour to the image.

Sundararajan, Taly & Yan 2017, "Axiomatic Attribution for Deep Networks" (ICML), equations 1 and 3:

    IG_i = (x_i - x'_i) * integral from 0 to 1 of dy_c/dx_i at x' + a (x - x') over a,

x' being the baseline: 0 everywhere, which after the normalisation of the input is the mean colour.
The attributions of all pixels sum to the difference of the logits of x and x' (completeness). The
integral is a sum over STEPS points by Gauss-Legendre quadrature, computed by captum.

A patch's score is the sum over its pixels and their channels.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from vitexplain.attention.capture import forward, inference_state
from vitexplain.attention.tokens import TokenLayout
from vitexplain.errors import MissingPackage
from vitexplain.methods.base import Choose, on_grid
from vitexplain.methods.classifier import ClassifierMethod
from vitexplain.methods.patches import patch_sums
from vitexplain.outputs import both_sides
from vitexplain.targets import Chosen, value_of

try:
    from captum.attr import IntegratedGradients as Integral
except ModuleNotFoundError as error:
    raise MissingPackage("integrated gradients need captum: pip install captum") from error

# With 50 steps the attributions of five photographs miss the difference of the logits by 4 % on
# average, at most 7 %, with the bundled model (with 32: 9 %, 22 %), and by at most 4 % with
# DeiT-tiny.
STEPS = 50
PATCH = 16  # pixels of the side of a patch where a model has none


class IntegratedGradients(ClassifierMethod):
    """Integrated gradients of a classifier's pixels, for one category of each image.

    A category takes STEPS forward and backward passes on the whole batch, one after the other, so
    that no more memory is needed than for one.

    A model whose attention can be explained has maps on its patch grid, any other one on patches of
    PATCH pixels, or as near to that as splits the image evenly.
    """

    def _scores(
        self, images: Tensor, layout: TokenLayout | None, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        height, width = images.shape[2:]
        grid, patch = (-(-height // PATCH), -(-width // PATCH)), None
        if layout is not None:
            grid, patch = layout.grid, self._patch_size()
        with ExitStack() as undo:
            undo.enter_context(inference_state(self.model, freeze=True, fused=True))
            with torch.no_grad():
                logits = self._logits(images)
            categories = choose(logits)
            scores = []
            for chosen in zip(*categories, strict=True):
                pixels = self.of_pixels(images, chosen).sum(dim=1)
                scores.append(on_grid(patch_sums(pixels, grid, patch), grid))
        return scores, logits, categories

    def of_pixels(self, images: Tensor, targets: Sequence[Chosen]) -> Tensor:
        """Signed attributions (B, 3, H, W) of B images, of one category or contrast each."""

        def values(points: Tensor) -> Tensor:
            """(B,): each image's target, at one point of its way."""
            outputs = both_sides(forward(self.model, points))
            return torch.stack([value_of(t, row) for t, row in zip(targets, outputs, strict=True)])

        attributions = Integral(values).attribute(
            images.detach().requires_grad_(),
            n_steps=STEPS,
            method="gausslegendre",
            internal_batch_size=len(images),
        )
        return attributions.detach()
