"""Does a map fall on what it is about? Boxes, and mosaics of images of several categories."""

import csv
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vitexplain.images.region import Region
from vitexplain.models.transform import InputTransform


def read_boxes(text: str) -> dict[str, Region]:
    """boxes.csv -> file -> (left, top, right, bottom) in its pixels."""
    return {
        row["file"]: Region(*(float(row[edge]) for edge in ("x0", "y0", "x1", "y1")))
        for row in csv.DictReader(io.StringIO(text))
    }


def heat_of(mask: np.ndarray) -> np.ndarray:
    """The map with its minimum subtracted, summing to 1; even if it is the same everywhere."""
    heat = mask - mask.min()
    total = heat.sum()
    return heat / total if total > 0 else np.full(mask.shape, 1 / mask.size)


def in_box(mask: np.ndarray, box: Sequence[float], width: int, height: int) -> tuple[bool, float]:
    """(pointing game, energy) of a map over the whole width x height image.

    Pointing game (Zhang et al. 2016): is the centre of the brightest patch inside the box?
    Energy (Wang et al. 2020, Score-CAM): the share of the map inside it; patches that the box
    cuts count in proportion.
    """
    rows, columns = mask.shape
    left, top, right, bottom = (
        edge * patches / side
        for edge, patches, side in zip(
            box, (columns, rows, columns, rows), (width, height, width, height), strict=True
        )
    )
    row, column = np.unravel_index(mask.argmax(), mask.shape)
    hit = left <= column + 0.5 <= right and top <= row + 0.5 <= bottom
    across, down = _covered(columns, left, right), _covered(rows, top, bottom)
    return bool(hit), float(down @ heat_of(mask) @ across)


def seen_box(
    transform: InputTransform, size: tuple[int, int], box: Sequence[float]
) -> tuple[np.ndarray, float, float]:
    """(box, width, height) of the part of an image of `size` (width, height) that is seen."""
    region = transform.region(*size)
    shift = (region.left, region.top, region.left, region.top)
    return np.subtract(box, shift), region.width, region.height


def mosaic(images: Sequence[Image.Image], side: int) -> Image.Image:
    """Two images side by side, or four in a square, each squashed to its cell."""
    columns, rows = 2, len(images) // 2
    width, height = side // columns, side // rows
    canvas = Image.new("RGB", (side, side))
    for index, image in enumerate(images):
        cell = image.resize((width, height), Image.Resampling.BICUBIC)
        canvas.paste(cell, ((index % columns) * width, (index // columns) * height))
    return canvas


def cell_share(mask: np.ndarray, index: int, cells: int) -> float:
    """Share of the map, its minimum subtracted, in cell `index` of a mosaic of `cells`.

    Grid pointing game (Böhle, Fritz & Schiele 2021; Rao, Böhle & Schiele 2022).
    """
    rows, columns = mask.shape
    down = _covered(rows, *_part(rows, index // 2, cells // 2))
    across = _covered(columns, *_part(columns, index % 2, 2))
    return float(down @ heat_of(mask) @ across)


def groups(labels: Sequence[int], size: int, count: int, seed: int) -> list[list[int]]:
    """`count` groups of `size` places in `labels`, all of different categories."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    if len(np.unique(labels)) < size:
        return []
    chosen = []
    while len(chosen) < count:
        group = rng.choice(len(labels), size, replace=False)
        if len(np.unique(labels[group])) == size:
            chosen.append(group.tolist())
    return chosen


def _part(patches: int, index: int, parts: int) -> tuple[float, float]:
    return patches * index / parts, patches * (index + 1) / parts


def _covered(patches: int, start: float, end: float) -> np.ndarray:
    """How much of each patch, 0 to 1, lies between start and end."""
    edges = np.arange(patches)
    return np.clip(np.minimum(edges + 1, end) - np.maximum(edges, start), 0, 1)
