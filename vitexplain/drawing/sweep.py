"""Draw a sweep's maps of one image: a labelled sheet, and an animation."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitexplain.drawing.panels import side_by_side
from vitexplain.drawing.sheet import (
    GAP,
    draw_sheet,
    fit,
    line_height,
    with_headings,
    with_scale,
    wrap,
)
from vitexplain.explainer import Map
from vitexplain.images.region import Region
from vitexplain.images.writing import write_whole
from vitexplain.settings import Value

Draw = Callable[[Map], Image.Image]  # a map -> its overlay

CELL = 224
COLUMNS = 6  # of the sheet of one parameter
LINES = 2  # of a caption
FRAME = 480  # largest width and height of an animation in pixels
MILLISECONDS = 700  # per frame
SAMPLES = 100_000  # pixels from which its palette is made


@dataclasses.dataclass(frozen=True)
class SweepMap:
    """One map of a sweep.

    Attributes:
        labels: one for each value it was made with, "discard_ratio 0.9".
        values: these by parameter, as the sweep has them.
        found: the map.
    """

    labels: tuple[str, ...]
    values: Mapping[str, Value]
    found: Map

    @property
    def caption(self) -> str:
        """In one line: "discard_ratio 0.9, head_fusion max"."""
        return ", ".join(self.labels)

    @property
    def mask(self) -> np.ndarray:
        """(h, w) float32, largest value 1."""
        return self.found.mask


def shrunk(image: Image.Image, region: Region) -> tuple[Image.Image, Region]:
    """The image shrunk to the size at which a sweep is drawn, and the region in it.

    A hundred overlays of a photograph at its own size would take minutes and gigabytes.
    """
    if max(image.size) <= FRAME:
        return image, region
    small = fit(image, (FRAME, FRAME))
    return small, region.scaled(small.width / image.width, small.height / image.height)


def draw_sweep(
    image: Image.Image,
    rows: Sequence[Sequence[SweepMap]],
    draw: Draw,
    colormap: str = "turbo",
) -> Image.Image:
    """A sheet: the image, then the overlays of all maps.

    The maps of a single parameter are wrapped, each with its value as caption. Those of two are a
    table: the first one's values stand beside the rows, the other's above the columns.

    Args:
        colormap: the one that `draw` uses, for the scale below.
    """
    overlays = [[draw(each.found) for each in row] for row in rows]
    every = (image, *(overlay for row in overlays for overlay in row))
    heights = [fit(each, (CELL, CELL)).height for each in every]
    cell = CELL, max(heights)
    if len(rows[0][0].labels) == 1:
        captions = [each.caption for each in rows[0]]
        cells = [("input", image), *zip(captions, overlays[0], strict=True)]
        sheet = draw_sheet(wrap(cells, COLUMNS), cell, LINES)
        return with_scale(sheet, colormap, signed=rows[0][0].found.signed)
    first = draw_sheet([[("input", image)], *[[("", None)]] * (len(rows) - 1)], cell, LINES)
    headings = [each.labels[1] for each in rows[0]]
    table = [
        zip(headings if number == 0 else [""] * len(row), row, strict=True)
        for number, row in enumerate(overlays)
    ]
    sheet = draw_sheet([list(row) for row in table], cell, LINES)
    sheet = with_headings(sheet, [row[0].labels[0] for row in rows], cell, LINES)
    sheet = side_by_side([first, sheet], -GAP)
    return with_scale(sheet, colormap, signed=rows[0][0].found.signed)


def write_gif(
    path: Path, maps: Sequence[SweepMap], draw: Draw, texts: Mapping[str, str] | None = None
) -> None:
    """An endless animation of the overlays, their values above, in frames of at most FRAME.

    Args:
        texts: what would be text chunks of a PNG; they become the comment.
    """
    frames = [_frame(each.caption, draw(each.found)) for each in maps]
    palette = _palette(frames)
    first, *others = [frame.quantize(palette=palette) for frame in frames]
    comment = "\n".join(f"{key}: {text}" for key, text in (texts or {}).items())

    def write(file: BinaryIO) -> None:
        first.save(
            file,
            "GIF",
            save_all=True,
            append_images=others,
            duration=MILLISECONDS,
            loop=0,
            comment=comment.encode("utf-8", "backslashreplace"),
        )

    write_whole(path, write)


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """One palette for all frames, so that unchanged parts do not flicker."""
    strip = Image.new("RGB", (frames[0].width, frames[0].height * len(frames)))
    for number, frame in enumerate(frames):
        strip.paste(frame, (0, number * frame.height))
    # more samples take longer and make no better palette
    step = max(1, round((strip.width * strip.height / SAMPLES) ** 0.5))
    size = math.ceil(strip.width / step), math.ceil(strip.height / step)
    return strip.resize(size, Image.Resampling.NEAREST).quantize(256, Image.Quantize.MAXCOVERAGE)


def _frame(caption: str, overlay: Image.Image) -> Image.Image:
    width = FRAME - 2 * GAP
    height = min(fit(overlay, (width, width)).height, width - line_height(width))
    return draw_sheet([[(caption, overlay)]], (width, height), lines=1)
