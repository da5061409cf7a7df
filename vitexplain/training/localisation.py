"""Do maps fall on what they explain? In boxes, and on mosaics of images of several categories."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor, nn

from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.faithfulness.baselines import centre_blob
from vitexplain.images.region import Region
from vitexplain.methods.registry import METHODS, Method
from vitexplain.models.loading import LoadedModel
from vitexplain.models.transform import InputTransform
from vitexplain.progress import Watch, silent
from vitexplain.training.data import LabelledImages

Item = TypeVar("Item")
# one image (1, 3, H, W) and K categories -> (K, h, w)
MapFunction = Callable[[Tensor, Sequence[int]], np.ndarray]


def methods_for(model: nn.Module) -> dict[str, Method]:
    """The methods for a model, by their names in reports.

    Both rollouts where its attention can be explained, Grad-CAM of any other model.
    """
    try:
        METHODS["attention_rollout"].make(model)
    except UnsupportedModel:
        return {"gradcam": METHODS["gradcam"]}
    return {"rollout": METHODS["attention_rollout"], "grad_rollout": METHODS["grad_rollout"]}


def map_functions(methods: Mapping[str, Method], model: nn.Module) -> dict[str, MapFunction]:
    """Each method as a function of one image and its categories."""

    def of_category(made) -> MapFunction:
        return lambda x, categories: np.concatenate(
            [found.masks for found in made.explain_several(x, [list(categories)])]
        )

    def of_image(made) -> MapFunction:
        return lambda x, categories: made.batch(x).repeat(len(categories), axis=0)

    return {
        name: (of_category if method.of_category else of_image)(method.make(model))
        for name, method in methods.items()
    }


def thinned(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly spread over all but the last ones."""
    return list(names[:: max(1, len(names) // max(1, count))][:count])


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of them, evenly spread over all."""
    if len(items) <= count:
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def in_boxes(
    maps: Mapping[str, MapFunction],
    loaded: LoadedModel,
    data: LabelledImages,
    labels: Mapping[str, int],
    boxes: Mapping[str, Region],
    watch: Watch = silent,
) -> dict[str, dict[str, np.ndarray]]:
    """Method -> "pointing", "energy" -> its value for each image; see `in_box`.

    A centre Gaussian on the grid of the first method's maps is measured with them, as
    "centre_blob": the baseline for any model, also for a CNN.

    Args:
        labels: name of image -> the category to explain, whose object is in the box.
        boxes: of each of these images, in its pixels.
        watch: shows how far the work has come, see vitexplain.progress.
    """
    values: dict[str, list[tuple[bool, float]]] = {name: [] for name in (*maps, "centre_blob")}
    for name, label in watch(labels.items(), "images with boxes"):
        image = data.read(name)
        tensor = loaded.transform(image)[None]
        masks = {method: explain(tensor, [label])[0] for method, explain in maps.items()}
        masks["centre_blob"] = centre_blob(*next(iter(masks.values())).shape)
        seen = seen_box(loaded.transform, image.size, boxes[name])
        for method, mask in masks.items():
            values[method].append(in_box(mask, *seen))
    return {method: _columns(pairs) for method, pairs in values.items() if pairs}


def _columns(pairs: Sequence[tuple[bool, float]]) -> dict[str, np.ndarray]:
    pointing, energy = np.array(pairs, dtype=float).T
    return {"pointing": pointing, "energy": energy}


def on_mosaics(
    maps: Mapping[str, MapFunction],
    loaded: LoadedModel,
    data: LabelledImages,
    groups: Sequence[Sequence[tuple[str, int]]],
) -> Iterator[tuple[Image.Image, dict[str, np.ndarray]]]:
    """Each mosaic, and by method the maps (K, h, w) of its K cells' categories.

    Args:
        groups: for each mosaic, (name of image, label) of its cells.
    """
    for group in groups:
        canvas = mosaic([data.read(name) for name, _ in group], max(loaded.transform.size))
        tensor = loaded.transform(canvas)[None]
        categories = [label for _, label in group]
        yield canvas, {name: explain(tensor, categories) for name, explain in maps.items()}


def read_boxes(text: str) -> dict[str, Region]:
    """The text of boxes.csv -> file -> its box, in its pixels."""
    return {
        row["file"]: Region(*(float(row[edge]) for edge in ("x0", "y0", "x1", "y1")))
        for row in csv.DictReader(io.StringIO(text))
    }


def heat_of(mask: np.ndarray) -> np.ndarray:
    """The map minus its minimum, scaled to sum 1; a constant map becomes uniform."""
    heat = mask - mask.min()
    total = heat.sum()
    return heat / total if total > 0 else np.full(mask.shape, 1 / mask.size)


def in_box(mask: np.ndarray, box: Sequence[float], width: int, height: int) -> tuple[bool, float]:
    """(pointing game, energy) of a map over the whole width x height image.

    Pointing game (Zhang et al. 2016): is the centre of the brightest patch inside the box?
    Energy (Wang et al. 2020, Score-CAM): the share of the map inside it; a patch on the box's edge
    counts in proportion.
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
    """(box, width, height) in the part that the model sees of an image, `size` being its own."""
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
    """The share of the map, minus its minimum, in cell `index` of a mosaic of `cells`.

    Grid pointing game (Böhle, Fritz & Schiele 2021; Rao, Böhle & Schiele 2022).
    """
    rows, columns = mask.shape
    down = _covered(rows, *_part(rows, index // 2, cells // 2))
    across = _covered(columns, *_part(columns, index % 2, 2))
    return float(down @ heat_of(mask) @ across)


def groups(labels: Sequence[int], size: int, count: int, seed: int) -> list[list[int]]:
    """`count` groups of `size` indices into `labels`, all of different categories in each group."""
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
    """What share of each patch, 0 to 1, lies between start and end."""
    edges = np.arange(patches)
    return np.clip(np.minimum(edges + 1, end) - np.maximum(edges, start), 0, 1)
