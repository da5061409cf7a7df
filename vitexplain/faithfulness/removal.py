"""How a category's probability changes as the patches that a map ranks are removed.

Petsiuk, Das & Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models"
(section 4.2). Deletion removes patches, the most relevant first: a faithful map makes the
probability fall early. Insertion puts them into an empty image in the same order: it rises early.
Either is summarised by the area under the curve of probability over the share of patches.

Chefer, Gur & Wolf 2021, "Transformer Interpretability Beyond Attention Visualization" (section 4,
perturbation tests): how often the category stays the most likely one while 10 % to 90 % are
removed, the most relevant first (positive) or last (negative).

The papers remove pixels; here whole patches go, as a map has one value for each. The fill, which
takes their place, is the mean colour ("mean"), or the blurred image ("blur"), which leaves no
edges that a model could recognise as something. (Chefer, Gur & Wolf fill with black.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from vitexplain.attention.capture import forward
from vitexplain.attention.checks import images_for
from vitexplain.attention.shadow import shadow_of
from vitexplain.device import in_batches
from vitexplain.errors import RequestError
from vitexplain.faithfulness.passes import BATCH, check_categories, notify
from vitexplain.methods.patches import patches_of_pixels
from vitexplain.outputs import both_sides, probabilities
from vitexplain.targets import Chosen, Target, indices_of

FILLS = ("mean", "blur")
# standard deviation of the blur, as a share of the shorter side: a patch keeps nothing of its own
BLUR = 1 / 14
TENTHS = range(1, 10)


@dataclass(frozen=True)
class Curves:
    """The model's output for B images while patches are removed, or inserted, in S steps.

    Attributes:
        shares: (S + 1,), 0 to 1, the share of the patches removed, or inserted.
        probabilities: (B, S + 1), the category's probability.
        first: (B, S + 1) bool, whether the category is the most likely one.
    """

    shares: np.ndarray
    probabilities: np.ndarray
    first: np.ndarray

    @property
    def areas(self) -> np.ndarray:
        """(B,), the area under each curve of probabilities by the trapezoid rule, 0 to 1."""
        return np.trapezoid(self.probabilities, self.shares, axis=1)


class Removal:
    """Removes patches of B images in the order of any map, each image having one category.

    The whole images and the empty ones are the same for all maps and both directions: they pass
    through the model once. A curve then takes `steps` - 1 passes of each image.

    Args:
        model: gives logits (B, categories); used in evaluation mode, left as it was found.
        images: (B, 3, H, W), normalised: 0 is the mean colour.
        categories: B of them, or contrasts: each category's share of its own and its rivals'
            probabilities, p_a / (p_a + p_b), takes the place of its probability.
        fill: what takes the place of a removed patch, "mean" or "blur".
        steps: the number of roughly equal parts in which patches are removed.
        batch_size: images per forward pass; halved where memory does not suffice.
        seed: of the order of patches with equal values.
        labels: how the outputs become probabilities, "exclusive" or "independent".

    Raises:
        RequestError: if an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        categories: Sequence[Chosen],
        fill: str,
        steps: int = 20,
        *,
        batch_size: int = BATCH,
        seed: int = 0,
        labels: str = "exclusive",
    ):
        if fill not in FILLS:
            raise RequestError(f"fill must be one of {', '.join(FILLS)}, not {fill!r}")
        if steps < 1:
            raise RequestError(f"steps must be at least 1, not {steps}")
        check_categories(model, images, categories)
        self.model = shadow_of(model)
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.labels = labels
        # which outputs compete for each image; False where all of them do
        self.compared = [isinstance(each, Target) and indices_of(each) for each in categories]
        self.images = images_for(model, images)
        own = [indices_of(each)[0] for each in categories]
        self.categories = torch.as_tensor(own, device=self.images.device)
        self.empty = torch.zeros_like(self.images) if fill == "mean" else blurred(self.images)
        indices = torch.arange(len(images), device=self.images.device)
        self._at_whole = self._batches(lambda i: self._outputs(self.images[i], i), indices)
        self._at_empty = self._batches(lambda i: self._outputs(self.empty[i], i), indices)

    def deletion(self, masks: np.ndarray) -> Curves:
        """Curves of removal by maps (B, h, w), the most relevant patch first: low is good."""
        return self._curves(masks, insert=False)

    def insertion(self, masks: np.ndarray) -> Curves:
        """Curves of insertion by maps (B, h, w), the most relevant patch first: high is good."""
        return self._curves(masks, insert=True)

    def _curves(self, masks: np.ndarray, *, insert: bool) -> Curves:
        count = len(self.images)
        if masks.ndim != 3 or len(masks) != count:
            raise RequestError(f"{count} images need as many masks (h, w), not {masks.shape}")
        device = self.images.device
        ranks = torch.from_numpy(patch_ranks(masks, self.seed)).to(device)  # (B, h*w)
        patch_of_pixel = patches_of_pixels(masks.shape[1:], self.images.shape[2:]).to(device)
        patches = masks[0].size
        # how many patches have moved after each step
        moved = [round(step * patches / self.steps) for step in range(self.steps + 1)]

        def run(pairs: Tensor) -> np.ndarray:
            """Outputs (b, 2) for b pairs (index of an image, number of patches moved)."""
            indices, numbers = pairs.T
            has_moved = ranks[indices] < numbers[:, None]  # (b, h*w)
            visible = has_moved if insert else ~has_moved
            visible = visible[:, patch_of_pixel][:, None]  # (b, 1, H, W)
            shown = torch.where(visible, self.images[indices], self.empty[indices])
            return self._outputs(shown, indices)

        pairs = torch.tensor([(index, number) for index in range(count) for number in moved[1:-1]])
        inner = self._batches(run, pairs.reshape(-1, 2).to(device))
        inner = inner.reshape(count, self.steps - 1, 2)
        begin, end = self._at_whole, self._at_empty
        if insert:
            begin, end = end, begin
        outputs = np.concatenate([begin[:, None], inner, end[:, None]], axis=1)  # (B, S + 1, 2)
        return Curves(np.array(moved) / patches, outputs[..., 0], outputs[..., 1] > 0)

    def _batches(self, run: Callable[[Tensor], np.ndarray], items: Tensor) -> np.ndarray:
        with torch.inference_mode():
            outputs = list(in_batches(run, items, self.batch_size, notify))
        return np.concatenate([np.empty((0, 2)), *outputs])

    def _outputs(self, shown: Tensor, indices: Tensor) -> np.ndarray:
        """The model's output for b images, made from those at `indices`.

        (b, 2): the category's probability, and 1 where the category is the most likely one; where
        it has rivals, its share of their probabilities, and 1 where it is the most likely of them.
        """
        logits = forward(self.model, shown).float()
        wanted = self.categories[indices]
        shares, ranked = probabilities(logits, self.labels), both_sides(logits)
        if any(self.compared):
            compared = torch.zeros_like(shares, dtype=torch.bool)
            for row, index in zip(compared, indices.tolist(), strict=True):
                row[list(self.compared[index])] = True
            shares = shares.where(compared, 0)
            shares = shares / shares.sum(dim=1, keepdim=True)
            ranked = ranked.where(compared, -torch.inf)
        probability = shares.gather(1, wanted[:, None])[:, 0]
        first = ranked.argmax(dim=1) == wanted
        return torch.stack([probability, first.float()], dim=1).cpu().double().numpy()


def perturbation(deletion: Curves, insertion: Curves) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative), (B,) each: how often the category stays the most likely one.

    Of 10 %, 20 %, ... 90 % of the patches removed, the share at which it does; the most relevant
    patches go first (positive: low is good), or last (negative: high is good). Removing the least
    relevant 10 % is the same as inserting the most relevant 90 %, so that the curves (of the same
    fill, in a multiple of 10 steps) hold all that is needed.

    Raises:
        RequestError: if the curves have no such steps.
    """
    steps = len(deletion.shares) - 1
    if steps % 10 or insertion.shares.shape != deletion.shares.shape:
        raise RequestError(f"the perturbation test needs curves in 10, 20, ... steps, not {steps}")
    at = [steps * tenth // 10 for tenth in TENTHS]
    return deletion.first[:, at].mean(axis=1), insertion.first[:, at].mean(axis=1)


def patch_ranks(masks: np.ndarray, seed: int = 0) -> np.ndarray:
    """(B, h, w) -> (B, h*w): each patch's rank by relevance, 0 the most relevant.

    A random order, the same for all images, decides among equal values: if position did, maps with
    many equal values (zeros, after a discard) would be scored by where those patches are.
    """
    values = masks.reshape(len(masks), -1)
    lots = np.random.default_rng(seed).permutation(values.shape[1])
    order = np.lexsort((np.broadcast_to(lots, values.shape), -values), axis=1)
    return np.argsort(order, axis=1)


def blurred(images: Tensor) -> Tensor:
    """(B, C, H, W) under a Gaussian of BLUR times the shorter side; edges are mirrored."""
    shorter = min(images.shape[2:])
    sigma = BLUR * shorter
    side = 2 * min(math.ceil(3 * sigma), shorter - 1) + 1  # of the kernel
    # down, then across: torchvision would convolve with a square, at over 20 times the cost
    down = gaussian_blur(images, [1, side], [sigma, sigma])
    return gaussian_blur(down, [side, 1], [sigma, sigma])
