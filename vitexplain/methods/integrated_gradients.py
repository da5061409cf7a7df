"""Integrated gradients: the pixels' gradients on the way from a plain colour to the image.

Sundararajan, Taly & Yan 2017, "Axiomatic Attribution for Deep Networks" (ICML), equations 1 and 3:

    IG_i = (x_i - x'_i) * integral from 0 to 1 of dy_c/dx_i at x' + a (x - x') over a,

x' being the baseline: 0 everywhere, which after the normalisation of the input is the mean colour.
The attributions of all pixels sum to the difference of the logits of x and x' (completeness).

The integral is a sum over STEPS points by Gauss-Legendre quadrature, not in a but in its square
root t, a = t^2 and da = 2 t dt: what a model answers to a faint image changes most at the
beginning, where the points are dense then.

A patch's score is the sum over its pixels and their channels.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from vitexplain.attention.batches import batch_for, notify
from vitexplain.attention.capture import forward, inference_state
from vitexplain.attention.tokens import TokenLayout
from vitexplain.device import in_batches
from vitexplain.methods.base import Choose, chosen_logits, on_grid
from vitexplain.methods.classifier import ClassifierMethod
from vitexplain.methods.patches import patch_sums
from vitexplain.targets import Chosen

# The fewest that keep the attributions of ten photographs within 5 % of the difference of the
# logits: they miss it by 2.1 % on average, at most 4.4 %, with the bundled model, by 1.1 %, at most
# 2.3 %, with DeiT-tiny. With 48 it is up to 8 %, and with points that are even in a up to 12 %.
STEPS = 56
GPU_BATCH = 32  # points per forward and backward pass on a GPU
PATCH = 16  # pixels of the side of a patch where a model has none


class IntegratedGradients(ClassifierMethod):
    """Integrated gradients of a classifier's pixels, for one category of each image.

    An image takes STEPS forward passes, and as many backward passes for each category; as many
    points of the way as suit the device pass together, and fewer where memory does not suffice.

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
            pixels = self._of_pixels(images, categories).sum(dim=2)
        return [on_grid(patch_sums(of, grid, patch), grid) for of in pixels], logits, categories

    def of_pixels(self, images: Tensor, targets: Sequence[Chosen]) -> Tensor:
        """Signed attributions (B, 3, H, W) of B images, of one category or contrast each."""
        return self._of_pixels(images.detach(), [[target] for target in targets])[0]

    def _of_pixels(self, images: Tensor, targets: Sequence[Sequence[Chosen]]) -> Tensor:
        """(K, B, 3, H, W): attributions of K targets of each image."""
        points, weights = quadrature(STEPS)
        integrals = torch.zeros(len(targets[0]), *images.shape).to(images)

        def gradients(places: range) -> list[tuple[int, list[Tensor]]]:
            """For each point, its image's number and K gradients (3, H, W), weighted."""
            steps, numbers = zip(*(divmod(place, len(images)) for place in places), strict=True)
            shares, of_step = (
                images.new_tensor(values[list(steps)])[:, None, None, None]
                for values in (points, weights)
            )
            shown = (images[list(numbers)] * shares).requires_grad_()
            outputs = forward(self.model, shown)
            found = [
                torch.autograd.grad(value, shown, retain_graph=more)[0] * of_step
                for value, more in chosen_logits(outputs, [targets[each] for each in numbers])
            ]
            return list(zip(numbers, zip(*found, strict=True), strict=True))

        size = batch_for(self.model, *images.shape[2:], GPU_BATCH)
        for batch in in_batches(gradients, range(STEPS * len(images)), size, notify):
            for number, of_targets in batch:
                for integral, gradient in zip(integrals[:, number], of_targets, strict=True):
                    integral += gradient
        return integrals * images


def quadrature(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in (0, 1) and weights, (steps,) each, of an integral over 0 to 1.

    Those of Gauss and Legendre in the square root, so that the points are dense near 0.
    """
    roots, weights = np.polynomial.legendre.leggauss(steps)  # of -1 to 1
    roots = (roots + 1) / 2
    return roots**2, weights * roots  # half a weight, times the derivative 2 t
