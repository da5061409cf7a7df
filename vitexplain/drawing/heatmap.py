"""Draw a map as a heatmap over the part of the image that the model saw. RGB throughout."""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from vitexplain.errors import RequestError
from vitexplain.images.region import Region

COLORMAPS = tuple(sorted(name[9:].lower() for name in dir(cv2) if name.startswith("COLORMAP_")))
BAND = 1 << 18  # pixels that are coloured at a time
FOR, AGAINST = (202, 0, 32), (5, 90, 190)  # the two sides of a signed map
# what the ends of their scales mean
OF_ONE_SIDE = "weakest", "strongest patch of each map"
OF_TWO_SIDES = "for the others", "for the category"
OUTSIDE = 0.35  # brightness of what the model did not see


def draw_overlay(
    image: Image.Image,
    mask: np.ndarray,
    region: Region | None = None,
    alpha: float = 0.5,
    colormap: str = "turbo",
    *,
    signed: bool = False,
) -> Image.Image:
    """`image` with the map as a heatmap over `region`, at the image's own size.

    Args:
        image: RGB.
        mask: the map, (h, w), any range; stretched to 0..1 before it is drawn. Signed, -1 to 1.
        region: (left, top, right, bottom) in the image's pixels that the map covers; None for
            all of it. The rest of the image is darkened, and the region framed. Where the region
            extends beyond the image, as with padding, that part of the map is left out.
        alpha: weight of the heatmap, 0 (image only) to 1 (heatmap only).
        colormap: name of an OpenCV colour map.
        signed: what is positive is drawn red, what is negative blue, the stronger the less of the
            image is seen through it.

    Raises:
        RequestError: if alpha or the colour map is not allowed.
    """
    return Image.fromarray(overlay_pixels(image, mask, region, alpha, colormap, signed=signed))


def overlay_pixels(
    image: Image.Image,
    mask: np.ndarray,
    region: Region | None,
    alpha: float,
    colormap: str,
    *,
    signed: bool,
    channels: int = 3,
) -> np.ndarray:
    """As draw_overlay, (H, W, channels) uint8.

    Args:
        channels: 3 for RGB; 4 with an unused one, which is how Pillow holds images: what it writes
            is not copied then.
    """
    check_style(alpha, colormap)
    paint = (_two_sides if signed else _heat)(alpha, colormap, channels)
    width, height = image.size
    mask, region = on_the_image(mask, Region(*(region or (0, 0, width, height))), width, height)
    left, top, right, bottom = _whole_pixels(region, width, height)
    levels = _levels(levels_of(mask, signed=signed), region, (left, top, right, bottom))
    whole = levels.shape == (height, width)
    canvas = np.empty((height, width, channels), np.uint8)
    rows = max(1, BAND // width)
    for above in range(0, height, rows):  # a large photograph is not copied whole
        below = min(above + rows, height)
        seen = _pixels(image.crop((0, above, width, below)), channels)
        if not whole:
            canvas[above:below] = cv2.convertScaleAbs(seen, alpha=OUTSIDE)
        first, last = max(above, top), min(below, bottom)
        if first < last:
            inside = seen[first - above : last - above, left:right]
            paint(inside, levels[first - top : last - top], canvas[first:last, left:right])
    if not whole:
        line = max(1, round(min(height, width) / 300))
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), (255,) * channels, line)
    return canvas


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
    return smooth(levels_of(mask), size)


def smooth(levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w), enlarged to width x height."""
    return cv2.resize(levels, size, interpolation=cv2.INTER_CUBIC)


def levels_of(mask: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """A map as uint8, stretched; a signed one from -1 to 1, 0 being 128."""
    if signed:
        return np.uint8(np.round(128 + 127 * mask.clip(-1, 1)))
    return np.uint8(np.round(255 * stretch(mask)))


def two_sides(strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """For each of 256 signed levels its colour (256, 3), RGB, and its weight (256,), 0 to 1."""
    values = (np.arange(256) - 128) / 127
    colors = np.where(values[:, None] < 0, AGAINST, FOR).astype(np.float32)
    return colors, (strength * np.abs(values).clip(max=1)).astype(np.float32)


def colored(levels: np.ndarray, colormap: str) -> np.ndarray:
    """uint8 (H, W) -> (H, W, 3) RGB."""
    code = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    return cv2.cvtColor(cv2.applyColorMap(levels, code), cv2.COLOR_BGR2RGB)


def color_bar(width: int, height: int, colormap: str) -> Image.Image:
    """The colours of a map from its smallest value (left) to its largest."""
    levels = np.uint8(np.linspace(0, 255, width))[None].repeat(height, axis=0)
    return Image.fromarray(colored(levels, colormap))


def scale(
    width: int, height: int, colormap: str, *, signed: bool
) -> tuple[Image.Image, tuple[str, str]]:
    """What the colours of maps mean: a bar, and words for its ends."""
    if signed:
        return signed_bar(width, height), OF_TWO_SIDES
    return color_bar(width, height, colormap), OF_ONE_SIDE


def signed_bar(width: int, height: int) -> Image.Image:
    """The colours of a signed map, from what speaks for the others to what speaks for it."""
    levels = np.uint8(np.linspace(1, 255, width))[None].repeat(height, axis=0)
    bar = np.full((height, width, 3), 255, np.uint8)
    _two_sides(1.0, "", 3)(bar, levels, bar)
    return Image.fromarray(bar)


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


# of pixels (H, W, 3 or 4) and levels (H, W), all uint8: their blend is put into the last one
Paint = Callable[[np.ndarray, np.ndarray, np.ndarray], object]


def _heat(alpha: float, colormap: str, channels: int) -> Paint:
    """What blends the colours of levels with an image."""
    colors = _with_channels(
        colored(np.arange(256, dtype=np.uint8)[:, None], colormap)[:, 0], channels
    )

    def paint(seen: np.ndarray, levels: np.ndarray, out: np.ndarray) -> None:
        if channels == 4:  # one look-up for each pixel
            # without mode="clip" it would check every index, which is within 0 to 255 anyway
            heat = np.take(colors.view(np.uint32)[:, 0], levels, mode="clip")
            heat = heat.view(np.uint8).reshape(seen.shape)
        else:
            heat = cv2.applyColorMap(levels, colors[:, None])
        cv2.addWeighted(seen, 1 - alpha, heat, alpha, 0, out)

    return paint


def _two_sides(alpha: float, _colormap: str, channels: int) -> Paint:
    """As _heat, for signed levels, which have colours of their own."""
    # where the map is 0 the image is seen whole, so that its strong parts may cover more of it
    colors, weights = two_sides(1 - (1 - alpha) ** 2)
    added, kept = _with_channels(colors * weights[:, None], channels), 1 - weights

    def paint(seen: np.ndarray, levels: np.ndarray, out: np.ndarray) -> None:
        out[:] = np.uint8(np.round(seen * kept[levels][..., None] + added[levels]))

    return paint


def _with_channels(colors: np.ndarray, channels: int) -> np.ndarray:
    """(256, 3) -> (256, channels), zero where there was none."""
    return np.ascontiguousarray(np.pad(colors, ((0, 0), (0, channels - 3))))


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """An RGB image as (H, W, channels) uint8."""
    if channels == 3:
        return np.asarray(image)
    held = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8)
    return held.reshape(image.height, image.width, channels)


def _levels(grey: np.ndarray, region: Region, visible: Sequence[int]) -> np.ndarray:
    """The `visible` part of the map (h, w) enlarged to its `region`, (H, W); both uint8."""
    left, top, right, bottom = (round(edge) for edge in region)
    size = max(right - left, 1), max(bottom - top, 1)
    levels = smooth(grey, size)
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
