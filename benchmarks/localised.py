"""Do the methods' maps fall on what they are about: for each image, on mosaics and in boxes."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vitexplain.errors import RequestError
from vitexplain.faithfulness.measures import ALL
from vitexplain.faithfulness.passes import masks_of
from vitexplain.faithfulness.table import Measure
from vitexplain.models.loading import LoadedModel
from vitexplain.training.data import LabelledImages, category_of
from vitexplain.training.evaluate import label_of
from vitexplain.training.localisation import cell_share, in_box, mosaic, read_boxes, seen_box

CELLS = 4
MEASURES = (
    Measure("cell", "share of the map in its cell of a mosaic of four", "higher"),
    Measure("pointing", "brightest patch in the box", "higher"),
    Measure("energy", "share of the map in the box", "higher"),
)


def on_mosaics(
    loaded: LoadedModel,
    names: Sequence[str],
    data: LabelledImages,
    groups: Sequence[Sequence[tuple[str, int]]],
) -> dict[str, dict[str, np.ndarray]]:
    """Method -> "cell" -> for each mosaic, the mean over its four categories (chance: 0.25).

    Args:
        groups: for each mosaic (name of image, label) of its four cells.
    """
    shares: dict[str, list[float]] = {name: [] for name in names}
    for group in groups:
        canvas = mosaic([data.read(image) for image, _ in group], max(loaded.transform.size))
        tensor = loaded.transform(canvas)[None]
        for name, found in shares.items():
            masks = _of_categories(name, loaded, tensor, [label for _, label in group])
            found.append(np.mean([cell_share(mask, i, CELLS) for i, mask in enumerate(masks)]))
    return {name: {"cell": np.array(found)} for name, found in shares.items() if found}


def in_boxes(
    loaded: LoadedModel, names: Sequence[str], data: LabelledImages, count: int
) -> dict[str, dict[str, np.ndarray]]:
    """Method -> "pointing", "energy" -> for each of `count` images that have a box.

    Raises:
        RequestError: if the data have no boxes.csv.
    """
    text = data.side_file("boxes.csv")
    if text is None:
        raise RequestError(f"{data.path} holds no boxes.csv")
    boxes = read_boxes(text)
    chosen = [name for name in data.names if name in boxes]
    chosen = chosen[:: max(1, len(chosen) // max(1, count))][:count]
    found: dict[str, list[tuple[bool, float]]] = {name: [] for name in names}
    for image_name in chosen:
        image = data.read(image_name)
        tensor = loaded.transform(image)[None]
        label = label_of(loaded, category_of(image_name))
        seen = seen_box(loaded.transform, image.size, boxes[image_name])
        for name in names:
            (mask,) = masks_of(ALL[name], loaded.model, tensor, [label])
            found[name].append(in_box(mask, *seen))
    return {name: _columns(values) for name, values in found.items() if values}


def _columns(values: list[tuple[bool, float]]) -> dict[str, np.ndarray]:
    pointing, energy = np.array(values, dtype=float).T
    return {"pointing": pointing, "energy": energy}


def _of_categories(
    name: str, loaded: LoadedModel, tensor: Tensor, categories: list[int]
) -> np.ndarray:
    """(K, h, w): the maps of one image (1, 3, H, W) for each of K categories."""
    method = ALL[name].make(loaded.model)
    if ALL[name].of_category:
        return np.concatenate([e.masks for e in method.explain_several(tensor, [categories])])
    return method.explain(tensor).masks.repeat(len(categories), axis=0)
