"""Several pictures with captions on one sheet."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Cell = tuple[str, Image.Image]

GAP = 8
LINES = 2  # of a caption; what is longer is cut


def draw_sheet(rows: Sequence[Sequence[Cell]], cell: int = 224) -> Image.Image:
    """One row of pictures under the other, each fitted into `cell` x `cell` pixels.

    Args:
        rows: of (caption, RGB picture); they need not be equally long.
        cell: side of a picture's square in pixels.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not any(rows):
        raise ValueError("a sheet needs at least one picture")
    font = ImageFont.load_default(size=max(10, cell // 16))
    line = sum(font.getmetrics())
    step_x, step_y = cell + GAP, cell + LINES * line + GAP
    width = GAP + step_x * max(len(row) for row in rows)
    sheet = Image.new("RGB", (width, GAP + step_y * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, cells in enumerate(rows):
        for column, (caption, picture) in enumerate(cells):
            left, top = GAP + column * step_x, GAP + row * step_y
            for number, text in enumerate(_wrapped(caption, font, cell)):
                draw.text((left, top + number * line), text, "black", font)
            fitted = _fitted(picture, cell)
            across, down = (cell - fitted.width) // 2, (cell - fitted.height) // 2
            sheet.paste(fitted, (left + across, top + LINES * line + down))
    return sheet


def _fitted(picture: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.BICUBIC)


def _wrapped(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """At most LINES lines that fit, broken between words; an ellipsis where something is cut."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > LINES
    lines = lines[:LINES]
    return [
        _shortened(text + "…" * (cut and number == LINES - 1), font, width)
        for number, text in enumerate(lines)
    ]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    return text
