"""All methods' maps of one image side by side, the most faithful one marked."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from vitexplain.drawing.sheet import Cell, draw_sheet, fit, in_one_line, with_scale, wrap
from vitexplain.explainer import Map, most_faithful, rows_of
from vitexplain.methods.registry import METHODS

CELL = 224
COLUMNS = 5  # of the sheet of one category
LINES = 3  # of a caption, the same for all: title, paper, faithfulness
MARK = (0, 150, 60)


def draw_compare(
    image: Image.Image,
    maps: Sequence[Map],
    draw: Callable[[np.ndarray], Image.Image],
    colormap: str = "turbo",
) -> Image.Image:
    """A sheet: the image, then every method's map of it; a row for each category, if several.

    Args:
        colormap: the one that `draw` uses, for the scale below.
    """
    best = most_faithful(maps)
    table: dict[int, dict[str, int]] = {}  # row -> method -> place of its map
    for place, row in enumerate(rows_of(maps)):
        table.setdefault(row, {})[maps[place].method["name"]] = place
    methods = dict.fromkeys(found.method["name"] for found in maps)
    cells: list[list[Cell]] = []
    for places in table.values():
        cells.append([(_heading([maps[place] for place in places.values()]), image)])
        for place in map(places.get, methods):
            missing = place is None  # it is the same for every category, and in the first row
            cells[-1].append(("", None) if missing else _cell(maps[place], draw, place in best))
    if len(cells) == 1:
        cells = wrap(cells[0], COLUMNS)
    height = fit(image, (CELL, CELL)).height
    return with_scale(draw_sheet(cells, (CELL, height), LINES), colormap)


def _heading(maps: Sequence[Map]) -> str:
    category = next((found.category for found in maps if found.category), None)
    if category is None:
        return "input"
    return f"input, for {category.short_name} ({category.share})"


def _cell(found: Map, draw: Callable[[np.ndarray], Image.Image], best: bool) -> Cell:
    method, overlay = METHODS[found.method["name"]], draw(found.mask)
    if best:
        edge = (0, 0, overlay.width - 1, overlay.height - 1)
        width = max(2, round(max(overlay.size) / 40))
        ImageDraw.Draw(overlay).rectangle(edge, outline=MARK, width=width)
    marked = ", the most faithful" if best else ""
    paper = in_one_line(method.paper, CELL)
    return f"{method.title}\n{paper}\nfaithfulness {found.faithfulness:.2f}{marked}", overlay
