"""Does a map tell the object from its background? The protocol of Chefer, Gur & Wolf (CVPR 2021).

Their section 4, "Segmentation": the map of an image's category is enlarged bilinearly to the size
of the model's input, and what lies above its own mean is taken for the object. Against the mask,
pixel by pixel (TP: object found, FP: background taken for it, FN: object missed, TN):

    pixel accuracy = (TP + TN) / all       foreground IoU = TP / (TP + FP + FN)
    mIoU = its mean with the IoU of the background, TN / (TN + FP + FN)
    AP = sum over thresholds t of (R_t - R_t-1) P_t, the enlarged map as a score of "object"

What is measured is what is drawn, `Explanation.masks`, not the signed scores that patches are
ranked by: a threshold at the mean is one of a heatmap. Means over images have intervals and pairs.
Published figures are made otherwise, see `totals`: accuracy and IoU are of all pixels of the data
together, and each image's AP is of both classes at once, r for "object" and 1 - r for "background",
the enlarged map r scaled to 0 to 1.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn.functional import interpolate

from vitexplain.errors import RequestError
from vitexplain.faithfulness.table import Measure

BACKGROUND, OBJECT, UNKNOWN = 0, 1, 255  # in a mask; what is unknown is not counted
MASKED = "images with masks"
SEGMENTED = (
    Measure("pixel_accuracy", "Pixel accuracy ↑", "higher", MASKED),
    Measure("ap", "AP ↑", "higher", MASKED),
    Measure("iou", "mIoU ↑", "higher", MASKED),
    Measure("foreground_iou", "Foreground IoU ↑", "higher", MASKED),
)
# of one image, for `totals`: pixels, and an AP
COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")
BOTH_CLASSES = "ap_both_classes"


def segmented(mask: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The values of SEGMENTED and BOTH_CLASSES, 0 to 1, and of COUNTS, in pixels, of one map.

    Args:
        mask: (h, w), the map; larger values for the object.
        truth: (H, W) at the size of the model's input: BACKGROUND, OBJECT or UNKNOWN.

    Raises:
        RequestError: if the truth has other values, or no pixel of the object.
    """
    if others := other_values(truth):
        raise RequestError(
            f"a mask has the values {BACKGROUND} (background), {OBJECT} (object) and {UNKNOWN} "
            f"(unknown), not {min(others)}"
        )
    if not (truth == OBJECT).any():
        raise RequestError(f"the mask has no object, which is {OBJECT} in it")
    whole = enlarged(mask, *truth.shape)
    counted = truth != UNKNOWN
    score, is_object = whole[counted], truth[counted] == OBJECT
    taken = score > whole.mean()
    scaled = (score - whole.min()) / (np.ptp(whole) or 1)
    counts = (
        (is_object & taken).sum(),
        (~is_object & taken).sum(),
        (is_object & ~taken).sum(),
        (~is_object & ~taken).sum(),
    )
    accuracy, both, foreground = _shares(*map(float, counts))
    return {
        "pixel_accuracy": accuracy,
        "ap": average_precision(score, is_object),
        "iou": both,
        "foreground_iou": foreground,
        BOTH_CLASSES: average_precision(
            np.concatenate([scaled, 1 - scaled]), np.concatenate([is_object, ~is_object])
        ),
        **dict(zip(COUNTS, map(float, counts), strict=True)),
    }


def other_values(truth: np.ndarray) -> set[int]:
    """What a mask holds besides BACKGROUND, OBJECT and UNKNOWN."""
    return set(np.unique(truth).tolist()) - {BACKGROUND, OBJECT, UNKNOWN}


def totals(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """SEGMENTED as published, 0 to 1, from what `segmented` gives of one method for M images.

    One value each, of all pixels of the data together; AP is the mean of BOTH_CLASSES.

    Args:
        values: COUNTS and BOTH_CLASSES, (M,) each.
    """
    accuracy, both, foreground = _shares(*(float(np.sum(values[key])) for key in COUNTS))
    precision = float(np.mean(values[BOTH_CLASSES]))
    figures = accuracy, precision, both, foreground
    return {measure.key: figure for measure, figure in zip(SEGMENTED, figures, strict=True)}


def enlarged(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map (h, w), less its minimum, enlarged bilinearly to (height, width) float64.

    Without the minimum, an even map is 0 everywhere, and no rounding lifts pixels above its mean.
    """
    heat = torch.from_numpy(np.asarray(mask, dtype=np.float64))
    heat = (heat - heat.min())[None, None]
    return interpolate(heat, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


def average_precision(scores: np.ndarray, is_object: np.ndarray) -> float:
    """Sum of (R_t - R_t-1) P_t over the thresholds t, from high to low, without interpolation.

    Args:
        scores: (n,); equal ones pass a threshold together.
        is_object: (n,) bool, at least one of them true.
    """
    order = np.argsort(-scores)  # in any order among equals: only their last one is read
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each group of equals
    found = np.cumsum(is_object[order])[last]
    recall = found / found[-1]
    return float(np.sum(np.diff(recall, prepend=0) * found / (last + 1)))


def _shares(hits: float, false: float, missed: float, rest: float) -> tuple[float, float, float]:
    """(pixel accuracy, mean IoU, IoU of the object); a class that nobody sees does not count."""
    wrong = false + missed
    foreground = hits / (hits + wrong)
    both = foreground if rest + wrong == 0 else (foreground + rest / (rest + wrong)) / 2
    return (hits + rest) / (hits + rest + wrong), both, foreground
