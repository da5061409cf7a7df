"""Draw a sweep's maps of one image: a labelled sheet, and an animation."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitexplain.drawing.sheet import GAP, draw_sheet, fit, line_height, wrap
from vitexplain.explainer import Map
from vitexplain.images.region import Region
from vitexplain.images.writing import write_whole
from vitexplain.settings import Value

Draw = Callable[[np.ndarray], Image.Image]  # a map (h, w) -> its overlay

CELL = 224
COLUMNS = 6  # of the sheet of one parameter
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


def draw_sweep(image: Image.Image, rows: Sequence[Sequence[SweepMap]], draw: Draw) -> Image.Image:
    """A sheet: the image, then the overlays of all maps with their values as captions.

    The maps of a single parameter are wrapped.
    """
    first = ("input", image)
    drawn = [[("\n".join(each.labels), draw(each.mask)) for each in row] for row in rows]
    if len(rows) == 1:
        drawn = wrap([first, *drawn[0]], COLUMNS)
    else:
        drawn = [[("", None) if below else first, *row] for below, row in enumerate(drawn)]
    images = [overlay for row in drawn for _, overlay in row if overlay]
    height = max(fit(overlay, (CELL, CELL)).height for overlay in images)
    return draw_sheet(drawn, (CELL, height))


def write_gif(
    path: Path, maps: Sequence[SweepMap], draw: Draw, texts: Mapping[str, str] | None = None
) -> None:
    """An endless animation of the overlays, their values above, in frames of at most FRAME.

    Args:
        texts: what would be text chunks of a PNG; they become the comment.
    """
    frames = [_frame(each.caption, draw(each.mask)) for each in maps]
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
