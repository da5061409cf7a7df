"""Several images with captions on one sheet."""

import bisect
import functools
import itertools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

from vitexplain.drawing.fonts import font_with, needed
from vitexplain.drawing.heatmap import scale
from vitexplain.errors import RequestError

Item = TypeVar("Item")
Cell = tuple[str, Image.Image | None]

GAP = 8
CELL = 224  # pixels, whose letters a scale has
SOFT = (85, 88, 94)  # of what stands beside something more important
LINES = 2  # of a caption; what is longer is cut


class Sheet:
    """A white sheet for `columns` x `rows` captioned images, put into it one at a time.

    Args:
        cell: width and height in pixels of the room that an image is fitted into.
        lines: how many a caption may have.

    Attributes:
        image: the sheet, RGB.
    """

    def __init__(self, columns: int, rows: int, cell: tuple[int, int], lines: int = LINES):
        self.cell, self.lines = cell, lines
        self.image = Image.new("RGB", sheet_size(columns, rows, cell, lines), "white")
        self._draw = ImageDraw.Draw(self.image)

    def put(self, row: int, column: int, caption: str, image: Image.Image | None) -> None:
        """Draw the caption, and right below it the image: RGB, of any size; None for none."""
        width = self.cell[0]
        step_x, step_y = _steps(self.cell, self.lines)
        left, top = GAP + column * step_x, GAP + row * step_y
        font, line = _font(width), line_height(width)
        font, caption = lettering(caption, font)
        texts = wrapped(caption, font, width, self.lines)
        above = top + (self.lines - len(texts)) * line  # right above the image, however few
        for number, text in enumerate(texts):
            self._draw.text((left, above + number * line), text, "black", font)
        if image is not None:
            fitted = fit(image, self.cell)
            across = (width - fitted.width) // 2
            self.image.paste(fitted, (left + across, top + self.lines * line))


def draw_sheet(
    rows: Sequence[Sequence[Cell]], cell: int | tuple[int, int] = 224, lines: int = LINES
) -> Image.Image:
    """Rows of images, each fitted into its cell.

    Args:
        rows: of (caption, RGB image or None); they need not be equally long.
        cell: width and height of an image's room in pixels, or the side of a square.
        lines: how many a caption may have.

    Raises:
        RequestError: if there is nothing to draw.
    """
    if not any(rows):
        raise RequestError("a sheet needs at least one image")
    cell = (cell, cell) if isinstance(cell, int) else cell
    sheet = Sheet(max(len(row) for row in rows), len(rows), cell, lines)
    for row, cells in enumerate(rows):
        for column, (caption, image) in enumerate(cells):
            sheet.put(row, column, caption, image)
    return sheet.image


def with_scale(
    sheet: Image.Image, colormap: str, *, signed: bool = False, length: int = 112
) -> Image.Image:
    """The sheet, and below it what the colours of its maps mean.

    Args:
        length: of the bar in pixels.
    """
    bar, (low, high) = scale(length, 8, colormap, signed=signed)
    font, line = _font(CELL), line_height(CELL)
    whole = Image.new("RGB", (sheet.width, sheet.height + line + GAP), "white")
    whole.paste(sheet)
    draw, left, top = ImageDraw.Draw(whole), GAP, sheet.height
    for part in (low, bar, high):
        if isinstance(part, str):
            draw.text((left, top), part, "black", font)
            left += round(font.getlength(part)) + GAP
        else:
            whole.paste(part, (left, top + (line - part.height) // 2))
            left += part.width + GAP
    return whole


def with_answers(sheet: Image.Image, answers: Sequence[tuple[str, str]]) -> Image.Image:
    """The sheet, and below it a line for each (question, answer), the answers in one column."""
    if not answers:
        return sheet
    font, line = _font(CELL), line_height(CELL)
    column = round(max(font.getlength(question) for question, _ in answers)) + 3 * GAP
    room = sheet.width - column - GAP
    fonts = [lettering(answer, font) for _, answer in answers]
    said = [wrapped(text, of, room, LINES) for of, text in fonts]
    height = line * sum(map(len, said)) + GAP
    whole = Image.new("RGB", (sheet.width, sheet.height + height), "white")
    whole.paste(sheet)
    draw, top = ImageDraw.Draw(whole), sheet.height
    for (question, _), (of, _), texts in zip(answers, fonts, said, strict=True):
        draw.text((GAP, top), question, SOFT, font)
        for text in texts:
            draw.text((column, top), text, "black", of)
            top += line
    return whole


def with_headings(
    sheet: Image.Image, headings: Sequence[str], cell: tuple[int, int], lines: int
) -> Image.Image:
    """The sheet, and left of each row its heading, upwards beside the images."""
    font, line = _font(cell[0]), line_height(cell[0])
    whole = Image.new("RGB", (sheet.width + line, sheet.height), "white")
    whole.paste(sheet, (line, 0))
    step = _steps(cell, lines)[1]
    room = step - GAP
    for row, heading in enumerate(headings):
        text = wrapped(drawable(heading), font, room, 1)[0]
        band = Image.new("RGB", (room, line), "white")
        ImageDraw.Draw(band).text((room // 2, 0), text, "black", font, "ma")
        whole.paste(band.rotate(90, expand=True), (GAP // 2, GAP + row * step))
    return whole


def sheet_size(
    columns: int, rows: int, cell: tuple[int, int], lines: int = LINES
) -> tuple[int, int]:
    """(width, height) of a sheet in pixels."""
    step_x, step_y = _steps(cell, lines)
    return GAP + columns * step_x, GAP + rows * step_y


def line_height(width: int) -> int:
    """Pixels from one line of a caption to the next, in cells of this width."""
    return sum(_font(width).getmetrics())


def columns_of(count: int, most: int) -> int:
    """At most `most` columns, as equally filled as `count` cells allow."""
    return math.ceil(count / math.ceil(count / most))


def wrap(cells: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """A row of cells in rows of at most `most`, all equally long but for the last."""
    columns = columns_of(len(cells), most)
    return [cells[start : start + columns] for start in range(0, len(cells), columns)]


def fit(image: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """Scaled to fit the cell (width, height), its proportions kept."""
    scale = min(room / side for room, side in zip(cell, image.size, strict=True))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.BICUBIC)


def lettering(caption: str, font: ImageFont.FreeTypeFont) -> tuple[ImageFont.FreeTypeFont, str]:
    """A font for a caption, and the caption in characters that it has.

    Pillow's own font where that has the letters, with or without their accents; else one of this
    machine; else escapes.
    """
    plain = drawable(caption)
    if any(_in_font(c)[0] == "\\" != c for c in unicodedata.normalize("NFC", caption)):
        wanted = "".join(
            c.encode("unicode_escape").decode()
            if unicodedata.category(c)[0] == "C" and c != "\n"
            else c
            for c in unicodedata.normalize("NFC", caption)
        )
        other = font_with(needed(wanted), round(font.size))
        if other is not None:
            return other, wanted
    return font, plain


def drawable(caption: str) -> str:
    """The caption in characters that the font has.

    Pillow's own font has little beyond ASCII. Accents are dropped; any other character becomes
    its escape, as do surrogates: file names need not be valid Unicode.
    """
    return "".join(map(_in_font, unicodedata.normalize("NFC", caption)))


@functools.lru_cache(maxsize=4096)
def _in_font(character: str) -> str:
    if character.isspace():
        return "\n" if character == "\n" else " "
    if _has(character):
        return character
    parts = unicodedata.normalize("NFKD", character)
    plain = "".join(part for part in parts if not unicodedata.combining(part))
    if plain and all(map(_has, plain)):
        return plain
    return character.encode("unicode_escape").decode("ascii")


def _has(character: str) -> bool:
    return _glyph(character) != _glyph("\uffff")  # never a character


def _glyph(character: str) -> tuple[tuple[int, int], bytes]:
    mask = _font(224).getmask(character)
    return mask.size, bytes(mask)


@functools.cache
def _font(width: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=max(10, width // 16))


def _steps(cell: tuple[int, int], lines: int) -> tuple[int, int]:
    """Distance from one cell to the next, to the right and down."""
    return cell[0] + GAP, cell[1] + lines * line_height(cell[0]) + GAP


def in_one_line(text: str, width: int) -> str:
    """As much of the text as one line above a cell of this width has room for."""
    return wrapped(text, _font(width), width, 1)[0]


def wrapped(caption: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """At most `lines` lines no wider than `width`; an ellipsis where something is cut."""
    found = list(itertools.islice(_lines(caption, font, width), lines + 1))
    if len(found) > lines:
        found[lines - 1 :] = [_shortened(found[lines - 1] + "…", font, width)]
    return found


def _lines(caption: str, font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    """The caption broken into lines between words."""
    for text in caption.split("\n"):
        line = ""
        for word in text.split():
            for piece in _pieces(word, font, width):
                longer = f"{line} {piece}".strip()
                if line and font.getlength(longer) > width:
                    yield line
                    line = piece
                else:
                    line = longer
        yield line


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    """A word that is wider than the cell, such as a file's name, in parts that fit."""
    while font.getlength(word) > width and len(word) > 1:
        ends = range(1, len(word))
        fitting = bisect.bisect_right(
            ends, width, key=lambda end, word=word: font.getlength(word[:end])
        )
        end = max(1, fitting)
        yield word[:end]
        word = word[end:]
    yield word


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    return text
