"""What becomes of a category's probability when the patches that a map names are removed.

Petsiuk, Das & Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models"
(section 4.2): in deletion patches go, the most relevant first, and a faithful map makes the
probability fall soon; in insertion they are put into an empty image in the same order, and it
rises soon. Either is the area under the curve of the probability over the share of patches.

Chefer, Gur & Wolf 2021, "Transformer Interpretability Beyond Attention Visualization" (section 4,
perturbation tests): how often the category is still the most likely while 10 % to 90 % are removed,
the most relevant first (positive) or last (negative).

The papers remove pixels. Here whole patches go: a map has one value for each. What stands in
their place, the fill, is the mean colour ("mean"), or the blurred image ("blur"), which
leaves no edges that a model could take for something. (Chefer, Gur & Wolf remove to black.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitexplain.attention.capture import forward
from vitexplain.attention.checks import images_for
from vitexplain.device import in_batches
from vitexplain.errors import RequestError
from vitexplain.faithfulness.passes import BATCH, check_categories, evaluation_mode, tell

FILLS = ("mean", "blur")
# of the blur, as a share of the shorter side: nothing of a patch's own is left
BLUR = 1 / 14
TENTHS = range(1, 10)


@dataclass(frozen=True)
class Curves:
    """What the model says of B images while patches are removed, or put in, in S steps.

    Attributes:
        shares: (S + 1,), 0 to 1, the share of the patches removed, or put in.
        probabilities: (B, S + 1), the category's probability.
        first: (B, S + 1) bool, whether the category is the most likely.
    """

    shares: np.ndarray
    probabilities: np.ndarray
    first: np.ndarray

    @property
    def areas(self) -> np.ndarray:
        """(B,), the area under each curve of probabilities by the trapezoid rule, 0 to 1."""
        return np.trapezoid(self.probabilities, self.shares, axis=1)


class Removal:
    """B images with one category each, whose patches can be removed as any map says.

    The whole image and the one without any patch are the same for all maps and both directions:
    they pass the model once. A curve then takes `steps` - 1 passes of each image.

    Args:
        model: gives logits (B, categories); used in evaluation mode, left as it was found.
        images: (B, 3, H, W), normalised: 0 is the mean colour.
        categories: B of them.
        fill: what stands in place of a removed patch, "mean" or "blur".
        steps: in how many about equal parts the patches go.
        batch_size: images that the model gets at once; halved where memory does not suffice.
        seed: of the order of patches with equal values.

    Raises:
        RequestError: if an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        categories: Sequence[int],
        fill: str,
        steps: int = 20,
        *,
        batch_size: int = BATCH,
        seed: int = 0,
    ):
        if fill not in FILLS:
            raise RequestError(f"fill must be one of {', '.join(FILLS)}, not {fill!r}")
        if steps < 1:
            raise RequestError(f"steps must be at least 1, not {steps}")
        check_categories(model, images, categories)
        self.model, self.steps, self.batch_size, self.seed = model, steps, batch_size, seed
        self.images = images_for(model, images)
        self.categories = torch.as_tensor(categories, device=self.images.device)
        self.fill = torch.zeros_like(self.images) if fill == "mean" else blurred(self.images)
        places = torch.arange(len(images), device=self.images.device)
        self._whole = self._batches(lambda i: self._told(self.images[i], i), places)
        self._empty = self._batches(lambda i: self._told(self.fill[i], i), places)

    def deletion(self, masks: np.ndarray) -> Curves:
        """Patches removed as masks (B, h, w) say, the most relevant first: low areas are good."""
        return self._curves(masks, insert=False)

    def insertion(self, masks: np.ndarray) -> Curves:
        """Patches put in as masks (B, h, w) say, the most relevant first: high areas are good."""
        return self._curves(masks, insert=True)

    def _curves(self, masks: np.ndarray, *, insert: bool) -> Curves:
        count = len(self.images)
        if masks.ndim != 3 or len(masks) != count:
            raise RequestError(f"{count} images need as many masks (h, w), not {masks.shape}")
        device = self.images.device
        ranks = torch.from_numpy(patch_ranks(masks, self.seed)).to(device)  # (B, h*w)
        patch_of_pixel = patches_of_pixels(masks.shape[1:], self.images.shape[2:]).to(device)
        patches = masks[0].size
        moved = [round(step * patches / self.steps) for step in range(self.steps + 1)]

        def run(pairs: Tensor) -> np.ndarray:
            places, so_many = pairs.T
            of_map = ranks[places] < so_many[:, None]  # (b, h*w), the patches that have moved
            seen = of_map if insert else ~of_map
            seen = seen[:, patch_of_pixel][:, None]  # (b, 1, H, W)
            shown = torch.where(seen, self.images[places], self.fill[places])
            return self._told(shown, places)

        pairs = torch.tensor([(i, so_many) for i in range(count) for so_many in moved[1:-1]])
        inner = self._batches(run, pairs.reshape(-1, 2).to(device))
        begin, end = (self._empty, self._whole) if insert else (self._whole, self._empty)
        inner = inner.reshape(count, self.steps - 1, 2)
        told = np.concatenate([begin[:, None], inner, end[:, None]], axis=1)  # (B, S + 1, 2)
        return Curves(np.array(moved) / patches, told[..., 0], told[..., 1] > 0)

    def _batches(self, run: Callable[[Tensor], np.ndarray], items: Tensor) -> np.ndarray:
        with torch.inference_mode(), evaluation_mode(self.model):
            found = list(in_batches(run, items, self.batch_size, tell))
        return np.concatenate([np.empty((0, 2)), *found])

    def _told(self, shown: Tensor, places: Tensor) -> np.ndarray:
        """What the model says of b images, made of the images at `places`.

        (b, 2): the category's probability, and 1 where it is the most likely.
        """
        logits = forward(self.model, shown).float()
        wanted = self.categories[places]
        probability = logits.softmax(dim=1).gather(1, wanted[:, None])[:, 0]
        first = logits.argmax(dim=1) == wanted
        return torch.stack([probability, first.float()], dim=1).cpu().double().numpy()


def perturbation(deletion: Curves, insertion: Curves) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative), (B,) each: the share of 10 %, 20 %, ... 90 % removed at which the
    category is still the most likely, the most relevant patches going first, or last.

    Low is good in positive, high in negative. To remove the least relevant 10 % is to put in the
    most relevant 90 %: the curves (of one fill, in a multiple of 10 steps) say it all.

    Raises:
        RequestError: if the curves have no such steps.
    """
    steps = len(deletion.shares) - 1
    if steps % 10 or insertion.shares.shape != deletion.shares.shape:
        raise RequestError(f"the perturbation test needs curves in 10, 20, ... steps, not {steps}")
    at = [steps * tenth // 10 for tenth in TENTHS]
    return deletion.first[:, at].mean(axis=1), insertion.first[:, at].mean(axis=1)


def patch_ranks(masks: np.ndarray, seed: int = 0) -> np.ndarray:
    """(B, h, w) -> (B, h*w): each patch's place in the order of relevance, 0 the most relevant.

    Among equal values a random order decides, the same for all images: were it the position,
    maps with many equal values (nothing, after a discard) would be measured by where they look.
    """
    values = masks.reshape(len(masks), -1)
    lots = np.random.default_rng(seed).permutation(values.shape[1])
    order = np.lexsort((np.broadcast_to(lots, values.shape), -values), axis=1)
    return np.argsort(order, axis=1)


def patches_of_pixels(grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(H, W): which of the h*w patches, row by row, each pixel belongs to."""
    rows, columns = (
        torch.arange(pixels) * patches // pixels for pixels, patches in zip(size, grid, strict=True)
    )
    return rows[:, None] * grid[1] + columns


def blurred(images: Tensor) -> Tensor:
    """(B, C, H, W) under a Gaussian of BLUR times the shorter side; edges are mirrored."""
    sigma = BLUR * min(images.shape[2:])
    radius = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(images.dtype)
    planes = F.pad(images, [radius] * 4, mode="reflect").flatten(0, 1)[:, None]  # (B*C, 1, ...)
    planes = F.conv2d(F.conv2d(planes, kernel[None, None, :, None]), kernel[None, None, None])
    return planes.reshape(images.shape)
