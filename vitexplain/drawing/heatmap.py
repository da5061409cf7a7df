"""Draw a map as a heatmap over the part of the image that the model saw. RGB throughout."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from vitexplain.errors import RequestError
from vitexplain.images.region import Region

COLORMAPS = tuple(sorted(name[9:].lower() for name in dir(cv2) if name.startswith("COLORMAP_")))
BAND = 1 << 18  # pixels that are coloured at a time
OUTSIDE = 0.35  # brightness of what the model did not see


def draw_overlay(
    image: Image.Image,
    mask: np.ndarray,
    region: Region | None = None,
    alpha: float = 0.5,
    colormap: str = "turbo",
) -> Image.Image:
    """`image` with the map as a heatmap over `region`, at the image's own size.

    Args:
        image: RGB.
        mask: the map, (h, w), any range; stretched to 0..1 before it is drawn.
        region: (left, top, right, bottom) in the image's pixels that the map covers; None for
            all of it. The rest of the image is darkened, and the region framed. Where the region
            extends beyond the image, as with padding, that part of the map is left out.
        alpha: weight of the heatmap, 0 (image only) to 1 (heatmap only).
        colormap: name of an OpenCV colour map.

    Raises:
        RequestError: if alpha or the colour map is not allowed.
    """
    check_style(alpha, colormap)
    width, height = image.size
    mask, region = on_the_image(mask, Region(*(region or (0, 0, width, height))), width, height)
    left, top, right, bottom = _whole_pixels(region, width, height)
    levels = _levels(mask, region, (left, top, right, bottom))
    whole = levels.shape == (height, width)
    if whole:
        canvas = np.empty((height, width, 3), np.uint8)
    else:
        pixels = np.asarray(image)
        canvas = cv2.convertScaleAbs(pixels, alpha=OUTSIDE)
    rows = max(1, BAND // levels.shape[1])
    for start in range(0, len(levels), rows):
        heat = colored(levels[start : start + rows], colormap)
        above, below = top + start, top + start + len(heat)
        # a large photograph is not copied whole
        seen = np.asarray(image.crop((0, above, width, below))) if whole else pixels[above:below]
        blended = cv2.addWeighted(seen[:, left:right], 1 - alpha, heat, alpha, 0)
        canvas[above:below, left:right] = blended
    if not whole:
        line = max(1, round(min(height, width) / 300))
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), (255, 255, 255), line)
    return Image.fromarray(canvas)


def check_style(alpha: float, colormap: str) -> None:
    """Raise RequestError unless alpha and the colour map are allowed."""
    if not 0 <= alpha <= 1:
        raise RequestError(f"alpha must be from 0 to 1, not {alpha}")
    if colormap not in COLORMAPS:
        raise RequestError(f"colormap must be one of {', '.join(COLORMAPS)}, not {colormap!r}")


def stretch(mask: np.ndarray) -> np.ndarray:
    """Stretch linearly to 0..1; a constant map becomes 0, as nothing stands out."""
    low, high = float(mask.min()), float(mask.max())
    return (mask - low) / (high - low) if high > low else np.zeros_like(mask)


def enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The map (h, w), stretched and smoothly enlarged to width x height, as uint8.

    In 8 bits, like the colour map: many times faster than in floats on a large photograph.
    """
    levels = np.uint8(np.round(255 * stretch(mask)))
    return cv2.resize(levels, size, interpolation=cv2.INTER_CUBIC)


def colored(levels: np.ndarray, colormap: str) -> np.ndarray:
    """uint8 (H, W) -> (H, W, 3) RGB."""
    code = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    return cv2.cvtColor(cv2.applyColorMap(levels, code), cv2.COLOR_BGR2RGB)


def color_bar(width: int, height: int, colormap: str) -> Image.Image:
    """The colours of a map from its smallest value (left) to its largest."""
    levels = np.uint8(np.linspace(0, 255, width))[None].repeat(height, axis=0)
    return Image.fromarray(colored(levels, colormap))


def on_the_image(
    mask: np.ndarray, region: Region, width: int, height: int
) -> tuple[np.ndarray, Region]:
    """The patches that touch the image, and the region that these cover."""
    (first_row, last_row, top, bottom), (first, last, left, right) = (
        _touching(patches, start, end, side)
        for patches, start, end, side in (
            (mask.shape[0], region.top, region.bottom, height),
            (mask.shape[1], region.left, region.right, width),
        )
    )
    return mask[first_row:last_row, first:last], Region(left, top, right, bottom)


def _touching(patches: int, start: float, end: float, side: int):
    """(first, last + 1, start, end) of those of `patches` that touch 0 to `side`."""
    step = (end - start) / patches
    first = min(max(0, math.floor(-start / step + 1e-6)), patches - 1)
    last = max(min(patches, math.ceil((side - start) / step - 1e-6)), first + 1)
    return first, last, start + first * step, start + last * step


def _levels(mask: np.ndarray, region: Region, visible: Sequence[int]) -> np.ndarray:
    """The `visible` part of the map enlarged to its `region`, (H, W) uint8."""
    left, top, right, bottom = (round(edge) for edge in region)
    size = max(right - left, 1), max(bottom - top, 1)
    levels = enlarged(mask, size)
    # rounding can leave the visible part a pixel outside: there the edge is repeated
    across = np.clip(np.arange(visible[0], visible[2]) - left, 0, size[0] - 1)
    down = np.clip(np.arange(visible[1], visible[3]) - top, 0, size[1] - 1)
    if (len(across), len(down)) != size:
        levels = levels[down[:, None], across]
    return levels


def _whole_pixels(region: Region, width: int, height: int) -> tuple[int, int, int, int]:
    """The region rounded to pixels of the image, at least one pixel large."""
    left, top, right, bottom = region
    left = min(max(round(left), 0), width - 1)
    top = min(max(round(top), 0), height - 1)
    right = min(max(round(right), left + 1), width)
    bottom = min(max(round(bottom), top + 1), height)
    return left, top, right, bottom
