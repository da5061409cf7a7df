"""Where a model's maps fall: in boxes, in the right cells of mosaics, on masks of objects.

All are columns of one table, with the intervals and paired differences of faithfulness.table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vitexplain.drawing.heatmap import draw_overlay
from vitexplain.faithfulness.baselines import BASELINES
from vitexplain.faithfulness.segmentation import SEGMENTED, totals
from vitexplain.faithfulness.table import Measure, Values, as_json, as_markdown, as_text, caption
from vitexplain.images.region import Region
from vitexplain.methods.registry import Method
from vitexplain.models.loading import LoadedModel
from vitexplain.progress import bar_or_lines
from vitexplain.training.data import LabelledImages
from vitexplain.training.localisation import (
    MapFunction,
    cell_share,
    groups,
    in_boxes,
    map_functions,
    on_mosaics,
    spread,
    thinned,
)
from vitexplain.training.masks import MaskedImages, baselines_like, on_masks
from vitexplain.training.pointing import in_words, worst

BOXED = (
    Measure("pointing", "Pointing ↑", "higher", "images with boxes"),
    Measure("energy", "Energy ↑", "higher", "images with boxes"),
)
# of each mosaic, the mean over its cells: maps of one mosaic are not independent
MOSAICS = tuple(
    Measure(f"mosaic_{cells}", f"Mosaic of {cells} ↑", "higher", f"mosaics of {cells}")
    for cells in (2, 4)
)
KINDS = {  # of what is measured, in words
    "boxes": "images with boxes",
    "mosaics_2": "mosaics of 2",
    "mosaics_4": "mosaics of 4",
    "masks": "images with masks",
}
COLUMNS = (*BOXED, *MOSAICS, *SEGMENTED)
SHOWN_MOSAICS = 6
SHOWN_MISSES = 6


@dataclass
class Placement:
    """Where the maps of several methods fall.

    Attributes:
        titles: method -> its title.
        values: method, or baseline -> key of COLUMNS -> its value for each image, or mosaic.
        images: one of KINDS -> the names of what was measured.
        shares: "mosaics_2", "mosaics_4" -> method -> share of each map in its own cell.
        totals: on masks, method -> its figures as published, see segmentation.totals.
        shown: images to look at, with their captions.
    """

    titles: Mapping[str, str]
    values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    images: dict[str, list] = field(default_factory=dict)
    shares: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    totals: dict[str, dict[str, float]] = field(default_factory=dict)
    shown: list[tuple[str, Image.Image]] = field(default_factory=list)

    def add(self, found: Values) -> None:
        """Values of further measures."""
        for name, columns in found.items():
            self.values.setdefault(name, {}).update(columns)

    def report(self) -> dict:
        """All figures (JSON-ready): of each kind by itself, and all of them in "methods"."""
        methods = as_json(self.values, COLUMNS, BASELINES)
        described: dict = {"images": self.images, "methods": methods}
        if "boxes" in self.images:
            boxed = {name: of for name, of in methods.items() if "energy" in of}
            described["boxes"] = {name: _box_figures(of) for name, of in boxed.items()}
            described["boxes_in_words"] = in_words(self._boxed()) if boxed else []
        for cells in (2, 4):
            shares = self.shares.get(f"mosaics_{cells}", {})
            described[f"mosaics_{cells}"] = {
                name: _mosaic_figures(each, methods[name][f"mosaic_{cells}"], cells)
                for name, each in shares.items()
            }
        if "masks" in self.images:
            described["masks"] = {"pictures": len(self.images["masks"]), "totals": self.totals}
        return described

    def as_text(self) -> str:
        """A table for a terminal; "" where nothing was measured."""
        if not self.values:
            return ""
        counts = [
            f"{len(names)} {title}"
            for kind, title in KINDS.items()
            if (names := self.images.get(kind))
        ]
        table = as_text(self.values, COLUMNS, self._titles(), BASELINES)
        return f"Maps on {', '.join(counts)}; * marks the best, and those not worse:\n{table}"

    def as_markdown(self) -> str:
        """A table with intervals and paired differences."""
        table = as_markdown(self.values, COLUMNS, self._titles(), BASELINES)
        return f"{caption(self.values, COLUMNS, BASELINES)}\n\n{table}\n"

    def _titles(self) -> dict[str, str]:
        return {name: self.titles[name] for name in self.values}

    def _boxed(self) -> Values:
        return {name: of for name, of in self.values.items() if "pointing" in of}


def placement(
    loaded: LoadedModel,
    methods: Mapping[str, Method],
    data: LabelledImages,
    labels: Mapping[str, int],
    sure: Sequence[tuple[str, int]],
    boxes: Mapping[str, Region] | None,
    masked: MaskedImages | None,
    *,
    most: Mapping[str, int],
    seed: int = 0,
) -> Placement:
    """Measure all that the data allow.

    Args:
        methods: by their names in the report.
        labels: name of image -> its category.
        sure: names and categories of the images that mosaics are made of.
        boxes: of images, by their names; None where the data have none.
        masked: images with masks; None where there are none.
        most: "boxes", "mosaics", "masks" -> how many images, or mosaics of each size, at most.
        seed: decides which images form a mosaic.
    """
    titles = {name: method.title for name, method in (methods | BASELINES).items()}
    found, maps = Placement(titles), map_functions(methods, loaded.model)
    of_category = {name: maps[name] for name in maps if methods[name].of_category}
    if boxes is not None:
        named = thinned([name for name in labels if name in boxes], most["boxes"])
        chosen = {name: labels[name] for name in named}
        found.images["boxes"] = named
        found.add(in_boxes(maps, loaded, data, chosen, boxes, bar_or_lines))
        if chosen:
            method = next(iter(of_category))
            missed = found.values[method]["energy"], chosen, boxes, maps[method]
            found.shown += worst(*missed, loaded, data, SHOWN_MISSES)
    for cells in (2, 4):
        chosen = groups([label for _, label in sure], cells, most["mosaics"], seed)
        _add_mosaics(found, of_category, loaded, data, [[sure[i] for i in g] for g in chosen])
    if masked is not None:
        both = baselines_like(next(iter(maps.values())))
        _add_masks(found, maps | both, loaded, masked, spread(masked.names, most["masks"]))
    return found


def _add_mosaics(
    found: Placement,
    maps: Mapping[str, MapFunction],
    loaded: LoadedModel,
    data: LabelledImages,
    mosaics: Sequence[Sequence[tuple[str, int]]],
) -> None:
    """Of mosaics of 2 or 4 images, each given by names and categories."""
    if not mosaics:
        return
    cells = len(mosaics[0])
    shares: dict[str, list[list[float]]] = {name: [] for name in maps}
    measured = on_mosaics(maps, loaded, data, bar_or_lines(mosaics, f"mosaics of {cells}"))
    for number, (group, (canvas, masks)) in enumerate(zip(mosaics, measured, strict=True)):
        for method, of_each in masks.items():
            shares[method].append([cell_share(mask, i, cells) for i, mask in enumerate(of_each)])
        if number < SHOWN_MOSAICS:
            name, drawn = loaded.categories[group[0][1]], next(iter(masks.values()))[0]
            found.shown.append((f"{cells} images, for: {name}", draw_overlay(canvas, drawn)))
    found.images[f"mosaics_{cells}"] = [[name for name, _ in group] for group in mosaics]
    found.shares[f"mosaics_{cells}"] = {name: np.array(each) for name, each in shares.items()}
    found.add({name: {f"mosaic_{cells}": np.mean(each, axis=1)} for name, each in shares.items()})


def _add_masks(
    found: Placement,
    maps: Mapping[str, MapFunction],
    loaded: LoadedModel,
    data: MaskedImages,
    names: Sequence[str],
) -> None:
    measured = dict(on_masks(maps, loaded, data, names, bar_or_lines))
    found.images["masks"] = list(measured)
    for name in maps if measured else ():
        each = [values[name] for values in measured.values()]
        columns = {key: np.array([values[key] for values in each]) for key in each[0]}
        found.totals[name] = totals(columns)
        found.add({name: {measure.key: columns[measure.key] for measure in SEGMENTED}})


def _box_figures(found: Mapping[str, dict]) -> dict:
    return {
        "pictures": found["energy"]["n"],
        "pointing": found["pointing"]["mean"],
        "pointing_interval": found["pointing"]["interval"],
        "energy": found["energy"]["mean"],
        "energy_interval": found["energy"]["interval"],
    }


def _mosaic_figures(shares: np.ndarray, found: Mapping, cells: int) -> dict:
    return {
        "maps": shares.size,
        "chance": 1 / cells,
        "in_right_cell": found["mean"],
        "interval": found["interval"],
        "right_cell_heavier_than_the_rest": float((shares > 0.5).mean()),
    }
