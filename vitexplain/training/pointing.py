"""Whether maps point at the objects, in words and in the images where they do not."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from vitexplain.drawing.heatmap import draw_overlay
from vitexplain.faithfulness.intervals import interval_of
from vitexplain.images.region import Region
from vitexplain.models.loading import LoadedModel
from vitexplain.training.data import LabelledImages
from vitexplain.training.localisation import MapFunction

SIDE = 320  # pixels of an image's longer side


def in_words(columns: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """A sentence for each method: how often its brightest patch lies in the box, next to a spot in
    the middle of the image.

    Args:
        columns: of each method, and of "centre_blob", "pointing" (M,), 1 for a hit; see
            localisation.in_boxes.
    """
    centre = columns["centre_blob"]["pointing"]
    return [
        _sentence(method, values["pointing"], centre)
        for method, values in columns.items()
        if method != "centre_blob"
    ]


def _sentence(method: str, hits: np.ndarray, centre: np.ndarray) -> str:
    said = (
        f"{method}: the brightest patch lies in the box in {hits.mean():.0%} of {len(hits)} "
        f"images, a spot in the middle in {centre.mean():.0%}"
    )
    interval = interval_of(hits - centre)
    if interval is None:
        return f"{said}; of so few images that says little"
    low, high = interval
    difference = f"difference {hits.mean() - centre.mean():+.0%}, {low:+.0%} to {high:+.0%}"
    if low > 0:
        return f"{said} ({difference}): more than the middle alone would give"
    more = "less often" if high < 0 else "no more often"
    return f"{said} ({difference}): {more}, so the model may look at something else"


def worst(
    energy: np.ndarray,
    images: Mapping[str, int],
    boxes: Mapping[str, Region],
    explain: MapFunction,
    loaded: LoadedModel,
    data: LabelledImages,
    count: int,
) -> list[tuple[str, Image.Image]]:
    """The images whose boxes have the least of their map: each with its name, map and box.

    Args:
        energy: (M,), the share of each image's map in its box.
        images: name of each of them -> the category to explain.
    """
    names = list(images)
    shown = []
    for place in np.argsort(energy, kind="stable")[:count]:
        name = names[place]
        image = data.read(name)
        (mask,) = explain(loaded.transform(image)[None], [images[name]])
        caption = f"{name}: {energy[place]:.0%} of the map in the box"
        region = loaded.transform.region(*image.size)
        shown.append((caption, _with_box(image, mask, region, boxes[name])))
    return shown


def _with_box(
    image: Image.Image, mask: np.ndarray, region: Region, box: Sequence[float]
) -> Image.Image:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    scales = small.width / image.width, small.height / image.height
    drawn = draw_overlay(small, mask, region.scaled(*scales))
    edges = Region(*box).scaled(*scales)
    draw = ImageDraw.Draw(drawn)
    draw.rectangle(edges, outline="black", width=4)
    draw.rectangle(edges, outline="white", width=2)
    return drawn
