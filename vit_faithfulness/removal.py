"""Patches are taken away, or put back, in the order of a map, and the model is asked each time.

Petsiuk, Das & Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
section 4.2: deletion takes the most important patches away first, and the category's probability
should fall fast; insertion puts them back first into a picture without any, and it should rise
fast. Both are areas under the curve over the share of patches, from 0 to 1.

Chefer, Gur & Wolf 2021, "Transformer Interpretability Beyond Attention Visualization", section 4:
10 % to 90 % of the patches are taken away, the most important first (positive) or the least
important first (negative), and the share of pictures whose category is still the likeliest is
counted.

What is taken away is replaced by a baseline: "mean", the mean colour of the model's training data
(0 after normalisation), or "blur", the picture strongly blurred, which leaves no sharp edges to
look at. Whole patches are replaced, as the model itself sees nothing smaller.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_checks import pictures_for

BASELINES = ("mean", "blur")
SHARES = np.linspace(0.1, 0.9, 9)  # of patches, in the perturbation test
BATCH = 16
BLUR = 1 / 12  # standard deviation of the blur, as a share of the picture's shorter side


def deletion(
    model: nn.Module, pictures: Tensor, masks: np.ndarray, categories: list[int],
    baseline: str = "mean", steps: int = 20,
) -> np.ndarray:  # fmt: skip
    """Probabilities (B, steps + 1) as the most important patches go; lower is better.

    Args:
        model: a classifier in evaluation mode.
        pictures: (B, 3, H, W), normalised as the model wants them.
        masks: (B, h, w) for any grid.
        categories: B of them.

    Raises:
        ValueError: if the baseline is unknown.
    """
    shares = np.linspace(0, 1, steps + 1)
    ranks = ranks_of(masks)
    return _curves(model, pictures, replaced(pictures, baseline), ranks, categories, shares)[0]


def insertion(
    model: nn.Module, pictures: Tensor, masks: np.ndarray, categories: list[int],
    baseline: str = "blur", steps: int = 20,
) -> np.ndarray:  # fmt: skip
    """Probabilities (B, steps + 1) as the most important patches come back; higher is better.

    Arguments and errors as for `deletion`.
    """
    shares = np.linspace(0, 1, steps + 1)
    ranks = ranks_of(masks)
    return _curves(model, replaced(pictures, baseline), pictures, ranks, categories, shares)[0]


def perturbation(
    model: nn.Module, pictures: Tensor, masks: np.ndarray, categories: list[int], *,
    positive: bool, baseline: str = "mean",
) -> np.ndarray:  # fmt: skip
    """(B, 9) bool: is the category still the likeliest, with 10 % to 90 % of the patches gone.

    Args:
        positive: the most important patches go first (fewer stay right: better); else the least
            important (more stay right: better).
    """
    ranks = ranks_of(masks)
    ranks = ranks if positive else masks[0].size - 1 - ranks
    return _curves(model, pictures, replaced(pictures, baseline), ranks, categories, SHARES)[1]


def area(curves: np.ndarray) -> np.ndarray:
    """(B, steps + 1) -> (B,), by the trapezoid rule over 0 to 1."""
    return np.trapezoid(curves, dx=1 / (curves.shape[1] - 1), axis=1)


def ranks_of(masks: np.ndarray, seed: int = 0) -> np.ndarray:
    """(B, h, w) ints: 0 for the most important patch. Ties are in a random order.

    Were they in that of the patches, a map with large flat parts would be measured by its layout.
    """
    count = masks[0].size
    shuffled = np.random.default_rng(seed).permutation(count)
    ranks = np.empty((len(masks), count), np.int64)
    for row, values in zip(ranks, masks.reshape(len(masks), -1), strict=True):
        order = shuffled[np.argsort(-values[shuffled], kind="stable")]
        row[order] = np.arange(count)
    return ranks.reshape(masks.shape)


def replaced(pictures: Tensor, baseline: str) -> Tensor:
    """What stands in place of patches that are taken away, (B, 3, H, W).

    Raises:
        ValueError: if the baseline is unknown.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, not {baseline!r}")
    return torch.zeros_like(pictures) if baseline == "mean" else _blurred(pictures)


def _blurred(pictures: Tensor) -> Tensor:
    """By a Gaussian, first along one side, then along the other; edges are mirrored."""
    deviation = BLUR * min(pictures.shape[2:])
    radius = min(round(3 * deviation), min(pictures.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=pictures.device, dtype=pictures.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    across = F.conv2d(F.pad(pictures, (radius, radius, 0, 0), "reflect"), kernel, groups=3)
    down = kernel.transpose(2, 3)
    return F.conv2d(F.pad(across, (0, 0, radius, radius), "reflect"), down, groups=3)


def _curves(
    model: nn.Module,
    pictures: Tensor,
    others: Tensor,
    ranks: np.ndarray,
    categories: list[int],
    shares: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Probability, and whether it is the highest, (B, shares) each.

    At each share, that of the patches with the lowest ranks is taken from `others`.
    """
    probabilities = np.empty((len(pictures), len(shares)))
    likeliest = np.empty(probabilities.shape, dtype=bool)
    gone = np.round(shares * ranks[0].size).astype(int)
    for (number, step), mixed in _mixed(pictures, others, ranks, gone):
        with torch.inference_mode():
            logits = model(pictures_for(model, mixed)).float()
        chosen = torch.tensor([categories[n] for n in number], device=logits.device)
        found = logits.softmax(dim=1).gather(1, chosen[:, None])[:, 0]
        probabilities[number, step] = found.cpu().numpy()
        likeliest[number, step] = (logits.argmax(dim=1) == chosen).cpu().numpy()
    return probabilities, likeliest


def _mixed(
    pictures: Tensor, others: Tensor, ranks: np.ndarray, gone: np.ndarray
) -> Iterator[tuple[tuple[list[int], list[int]], Tensor]]:
    """Batches of mixtures of all pictures, all steps, and which ones they are."""
    size = pictures.shape[2:]
    ranks_there = torch.from_numpy(ranks)[:, None].to(pictures.device)  # (B, 1, h, w)
    pairs = [(number, step) for number in range(len(pictures)) for step in range(len(gone))]
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        number, step = (list(each) for each in zip(*batch, strict=True))
        limits = torch.as_tensor(gone[step], device=pictures.device)[:, None, None, None]
        away = (ranks_there[number] < limits).to(pictures.dtype)
        away = F.interpolate(away, size, mode="nearest")
        yield (number, step), torch.where(away.bool(), others[number], pictures[number])
