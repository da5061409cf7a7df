"""Occlusion: what an image's score loses when one patch of it is covered.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks" (ECCV, section 4.2):

    S_p = y_c(x) - y_c(x with patch p covered by 0),

0 being the mean colour of the input, after its normalisation. It needs no gradients and no look
inside, and asks the question that deletion asks, of one patch at a time: where several patches tell
the same, covering one of them changes little.
"""

import numpy as np
import torch
from torch import Tensor

from vitexplain.attention.batches import notify
from vitexplain.attention.capture import forward, inference_state
from vitexplain.attention.tokens import WINDOWED, TokenLayout
from vitexplain.device import in_batches
from vitexplain.methods.base import Choose, on_grid
from vitexplain.methods.classifier import ClassifierMethod
from vitexplain.methods.patches import patches_of_pixels
from vitexplain.outputs import both_sides
from vitexplain.targets import value_of

CPU_BATCH, GPU_BATCH = 16, 64  # covered images per forward pass
PATCH = 32  # pixels of the side of a patch where a model has no grid


class Occlusion(ClassifierMethod):
    """Occlusion of an image classifier, for one category of each image.

    Patches are a ViT's own; in any other model, and in Swin, an image is split into as many as its
    last grid has places. An image takes one forward pass for each patch; all categories of it are
    answered by the same passes.
    """

    @torch.no_grad()
    def _scores(
        self, images: Tensor, layout: TokenLayout | None, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        with inference_state(self.model, freeze=True, fused=True):
            logits = self._logits(images)
            grid, patch = self._patches(images, layout)
            categories = choose(logits)
            index = patches_of_pixels(grid, tuple(images.shape[2:]), patch).to(images.device)
            covered = [self._covered(image, index, grid[0] * grid[1]) for image in images]
        scores = []
        for number in range(len(categories[0])):
            lost = [
                value_of(of[number], row) - torch.stack([value_of(of[number], r) for r in rows])
                for of, row, rows in zip(categories, both_sides(logits), covered, strict=True)
            ]
            scores.append(on_grid(torch.stack(lost), grid))
        return scores, logits, categories

    def _patches(
        self, images: Tensor, layout: TokenLayout | None
    ) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """The grid of patches, and a ViT's own size of them."""
        if layout is not None and not isinstance(self.model, WINDOWED):
            return layout.grid, self._patch_size()
        found = self._last_grid(images)
        if found is not None:
            return found.shape, None
        return tuple(-(-pixels // PATCH) for pixels in images.shape[2:]), None

    def _covered(self, image: Tensor, index: Tensor, count: int) -> Tensor:
        """(count, K): the outputs for one image (C, H, W) with each of its patches covered.

        Images don't share batches: each has the same map in any company.
        """

        def run(patches: Tensor) -> Tensor:
            is_covered = index == patches[:, None, None]  # (b, H, W)
            return both_sides(forward(self.model, image.where(~is_covered[:, None], 0)))

        size = CPU_BATCH if image.device.type == "cpu" else GPU_BATCH
        patches = torch.arange(count, device=image.device)
        return torch.cat(list(in_batches(run, patches, size, notify)))
