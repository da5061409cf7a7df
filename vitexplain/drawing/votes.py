"""Draw what a model predicts after each block, and which category each patch votes for."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vitexplain.drawing.panels import (
    GAP,
    INK,
    LABEL,
    ROOM,
    captioned,
    font_of,
    line_height,
    side_by_side,
    stacked,
)
from vitexplain.drawing.sheet import drawable, fit, wrap
from vitexplain.explainer import Block, answer_stays

# Okabe & Ito's colours, which also those who see red and green alike can tell apart
COLOURS = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
)
STRENGTH = 0.6  # of a vote's colour over the grey image


def draw_votes(
    blocks: Sequence[Block], seen: Image.Image, side: int, across: int
) -> tuple[str, Image.Image]:
    """A sentence, and a cell for each block.

    Args:
        blocks: those that are shown.
        seen: RGB, what the model sees.
        side: pixels of a cell.
        across: cells beside each other, at most.
    """
    coloured = _coloured(blocks)
    image = fit(seen, (side, side))
    cells = []
    for block in blocks:
        below = [f"{each.short_name} {each.share}" for each in block.top]
        drawn = _votes(block, image, coloured)
        cells.append(captioned(drawn, [f"block {block.number + 1}"], below=below, width=side))
    rows = [side_by_side(row, 2 * GAP) for row in wrap(cells, across)]
    names = {each: name for block in blocks for each, name in block.names.items()}
    legend = _legend([(COLOURS[place], names[each]) for each, place in coloured.items()])
    stays, last = answer_stays(blocks), blocks[-1].top[0]
    sentence = (
        "The head's answer to the tokens after each block, and to each patch's token alone: its "
        f"vote. Heads are trained on the last block only. “{last.short_name}” is first from block "
        f"{stays + 1} on."
    )
    return sentence, stacked([legend, *rows], 0, 2 * GAP)


def _coloured(blocks: Sequence[Block]) -> dict[int, int]:
    """The categories that have a colour, and its place: the answer, and those of most votes."""
    votes = Counter(blocks[-1].votes.flatten().tolist())
    for block in blocks[-2::-1]:  # what earlier blocks vote for, where colours are left
        for category, count in Counter(block.votes.flatten().tolist()).items():
            votes[category] += count / 100
    order = [blocks[-1].top[0].index, *(category for category, _ in votes.most_common())]
    return {
        category: place for place, category in enumerate([*dict.fromkeys(order)][: len(COLOURS)])
    }


def _votes(block: Block, image: Image.Image, coloured: dict[int, int]) -> Image.Image:
    """The image in grey, each patch in the colour of what it votes for, if that has one."""
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    places = np.vectorize(lambda category: coloured.get(category, -1), otypes=[int])(block.votes)
    tint = np.array([*COLOURS, (0, 0, 0)], np.float32)[places]  # (h, w, 3), the last one for -1
    weight = np.where(places < 0, 0, STRENGTH).astype(np.float32)
    rows, columns = (
        np.arange(pixels) * count // pixels
        for pixels, count in zip(grey.shape[:2], places.shape, strict=True)
    )
    tint, weight = tint[rows][:, columns], weight[rows][:, columns, None]
    return Image.fromarray(np.uint8(np.round(grey * (1 - weight) + tint * weight)))


def _legend(entries: Sequence[tuple[tuple[int, int, int], str]]) -> Image.Image:
    """Coloured squares, each with a name, on as many lines as they take."""
    font, line = font_of(LABEL), line_height(LABEL)
    places, left, top = [], 0, 0
    for colour, name in entries:
        width = line + round(font.getlength(drawable(name))) + 3 * GAP
        if left and left + width > ROOM:
            left, top = 0, top + line + GAP
        places.append((left, top, colour, drawable(name)))
        left += width
    image = Image.new("RGB", (ROOM, top + line + GAP), "white")
    draw = ImageDraw.Draw(image)
    for left, top, colour, name in places:
        draw.rectangle([left, top, left + line - 4, top + line - 4], colour)
        draw.text((left + line + 2, top), name, INK, font)
    return image
