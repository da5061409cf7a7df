"""A contact sheet: the overlays of many images on one sheet, or on pages to print."""

import itertools
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from vitexplain.drawing.sheet import Sheet, sheet_size
from vitexplain.errors import RequestError
from vitexplain.images.reading import PictureError, open_image
from vitexplain.images.writing import write_png, write_whole

Cell = tuple[str, Path]  # caption, file of the overlay

SUFFIXES = (".png", ".pdf")
LARGEST, SMALLEST = 224, 96  # sides of a PNG's cells in pixels
LARGE_UP_TO = 100  # images
MOST = 500  # images of a PNG; of more, several are written
DPI = 150
PAGE = (1240, 1754)  # A4 at 150 dpi
ACROSS, DOWN = 4, 5  # cells of a page
PAGE_CELL = (270, 270)
MISSING = (200, 200, 200)
EMPTY = "a contact sheet needs at least one image"


def write_contact_sheet(cells: Iterable[Cell], path: Path) -> tuple[list[Path], list[Path]]:
    """All overlays in order, on one sheet (.png) or on A4 pages of 20 (.pdf).

    Overlays are read one at a time, and pages are made one at a time. The cells of a PDF are
    consumed page by page, those of a PNG all at once, as their number decides their size.

    Args:
        cells: of (caption, file of the overlay).
        path: the file to write; more than MOST cells become several PNG files, "NAME-1.png" and
            so on, and those of an earlier run that are not written again are removed.

    Returns:
        (The files that were written, the overlays that could not be read; their cells are grey.)

    Raises:
        RequestError: if the path has another suffix, or there are no cells.
    """
    check_contact_sheet(path)
    unread: list[Path] = []
    if path.suffix.lower() == ".pdf":
        write_whole(path, lambda file: _write_pdf(file, _pages(cells, unread)))
        return [path], unread
    cells = list(cells)
    if len(cells) <= MOST:
        parts = {path: cells}
    else:
        starts = enumerate(range(0, len(cells), MOST), start=1)
        parts = {
            path.with_stem(f"{path.stem}-{number}"): cells[start : start + MOST]
            for number, start in starts
        }
    for file, part in parts.items():
        write_png(file, _sheet(part, unread), {"Software": "vit_explain"})
    for file in path.parent.iterdir():
        of_a_sheet = re.fullmatch(rf"{re.escape(path.stem)}(-\d+)?", file.stem)
        if of_a_sheet and file.suffix == path.suffix and file not in parts:
            file.unlink()
    return list(parts), unread


def check_contact_sheet(path: Path) -> None:
    """Raise RequestError unless the suffix is one of SUFFIXES."""
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"a contact sheet is a {' or '.join(SUFFIXES)} file, not {path.name!r}")


def layout(count: int) -> tuple[int, int, int]:
    """(columns, rows, side of a cell) of a PNG of `count` images, about 4:3.

    Raises:
        RequestError: if there are none.
    """
    if not count:
        raise RequestError(EMPTY)
    side = max(SMALLEST, round(LARGEST * min(1, LARGE_UP_TO / count) ** 0.25))

    def shape(columns: int) -> tuple[int, int]:
        return columns, math.ceil(count / columns)

    def distance(columns: int) -> float:
        width, height = sheet_size(*shape(columns), (side, side))
        return abs(math.log(width / height / (4 / 3)))

    return *shape(min(range(1, count + 1), key=distance)), side


def _sheet(cells: Sequence[Cell], unread: list[Path]) -> Image.Image:
    columns, rows, side = layout(len(cells))
    return _filled(Sheet(columns, rows, (side, side)), columns, cells, unread)


def _pages(cells: Iterable[Cell], unread: list[Path]) -> Iterator[Image.Image]:
    cells = iter(cells)
    while some := list(itertools.islice(cells, ACROSS * DOWN)):
        sheet = _filled(Sheet(ACROSS, DOWN, PAGE_CELL), ACROSS, some, unread)
        page = Image.new("RGB", PAGE, "white")
        page.paste(
            sheet, tuple((full - side) // 2 for full, side in zip(PAGE, sheet.size, strict=True))
        )
        yield page


def _write_pdf(file: BinaryIO, pages: Iterable[Image.Image]) -> None:
    """Page by page, as Pillow would hold all pages at once; undated, so that bytes are the same."""
    never = time.gmtime(0)
    dated = {"creationDate": never, "modDate": never}
    for number, page in enumerate(pages):
        page.save(file, "PDF", resolution=DPI, quality=90, append=number > 0, **dated)
    if not file.tell():
        raise RequestError(EMPTY)


def _filled(sheet: Sheet, columns: int, cells: Sequence[Cell], unread: list[Path]) -> Image.Image:
    for number, (caption, path) in enumerate(cells):
        place = number // columns, number % columns
        sheet.put(*place, caption, _overlay(path, unread))
    return sheet.image


def _overlay(path: Path, unread: list[Path]) -> Image.Image:
    try:
        return open_image(path)
    except PictureError:  # vanished or damaged since it was written
        unread.append(path)
        return Image.new("RGB", (1, 1), MISSING)
