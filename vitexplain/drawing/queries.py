"""What single tokens look at: a row of images for each."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from vitexplain.drawing.sheet import draw_sheet, fit, with_scale, wrap
from vitexplain.images.region import Region
from vitexplain.queries import TokenMaps

CELL, BLOCK = 280, 180  # pixels of a map, and of each block's
ACROSS = 6  # blocks beside each other
MARK = (255, 0, 200)


def draw_queries(
    image: Image.Image,
    found: Sequence[tuple[str, TokenMaps, Region | None]],
    draw: Callable[[np.ndarray], Image.Image],
    attention: str,
    colormap: str,
) -> Image.Image:
    """A sheet: for each token the image with its patch marked, and its three maps.

    Args:
        found: name of a token, its maps, and its patch in the image's pixels (None of a prefix
            token).
        draw: a map (h, w) -> its overlay.
        attention: what the first map is, as "attention, last block".
    """
    rows = []
    for name, maps, patch in found:
        rows.append(
            [
                (name, _marked(image, patch)),
                (attention, draw(maps.attention)),
                ("rollout from it", draw(_others(maps))),
                ("cosine of final features", draw(maps.cosine)),
            ]
        )
    height = max(fit(drawn, (CELL, CELL)).height for row in rows for _, drawn in row)
    sheet = draw_sheet(rows, (CELL, height), lines=1)
    return with_scale(sheet, colormap, length=CELL // 2)


def draw_query_blocks(
    found: Sequence[tuple[str, TokenMaps, Region | None]],
    draw: Callable[[np.ndarray], Image.Image],
    colormap: str,
) -> Image.Image:
    """A sheet: a row for each token, with what it attends to in each block."""
    rows = [
        [(f"{name}, block {number}", draw(each)) for number, each in enumerate(maps.blocks)]
        for name, maps, _ in found
    ]
    height = max(fit(drawn, (BLOCK, BLOCK)).height for _, drawn in rows[0])
    folded = [part for row in rows for part in wrap(row, ACROSS)]
    return with_scale(draw_sheet(folded, (BLOCK, height), lines=1), colormap, length=BLOCK // 2)


def _others(maps: TokenMaps) -> np.ndarray:
    """The rollout, in which a token mostly stays what it is: its own patch like the next one."""
    shown = maps.rollout.copy()
    if maps.patch is not None:
        shown[maps.patch] = 0
        shown[maps.patch] = shown.max()
    return shown


def _marked(image: Image.Image, patch: Region | None) -> Image.Image:
    if patch is None:
        return image
    marked = image.copy()
    width = max(2, round(max(image.size) / 150))
    ImageDraw.Draw(marked).rectangle(tuple(patch), outline=MARK, width=width)
    return marked
