"""Parts of a figure as images: maps, captions, headings, and how they are put together."""

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitexplain.drawing.heatmap import color_bar, colored, stretch
from vitexplain.drawing.sheet import drawable, wrapped

WIDTH = 1600  # of the figure in pixels
MARGIN = 48
ROOM = WIDTH - 2 * MARGIN  # width of a panel
GAP = 8  # between small maps
BETWEEN = 32  # between images that are viewed one by one

TITLE, HEADING, SENTENCE, LABEL = 38, 28, 19, 16  # font sizes
INK, GREY, LINE = (25, 25, 30), (95, 95, 105), (205, 205, 212)


def tile(
    values: np.ndarray,
    room: tuple[int, int],
    colormap: str,
    span: tuple[float, float] | None = None,
) -> Image.Image:
    """A map (h, w) with its patches as squares, as large as fits; colours stretched to `span`."""
    if span is None:
        levels = stretch(values)
    else:
        levels = np.clip((values - span[0]) / max(span[1] - span[0], 1e-12), 0, 1)
    height, width = values.shape
    scale = min(room[0] / width, room[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.uint8(np.round(255 * levels))
    whole = math.ceil(scale)  # first by whole numbers, or some patches would be larger
    pixels = pixels.repeat(whole, axis=0).repeat(whole, axis=1)
    return Image.fromarray(
        colored(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), colormap)
    )


def captioned(
    image: Image.Image,
    above: Sequence[str],
    below: Sequence[str] = (),
    width: int | None = None,
) -> Image.Image:
    """An image with lines of text above and below it, `width` (else its own width) pixels wide."""
    width = width or image.width
    font, line = font_of(LABEL), line_height(LABEL)
    above = [_one_line(text, font, width) for text in above]
    below = [part for text in below for part in wrapped(drawable(text), font, width, 2)]
    bottom = len(above) * line + 4 + image.height + 4
    canvas = Image.new("RGB", (width, bottom + len(below) * line), "white")
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(above):
        draw.text((0, number * line), text, GREY if number else INK, font)
    canvas.paste(image, (0, len(above) * line + 4))
    for number, text in enumerate(below):
        draw.text((0, bottom + number * line), text, GREY, font)
    return canvas


def _one_line(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    return wrapped(drawable(text), font, width, 1)[0]


def panel(title: str, sentence: str, body: Image.Image | None) -> Image.Image:
    above = heading(title, sentence, HEADING)
    return above if body is None else stacked([above, body], 0, 16)


def heading(text: str, sentence: str, size: int) -> Image.Image:
    """A thin line, the heading and a sentence below it, as wide as the room."""
    large, small = font_of(size), font_of(SENTENCE)
    lines = wrapped(drawable(sentence), small, ROOM, 3)
    rule = 0 if size == TITLE else 20
    image = Image.new(
        "RGB", (ROOM, rule + line_height(size) + 4 + len(lines) * line_height(SENTENCE)), "white"
    )
    draw = ImageDraw.Draw(image)
    if rule:
        draw.line([(0, 0), (ROOM, 0)], LINE, 2)
    # Pillow's own font has no bold: a thin outline in the letters' colour makes it so
    draw.text((0, rule), _one_line(text, large, ROOM), INK, large, stroke_width=0.6)
    for number, line in enumerate(lines):
        top = rule + line_height(size) + 4 + number * line_height(SENTENCE)
        draw.text((0, top), line, GREY, small)
    return image


def stacked(parts: Sequence[Image.Image], margin: int, gap: int) -> Image.Image:
    """One under the other, on white."""
    width = max(part.width for part in parts) + 2 * margin
    height = sum(part.height for part in parts) + gap * (len(parts) - 1) + 2 * margin
    image = Image.new("RGB", (width, height), "white")
    top = margin
    for part in parts:
        image.paste(part, (margin, top))
        top += part.height + gap
    return image


def side_by_side(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    """Beside each other, their upper edges aligned, on white."""
    width = sum(part.width for part in parts) + gap * (len(parts) - 1)
    image = Image.new("RGB", (width, max(part.height for part in parts)), "white")
    left = 0
    for part in parts:
        image.paste(part, (left, 0))
        left += part.width + gap
    return image


def table(rows: Sequence[Sequence[Image.Image]], gap: int) -> Image.Image:
    return stacked([side_by_side(row, gap) for row in rows], 0, gap)


@functools.cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


@functools.cache
def line_height(size: int) -> int:
    return sum(font_of(size).getmetrics()) + 2


def scale_bar(low: float, high: float, width: int, colormap: str) -> Image.Image:
    """A bar of the colours from low to high."""
    image = Image.new("RGB", (width, 16 + line_height(LABEL)), "white")
    image.paste(color_bar(width, 16, colormap))
    draw = ImageDraw.Draw(image)
    font = font_of(LABEL)
    for text, anchor, left in (
        (f"{low:.2f}", "la", 0),
        ("cosine similarity", "ma", width // 2),
        (f"{high:g}", "ra", width),
    ):
        draw.text((left, 18), text, GREY, font, anchor)
    return image
