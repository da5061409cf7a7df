"""The parts of benchmarks.faithfulness: each measures images that lack values, and keeps these."""

import argparse
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from benchmarks.kept import Kept
from benchmarks.pages import model_of
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.errors import RequestError
from vitexplain.faithfulness.baselines import BASELINES
from vitexplain.faithfulness.ceiling import ceiling
from vitexplain.faithfulness.measures import STEPS, faithful, removed
from vitexplain.faithfulness.passes import BATCH, scores_of, top1
from vitexplain.faithfulness.sanity import SHUFFLES, by_shuffles
from vitexplain.faithfulness.stability import stability
from vitexplain.faithfulness.states import FILLS, HIDDEN_BY, Answers
from vitexplain.faithfulness.timing import cost
from vitexplain.images.region import Region
from vitexplain.methods.registry import Method
from vitexplain.models.loading import LoadedModel
from vitexplain.progress import bar_or_lines
from vitexplain.training.classify import classify, confident
from vitexplain.training.data import LabelledImages, category_of, is_held_out
from vitexplain.training.localisation import (
    cell_share,
    groups,
    in_boxes,
    map_functions,
    on_mosaics,
)
from vitexplain.training.masks import MaskedImages, on_masks

SLOW = ("integrated_gradients", "occlusion")  # a hundred passes for a map, or more
CEILING = "ceiling"  # the greedy order's row
CELLS = 4
CONFIDENCE = 0.5  # smallest probability of an image in a mosaic
AT_ONCE = 4  # images whose maps are made in one batch
TIMED = 2  # images per batch while methods are timed
SHUFFLED = [f"shuffle {number}" for number in range(1, SHUFFLES + 1)]

Read = Callable[[str], Image.Image]


@dataclass(frozen=True)
class Bench:
    """What is measured: a model, its methods and baselines, and where the values are kept.

    Attributes:
        fewer: images, of the first ones of each part, that slow methods explain, too.
        steps: of the curves.
        fills: by which patches are hidden.
    """

    loaded: LoadedModel
    methods: Mapping[str, Method]
    kept: Kept
    fewer: int
    steps: int = STEPS
    fills: Sequence[str] = HIDDEN_BY

    def due(
        self, part: str, images: Sequence[str], fewer: int | None = None
    ) -> Iterator[tuple[str, list[str]]]:
        """Each image that lacks values, and the methods whose values it lacks."""
        fewer = self.fewer if fewer is None else fewer
        for place, name in enumerate(bar_or_lines(images, part)):
            wanted = [each for each in self.methods if place < fewer or each not in SLOW]
            if lacking := self.kept.lacking(part, name, wanted):
                yield name, lacking

    def tensors(self, read: Read, names: Collection[str]) -> Tensor:
        """(B, 3, H, W)."""
        return torch.stack([self.loaded.transform(read(name)) for name in names])

    def scores(
        self, methods: Collection[str], images: Tensor, categories: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Method -> (B, h, w), what patches are ranked by."""
        model = self.loaded.model
        return {name: scores_of(self.methods[name], model, images, categories) for name in methods}


def bench_for(
    loaded: LoadedModel,
    methods: Mapping[str, Method],
    options: argparse.Namespace,
    fewer: int,
    fills: Sequence[str] = HIDDEN_BY,
) -> tuple[Bench, dict[str, str]]:
    """A bench of those methods that explain the model; and why the others don't.

    Raises:
        RequestError: if the options' steps are none, or their file has other values.
    """
    if options.steps < 1 or options.steps % 10:
        raise RequestError(f"--steps must be a multiple of 10, not {options.steps}")
    methods, left_out = supported(methods, loaded)
    about = {  # what all values depend on, besides their image and method
        "model": model_of(loaded),
        "steps": options.steps,
        "seed": options.seed,
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
    if fills != HIDDEN_BY:
        about["fills"] = list(fills)
    kept = Kept(Path(options.values) if options.values else None, about)
    return Bench(loaded, methods, kept, fewer, options.steps, fills), left_out


def supported(
    methods: Mapping[str, Method], loaded: LoadedModel
) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that explain this model; and why the others don't."""
    found, left_out = {}, {}
    for name, method in methods.items():
        try:
            method.make(loaded.model)
            found[name] = method
        except UnsupportedModel as error:
            left_out[name] = error.reason
    return found, left_out


def removal(bench: Bench, read: Read, images: Sequence[str]) -> None:
    """Insertion, deletion and perturbation, of each image's most likely category."""
    for methods, group in itertools.groupby(bench.due("removal", images), key=lambda pair: pair[1]):
        names = (name for name, _ in group)
        while some := list(itertools.islice(names, AT_ONCE)):
            _remove(bench, read, some, methods)


def _remove(bench: Bench, read: Read, names: Sequence[str], methods: Sequence[str]) -> None:
    model = bench.loaded.model
    images = bench.tensors(read, names)
    categories = top1(model, images)
    scores = bench.scores(methods, images, categories)
    answers = Answers(model, images, bench.loaded.labels)
    found = removed(answers, scores, categories, bench.steps, bench.fills)
    for place, name in enumerate(names):
        values = {method: _at(place, columns) for method, columns in found.items()}
        bench.kept.add("removal", name, values)


def _at(place: int, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {key: values[place] for key, values in columns.items()}


def ceilings(bench: Bench, read: Read, images: Sequence[str]) -> None:
    """How high insertion and how low deletion get, each in its own greedy order."""
    for name in bar_or_lines(images, "ceiling"):
        if not bench.kept.lacking("removal", name, [CEILING]):
            continue
        tensor = bench.tensors(read, [name])
        (category,) = top1(bench.loaded.model, tensor)
        answers = Answers(bench.loaded.model, tensor, bench.loaded.labels, BATCH)
        grid = scores_of(BASELINES["random"], bench.loaded.model, tensor, [category]).shape[1:]
        found = {}
        for fill in FILLS:
            for kind, insert in (("insertion", True), ("deletion", False)):
                asked = answers, 0, grid, category, bench.steps, fill
                found[f"{kind}_{fill}"] = ceiling(*asked, insert=insert).area
        bench.kept.add("removal", name, {CEILING: found | faithful(found)})


def masks(bench: Bench, data: MaskedImages, images: Sequence[str]) -> None:
    """How well a map tells the object of an image from its background."""
    maps = map_functions(bench.methods, bench.loaded.model)
    for name, methods in bench.due("masks", images):
        given = {method: maps[method] for method in methods}
        for _, values in on_masks(given, bench.loaded, data, [name]):
            bench.kept.add("masks", name, values)


def boxes(
    bench: Bench,
    data: LabelledImages,
    images: Sequence[str],
    labels: Mapping[str, int],
    found: Mapping[str, Region],
) -> None:
    """The pointing game, and the share of a map of an image's label in the object's box."""
    maps = map_functions(bench.methods, bench.loaded.model)
    for name, methods in bench.due("boxes", images):
        given = {method: maps[method] for method in methods}
        columns = in_boxes(given, bench.loaded, data, {name: labels[name]}, found)
        bench.kept.add("boxes", name, {method: _at(0, columns[method]) for method in methods})


def mosaics(
    bench: Bench,
    data: LabelledImages,
    groups: Sequence[Sequence[tuple[str, int]]],
) -> None:
    """The share of a category's map in its own cell, mean over the four cells.

    Args:
        groups: of each mosaic, (name, label) of its images. Slow methods explain a quarter as many
            of them as of other images, as each has four categories.
    """
    maps = map_functions(bench.methods, bench.loaded.model)
    named = {name_of(group): group for group in groups}
    for name, methods in bench.due("mosaics", list(named), bench.fewer // CELLS):
        given = {method: maps[method] for method in methods}
        ((_, masks),) = on_mosaics(given, bench.loaded, data, [named[name]])
        values = {method: {"cell": own_cells(of_each)} for method, of_each in masks.items()}
        bench.kept.add("mosaics", name, values)


def own_cells(masks: np.ndarray) -> float:
    """The share of a map in its own cell, mean over the maps (CELLS, h, w) of a mosaic's cells."""
    return float(np.mean([cell_share(mask, cell, CELLS) for cell, mask in enumerate(masks)]))


def mosaics_of(
    loaded: LoadedModel, data: LabelledImages, count: int, *, held_out: bool, seed: int
) -> list[list[tuple[str, int]]]:
    """(name, label) of the images of each mosaic: classified correctly and confidently.

    Args:
        held_out: only images that training of the bundled model left out.
        seed: decides which of them form a mosaic.
    """
    names, labels, probabilities = classify(loaded, data, chosen(data, held_out), BATCH)
    sure = confident(labels, probabilities, CONFIDENCE)
    made = groups(labels[sure].tolist(), CELLS, count, seed)
    return [[(names[sure[i]], int(labels[sure[i]])) for i in group] for group in made]


def chosen(data: LabelledImages, held_out: bool) -> list[str]:
    """All names, or those that training of the bundled model left out."""
    return [name for name in data.names if not held_out or is_held_out(int(category_of(name)))]


def name_of(group: Sequence[tuple[str, int]]) -> str:
    """A mosaic's name: those of its images."""
    return " ".join(name for name, _ in group)


def changes(bench: Bench, read: Read, images: Sequence[str]) -> None:
    """Randomisation and stability: how maps change with the weights, and with the image."""
    loaded = bench.loaded
    for name, methods in bench.due("stability", images):
        given = loaded.model, (tensor := bench.tensors(read, [name])), top1(loaded.model, tensor)
        values = {
            method: stability(bench.methods[method], *given, loaded.transform.std)[0]
            for method in methods
        }
        bench.kept.add("stability", name, {m: {"stability": each} for m, each in values.items()})
    lacking = dict.fromkeys(
        method for _, methods in bench.due("randomisation", SHUFFLED) for method in methods
    )
    if not lacking:
        return
    tensors = bench.tensors(read, images[:SHUFFLES])
    categories = top1(loaded.model, tensors)
    methods = {name: bench.methods[name] for name in lacking}
    scores = bench.scores(methods, tensors, categories)
    found = by_shuffles(loaded.model, tensors, categories, methods, scores)
    for place, name in enumerate(SHUFFLED):
        values = {method: {"sanity": each[place]} for method, each in found.items()}
        bench.kept.add("randomisation", name, values)


def times(bench: Bench, read: Read, images: Sequence[str], machine: str) -> None:
    """Each method's time as a ratio to a plain forward pass, on this machine."""
    for name, methods in bench.due("time", [machine]):
        tensors = bench.tensors(read, images[:TIMED])
        categories = top1(bench.loaded.model, tensors)
        given = {method: bench.methods[method] for method in methods}
        ratios = cost(given, bench.loaded.model, tensors, categories)
        bench.kept.add("time", name, {method: {"time": each} for method, each in ratios.items()})
