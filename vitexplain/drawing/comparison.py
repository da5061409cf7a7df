"""All methods' maps of one image side by side, the most faithful one marked."""

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from vitexplain.drawing.sheet import (
    Cell,
    draw_sheet,
    fit,
    in_one_line,
    with_answers,
    with_scale,
    wrap,
)
from vitexplain.explainer import Map, most_faithful, rows_of, unbeaten
from vitexplain.methods.questions import in_words, look_at
from vitexplain.methods.registry import METHODS
from vitexplain.words import UNBEATEN

CELL = 224
COLUMNS = 5  # of the sheet of one category
LINES = 3  # of a caption, the same for all: title, paper, faithfulness
MARK = (0, 150, 60)


def draw_compare(
    image: Image.Image,
    maps: Sequence[Map],
    draw: Callable[[Map], Image.Image],
    colormap: str = "turbo",
) -> Image.Image:
    """A sheet: the image, then every method's map of it; a row for each category, if several.

    Below it stands which map to look at for which question.

    Args:
        colormap: the one that `draw` uses, for the scale below.
    """
    best = most_faithful(maps)
    table: dict[int, dict[str, int]] = {}  # row -> method -> place of its map
    for place, row in enumerate(rows_of(maps)):
        table.setdefault(row, {})[maps[place].method["name"]] = place
    methods = dict.fromkeys(found.method["name"] for found in maps)
    cells: list[list[Cell]] = []
    lines = LINES
    for places in table.values():
        of_row = [maps[place] for place in places.values()]
        cells.append([(_heading(of_row), image)])
        lines = LINES + 1 if unbeaten(of_row) else lines
        for place in map(places.get, methods):
            missing = place is None  # it is the same for every category, and in the first row
            cells[-1].append(("", None) if missing else _cell(maps[place], draw, place in best))
    if len(cells) == 1:
        cells = wrap(cells[0], COLUMNS)
    height = fit(image, (CELL, CELL)).height
    sheet = draw_sheet(cells, (CELL, height), lines)
    for signed in sorted({found.signed for found in maps}):
        sheet = with_scale(sheet, colormap, signed=signed)
    return with_answers(sheet, in_words(look_at([found.measured for found in maps])))


def _heading(maps: Sequence[Map]) -> str:
    category = next((found.category for found in maps if found.category), None)
    last = f"\n{UNBEATEN}" if unbeaten(maps) else ""
    if category is None:
        return f"input{last}"
    rivals = next((found.rivals for found in maps if found.rivals), ())
    against = " against " + ", ".join(each.short_name for each in rivals) if rivals else ""
    return f"input, for {category.short_name} ({category.share}){against}{last}"


def _cell(found: Map, draw: Callable[[Map], Image.Image], best: bool) -> Cell:
    method, overlay = METHODS[found.method["name"]], draw(found)
    if best:
        edge = (0, 0, overlay.width - 1, overlay.height - 1)
        width = max(2, round(max(overlay.size) / 40))
        ImageDraw.Draw(overlay).rectangle(edge, outline=MARK, width=width)
    marked = ", the most faithful" if best else ""
    paper = in_one_line(method.paper, CELL)
    return f"{method.title}\n{paper}\nfaithfulness {found.faithfulness:.2f}{marked}", overlay
