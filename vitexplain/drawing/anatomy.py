"""Draw an anatomy (vitexplain.anatomy): what a transformer does with one image, in one figure.

Each panel is an image of its own, at most as wide as the figure; the figure stacks them under
their headings.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from vitexplain.anatomy import Anatomy, BlockAnatomy, Positions, sample
from vitexplain.drawing.charts import as_image
from vitexplain.drawing.heatmap import draw_overlay
from vitexplain.drawing.panels import (
    BETWEEN,
    GAP,
    GREY,
    INK,
    LABEL,
    MARGIN,
    ROOM,
    TITLE,
    captioned,
    font_of,
    heading,
    line_height,
    panel,
    scale_bar,
    side_by_side,
    stacked,
    table,
    tile,
)
from vitexplain.drawing.sheet import columns_of, fit, wrap
from vitexplain.drawing.votes import draw_votes
from vitexplain.explainer import Block

LARGE = (ROOM - 2 * BETWEEN) // 3  # sides of the three images on top
MOSAIC = 640  # sides of all maps of position similarity together, about
TILE, SMALLEST_TILE = 170, 100  # width of one head's map, where heads are few
TALLEST = 1600  # that the maps of all heads may be
ACROSS = 8  # blocks beside each other in the last two panels, at most
BLOCK_TILE = 300  # sides of their maps, at most
FILTERS_ACROSS = 14

MOST_BLOCKS, MOST_HEADS = 32, 16

MAP, SIMILARITY = "inferno", "viridis"


def draw_anatomy(
    anatomy: Anatomy,
    image_seen: Image.Image,
    title: str,
    *,
    predictions: Sequence[Block] = (),
    alpha: float = 0.5,
    colormap: str = "turbo",
) -> Image.Image:
    """The figure, WIDTH pixels wide and as high as it takes.

    Args:
        image_seen: RGB, what the model sees, before normalisation.
        title: one line.
        predictions: after the blocks, if the model has categories.
        alpha, colormap: of the overlays, as in vitexplain.drawing.heatmap.draw_overlay.

    Raises:
        RequestError: if alpha or the colour map is not allowed.
    """
    overlay = functools.partial(draw_overlay, alpha=alpha, colormap=colormap)
    seen = fit(image_seen, (LARGE, LARGE))
    blocks = sample(len(anatomy.blocks), MOST_BLOCKS)
    panels = [
        (
            "Patches",
            "The image is cut along the grid, and each patch becomes one token. Attention "
            "rollout is how much of each patch reaches what the classifier reads.",
            _patches(anatomy, seen, overlay(seen, anatomy.rollout), colormap),
        ),
        *_filter_panel(anatomy),
        ("Position embeddings", *_positions(anatomy)),
        (
            "What the pooled tokens attend to",
            f"{_reader(anatomy)} in each block and head. The brightest patches get most; each map "
            "has a scale of its own.",
            _heads(anatomy, blocks),
        ),
        (
            "How far heads attend",
            "The mean distance between a patch and those that it attends to, for each head: "
            "whether it looks around itself or all over the image.",
            _how_far(anatomy),
        ),
        (
            "Token norms",
            "The length (L2 norm) of every token after each block, each map on a scale of its "
            "own. A few patches far above the median are attention sinks: the model seems to use "
            "them for notes, not for what they show.",
            _norms(anatomy, blocks),
        ),
        (
            "Rollout, block by block",
            f"The attention of the blocks from {anatomy.start_block + 1} on is multiplied; here is "
            "the product up to each block. The last one is the rollout on top.",
            _growth(anatomy, seen, overlay),
        ),
    ]
    if predictions:
        shown = [predictions[place] for place in sample(len(predictions), MOST_BLOCKS)]
        votes = draw_votes(shown, image_seen, _block_side(len(shown)), ACROSS)
        panels.append(("The prediction after each block", *votes))
    numbered = (
        panel(f"{number}  {name}", sentence, drawn)
        for number, (name, sentence, drawn) in enumerate(panels, start=1)
    )
    return stacked([heading(title, _summary(anatomy), TITLE), *numbered], MARGIN, MARGIN)


def _summary(anatomy: Anatomy) -> str:
    rows, columns = anatomy.layout.grid
    parts = [
        f"{rows}x{columns} patches",
        f"{len(anatomy.blocks)} blocks",
        f"{_span([len(block.attention) for block in anatomy.blocks])} heads",
        f"pooling: {anatomy.layout.readout}",
    ]
    return "  ·  ".join(parts)


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _reader(anatomy: Anatomy) -> str:
    """Whose attention the third panel shows, as the beginning of a sentence."""
    layout = anatomy.layout
    if layout.pooled_tokens:
        return (
            "The classifier reads the patches through an attention pool (last row). Above it, what "
            "the patches attend to, weighted as the pool reads them,"
        )
    if len(layout.readout_rows) > 2:
        return "The classifier reads the mean of the tokens. Shown is what these attend to,"
    tokens = layout.readout.removeprefix("mean of the ")
    return f"The classifier reads nothing but the {tokens}. Shown is what this attends to,"


def _patches(
    anatomy: Anatomy, seen: Image.Image, overlay: Image.Image, colormap: str
) -> Image.Image:
    how = f"{anatomy.head_fusion} of the heads, discard ratio {anatomy.discard_ratio:g}"
    if anatomy.start_block:
        how += f", from block {anatomy.start_block + 1}"
    cells = [
        ("what the model sees", _with_grid(seen, anatomy.layout.grid)),
        (f"attention rollout ({how})", tile(anatomy.rollout, seen.size, colormap)),
        ("rollout over the image, smooth", overlay),
    ]
    return side_by_side([captioned(image, [caption]) for caption, image in cells], BETWEEN)


def _with_grid(image: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """Thin light lines between the patches, with a faint dark one beside, for light images."""
    lines = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(lines)
    for shift, colour in ((1, (0, 0, 0, 90)), (0, (255, 255, 255, 170))):
        for axis in (0, 1):
            patches, length = grid[1 - axis], image.size[axis]
            for number in range(1, patches):
                place = round(number * length / patches) + shift
                start, end = (place, 0), (place, image.height)
                if axis:
                    start, end = (0, place), (image.width, place)
                draw.line([start, end], colour)
    return Image.alpha_composite(image.convert("RGBA"), lines).convert("RGB")


def _positions(anatomy: Anatomy) -> tuple[str, Image.Image | None]:
    """The sentence, and the maps if there is an embedding to compare."""
    found = anatomy.positions
    if found is None:
        return (
            "No image here: this model has no learned absolute position embedding. It knows "
            f"where a patch is by {anatomy.position_kind}.",
            None,
        )
    low = float(found.similarity.min())
    span = low, 1.0
    (rows, columns), grid = found.similarity.shape[:2], anatomy.layout.grid
    scale = max(1, round(MOSAIC / max(rows * grid[0], columns * grid[1])))  # pixels of a patch
    small = grid[1] * scale, grid[0] * scale
    mosaic = table(
        [[tile(each, small, SIMILARITY, span) for each in row] for row in found.similarity], 3
    )
    side = (ROOM - mosaic.width) // 2 - BETWEEN
    examples = [
        _example(found, place, (side, min(side, mosaic.height - 60)), span)
        for place in ((rows // 2, columns // 3), (rows // 8, columns - 1 - columns // 8))
    ]
    enlarged = side_by_side(examples, BETWEEN)
    every = "each patch" if (rows, columns) == grid else f"{rows}x{columns} of the patches"
    sentence = (
        f"How the model knows where a patch is: {anatomy.position_kind}. One map for {every}, at "
        "its place: the similarity of its embedding to those of all patches."
    )
    bar = scale_bar(low, 1.0, enlarged.width, SIMILARITY)
    left = captioned(mosaic, [f"a map for {every}"])
    return sentence, side_by_side([left, stacked([enlarged, bar], 0, 20)], BETWEEN)


def _example(
    found: Positions, place: tuple[int, int], room: tuple[int, int], span: tuple[float, float]
) -> Image.Image:
    """One patch's map enlarged, with a frame around the patch itself."""
    row, column = found.rows[place[0]], found.columns[place[1]]
    values = found.similarity[place]
    image = tile(values, room, SIMILARITY, span)
    down, across = image.height / values.shape[0], image.width / values.shape[1]
    box = [column * across, row * down, (column + 1) * across - 1, (row + 1) * down - 1]
    ImageDraw.Draw(image).rectangle(box, outline="white", width=3)
    return captioned(image, [f"the patch in row {row + 1}, column {column + 1} (white frame)"])


def _filter_panel(anatomy: Anatomy) -> list[tuple[str, str, Image.Image]]:
    """Title, sentence and image of the embedding filters, if one convolution makes the patches."""
    if anatomy.filters is None:
        return []
    images = [Image.fromarray(np.uint8(np.round(255 * each))) for each in anatomy.filters]
    side = (ROOM - (FILTERS_ACROSS - 1) * GAP) // FILTERS_ACROSS
    tiles = [each.resize((side, side), Image.Resampling.NEAREST) for each in images]
    sentence = (
        "Each patch is projected by the same filters. These are the first principal components of "
        "all of them, the strongest first: what the model can tell about a patch."
    )
    return [("Embedding filters", sentence, table(wrap(tiles, FILTERS_ACROSS), GAP))]


def _how_far(anatomy: Anatomy) -> Image.Image:
    """A point for each head, a line through the means of the blocks."""
    figure = Figure(figsize=(ROOM / 100, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    blocks = range(1, len(anatomy.blocks) + 1)
    for number, block in zip(blocks, anatomy.blocks, strict=True):
        axes.scatter([number] * len(block.distances), block.distances, s=28, color="tab:blue")
    means = [block.distances.mean() for block in anatomy.blocks]
    axes.plot(blocks, means, color="tab:orange", label="mean of the heads")
    axes.set(xlabel="block", ylabel="attention distance (pixels)", ylim=(0, None), xticks=blocks)
    axes.legend(loc="lower right")
    return as_image(figure)


def _heads(anatomy: Anatomy, blocks: Sequence[int]) -> Image.Image:
    """Blocks from top to bottom, in as many columns as their heads leave room for."""
    rows = [(f"block {number + 1}", anatomy.blocks[number].attention) for number in blocks]
    if anatomy.pool is not None:
        rows.append(("pool", anatomy.pool))
    heads = min(MOST_HEADS, max(len(maps) for _, maps in rows))
    groups, size = _arranged(len(rows), heads, anatomy.layout.grid)
    height = math.ceil(len(rows) / groups)
    parts = [
        _heads_of(rows[start : start + height], heads, size)
        for start in range(0, len(rows), height)
    ]
    return side_by_side(parts, BETWEEN)


def _arranged(rows: int, heads: int, grid: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """(columns of blocks, size of a map): as many columns as keep the maps readable."""
    aspect = grid[0] / grid[1]

    def width(groups: int) -> float:
        room = (ROOM - (groups - 1) * BETWEEN) / groups - _label_width()
        tallest = TALLEST / math.ceil(rows / groups)
        return min(TILE, room / heads - GAP, (tallest - GAP) / aspect)

    fitting = [groups for groups in range(1, rows + 1) if width(groups) >= SMALLEST_TILE]
    groups = max(fitting, default=1)
    return groups, (int(width(groups)), int(width(groups) * aspect))


def _label_width() -> int:
    return math.ceil(font_of(LABEL).getlength("block 99")) + 2 * GAP


def _heads_of(
    rows: Sequence[tuple[str, np.ndarray]], heads: int, room: tuple[int, int]
) -> Image.Image:
    """One column of blocks: the heads' numbers on top, the block's on the left."""
    left, font, line = _label_width(), font_of(LABEL), line_height(LABEL)
    step, height = room[0] + GAP, room[1] + GAP
    shown = [sample(len(maps), heads) for _, maps in rows]
    # a line of numbers, and another one where a block has other heads than the one above it
    numbered = [above != these for above, these in itertools.pairwise([None, *shown])]
    size = left + heads * step - GAP, len(rows) * height - GAP + sum(numbered) * line
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    word = "head " if font.getlength("head 16") < room[0] else ""
    top = 0
    for (label, maps), numbers, has_numbers in zip(rows, shown, numbered, strict=True):
        if has_numbers and not word:
            draw.text((left - 2 * GAP, top), "head", GREY, font, "ra")
        for place, number in enumerate(numbers if has_numbers else ()):
            middle = left + place * step + room[0] // 2
            draw.text((middle, top), f"{word}{number + 1}", GREY, font, "ma")
        top += line * has_numbers
        draw.text((left - 2 * GAP, top + room[1] // 2), label, INK, font, "rm")
        for place, number in enumerate(numbers):
            image.paste(tile(maps[number], room, MAP), (left + place * step, top))
        top += height
    return image


def _norms(anatomy: Anatomy, blocks: Sequence[int]) -> Image.Image:
    side = _block_side(len(blocks))
    cells = []
    for number in blocks:
        block = anatomy.blocks[number]
        lines = [
            f"block {number + 1}",
            f"median {_short(np.median(block.norms))}, max {_short(block.norms.max())}",
        ]
        cells.append(
            captioned(
                tile(block.norms, (side, side), MAP),
                lines,
                below=_prefix_lines(anatomy.prefix_names, block),
                width=side,
            )
        )
    return _wrapped_row(cells)


def _prefix_lines(names: Sequence[str], block: BlockAnatomy) -> list[str]:
    """ "class 31.2", and all registers on one line."""
    values = dict(zip(names, map(_short, block.prefix_norms), strict=True))
    registers = [values.pop(name) for name in names if name.startswith("register")]
    lines = [f"{name} {value}" for name, value in values.items()]
    if registers:
        label = "register" if len(registers) == 1 else "registers"
        lines.append(f"{label} {', '.join(registers)}")
    return lines


def _short(value: float) -> str:
    """Three digits, and never an exponent below a million."""
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


def _growth(anatomy: Anatomy, seen: Image.Image, overlay) -> Image.Image:
    steps = sample(len(anatomy.growth), MOST_BLOCKS)
    side = _block_side(len(steps))
    image = fit(seen, (side, side))
    first = anatomy.start_block + 1
    cells = []
    for step in steps:
        last = first + step
        label = f"block {first}" if last == first else f"blocks {first} to {last}"
        if not anatomy.growth[step].any():
            label += ": all discarded"
        cells.append(captioned(overlay(image, anatomy.growth[step]), [label], width=side))
    return _wrapped_row(cells)


def _block_side(count: int) -> int:
    columns = columns_of(count, ACROSS)
    return min(BLOCK_TILE, (ROOM - (columns - 1) * 2 * GAP) // columns)


def _wrapped_row(cells: Sequence[Image.Image]) -> Image.Image:
    return stacked([side_by_side(row, 2 * GAP) for row in wrap(cells, ACROSS)], 0, 2 * GAP)
