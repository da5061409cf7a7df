"""All measures that need no labels, for several methods on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from torch import Tensor, nn

from vitexplain.attention.readout import has_categories
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.errors import RequestError
from vitexplain.faithfulness.baselines import BASELINES
from vitexplain.faithfulness.passes import BATCH, check_categories, scores_of, top1
from vitexplain.faithfulness.removal import Ranking, ask_for, curves, perturbation, rankings_of
from vitexplain.faithfulness.sanity import by_shuffles
from vitexplain.faithfulness.stability import stability
from vitexplain.faithfulness.states import FILLS, HIDDEN_BY, Answers, check_fills
from vitexplain.faithfulness.table import Measure
from vitexplain.faithfulness.timing import cost
from vitexplain.methods.registry import METHODS, Method
from vitexplain.progress import Watch, bar
from vitexplain.targets import Chosen

ALL = METHODS | BASELINES
REMOVED = (
    Measure("faithfulness", "Faithfulness ↑", "higher"),
    Measure("deletion_mean", "Deletion ↓ (mean)", "lower"),
    Measure("deletion_blur", "Deletion ↓ (blur)", "lower"),
    Measure("deletion_drop", "Deletion ↓ (drop)", "lower"),
    Measure("insertion_mean", "Insertion ↑ (mean)", "higher"),
    Measure("insertion_blur", "Insertion ↑ (blur)", "higher"),
    Measure("insertion_drop", "Insertion ↑ (drop)", "higher"),
    Measure("positive", "Perturbation, positive ↓", "lower"),
    Measure("negative", "Perturbation, negative ↑", "higher"),
)
OTHERS = (
    Measure("sanity", "Randomisation abs ρ ↓", "lower", "shuffles of the weights"),
    Measure("stability", "Stability ρ ↑", "higher", "images for stability"),
    Measure("time", "Time × forward ↓", "lower", ""),
)
MEASURES = (*REMOVED, *OTHERS)
STEPS = 10
FEW = 5  # images for measures that explain each image several times
TIMED = 2  # images per batch while methods are timed


@dataclass(frozen=True)
class Evaluation:
    """The values of all measures, for each image.

    Attributes:
        values: method -> key of a measure -> its value for each image (one for the time).
        left_out: method -> why it can't explain this model.
    """

    values: dict[str, dict[str, np.ndarray]]
    left_out: dict[str, str]


@dataclass(frozen=True)
class _Case:
    """B images (B, 3, H, W) with one category each, and how the model is run on them."""

    model: nn.Module
    images: Tensor
    categories: Sequence[int]
    batch_size: int
    seed: int
    labels: str = "exclusive"
    watch: Watch = bar

    def part(self, which: slice) -> "_Case":
        return replace(self, images=self.images[which], categories=self.categories[which])


def evaluate_images(
    model: nn.Module,
    images: Tensor,
    std: Sequence[float],
    methods: Mapping[str, Method] | None = None,
    categories: Sequence[Chosen] | None = None,
    *,
    steps: int = STEPS,
    few: int = FEW,
    fills: Sequence[str] = HIDDEN_BY,
    batch_size: int = BATCH,
    seed: int = 0,
    labels: str = "exclusive",
    watch: Watch = bar,
) -> Evaluation:
    """Measure methods on B images; see MEASURES.

    Args:
        model: left as it was found.
        images: (B, 3, H, W), transformed; batches of them are moved to the model's device.
        std: what the transform divided the three channels by.
        methods: by name; by default all methods and baselines.
        categories: B of them, or contrasts; by default the model's most likely categories.
        steps: of the curves, a multiple of 10.
        few: randomisation and stability are measured on this many images, the first ones.
        fills: by which patches are hidden; there are no values of those that don't fit the model.
        batch_size: images per forward pass.
        seed: of shuffles, noise, and the order of equal values.
        labels: how the outputs become probabilities, "exclusive" or "independent".
        watch: shows how far the work has come, see vitexplain.progress.

    Raises:
        RequestError: if an argument is out of range, or the model has no categories.
    """
    if steps < 1 or steps % 10:
        raise RequestError(f"steps must be a multiple of 10, not {steps}")
    check_fills(fills)
    if not has_categories(model):
        raise RequestError("a model without categories has no probabilities to measure by")
    if categories is None:
        categories = top1(model, images, batch_size)
    check_categories(model, images, categories)
    case = _Case(model, images, categories, batch_size, seed, labels, watch)
    methods = ALL if methods is None else methods
    masks, left_out = _masks(methods, case)
    methods = {name: methods[name] for name in masks}
    by_removal = _by_removal(masks, case, steps, fills)
    few_masks = {name: mask[:few] for name, mask in masks.items()}
    by_change = _by_change(methods, few_masks, case.part(slice(few)), std)
    ratios = cost(methods, model, images[:TIMED], list(categories[:TIMED]))
    values = {
        name: by_removal[name] | by_change[name] | {"time": np.array([ratios[name]])}
        for name in methods
    }
    return Evaluation(values, left_out)


def _masks(
    methods: Mapping[str, Method], case: _Case
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(B, h, w) of each method that explains this model, and why the others don't."""
    masks, left_out = {}, {}
    for name, method in case.watch(methods.items(), "maps"):
        try:
            masks[name] = scores_of(
                method, case.model, case.images, case.categories, case.batch_size
            )
        except UnsupportedModel as error:
            left_out[name] = error.reason
    return masks, left_out


def removed(
    answers: Answers,
    scores: Mapping[str, np.ndarray],
    targets: Sequence[Chosen],
    steps: int = STEPS,
    fills: Sequence[str] = HIDDEN_BY,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Insertion, deletion and the perturbation test of several maps of B images.

    All maps together: the batches are full, and what several of them ask passes once. There are no
    values of fills by which the model, or a map's grid, can't hide patches: see Answers.can_hide.

    Args:
        answers: the model's, to these images.
        scores: method -> (B, h, w), what patches are ranked by.
        targets: B categories, or contrasts.
        steps: of the curves.
        fills: that are measured; the perturbation test is of "mean".
        seed: of the order of equal values.

    Returns:
        method -> key of REMOVED -> (B,), its value for each image.

    Raises:
        RequestError: if there is no such fill, or the perturbation test is due and `steps` is no
            multiple of 10.
    """
    check_fills(fills)
    rankings = {name: rankings_of(each, targets, seed) for name, each in scores.items()}
    fitting = {
        name: [fill for fill in fills if answers.can_hide(fill, each.shape[1:])]
        for name, each in scores.items()
    }
    for fill in fills:
        these = (rankings[name] for name in rankings if fill in fitting[name])
        ask_for(answers, chain.from_iterable(these), steps, [fill])
    return {
        name: _areas(answers, of_map, steps, fitting[name]) for name, of_map in rankings.items()
    }


def _by_removal(
    masks: Mapping[str, np.ndarray], case: _Case, steps: int, fills: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """The values of REMOVED for all images, some at a time."""
    parts: dict[str, list[dict]] = {name: [] for name in masks}
    size = case.batch_size
    for start in case.watch(range(0, len(case.images), size), "patches removed"):
        which = slice(start, start + size)
        part = case.part(which)
        answers = Answers(part.model, part.images, part.labels, size)
        scores = {name: mask[which] for name, mask in masks.items()}
        found = removed(answers, scores, part.categories, steps, fills, case.seed)
        for name, values in found.items():
            parts[name].append(values)
    return {
        name: {key: np.concatenate([part[key] for part in several]) for key in several[0]}
        for name, several in parts.items()
    }


def _areas(
    answers: Answers, rankings: Sequence[Ranking], steps: int, fills: Sequence[str]
) -> dict[str, np.ndarray]:
    """The values of REMOVED for one map of each image."""
    values = {}
    for fill in fills:
        deletion, insertion = (
            curves(answers, rankings, fill, steps, insert=insert) for insert in (False, True)
        )
        values[f"deletion_{fill}"] = deletion.areas
        values[f"insertion_{fill}"] = insertion.areas
        if fill == "mean":
            values["positive"], values["negative"] = perturbation(deletion, insertion)
    return faithful(values) | values


def faithful(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ "faithfulness" as in vitexplain.faithfulness.score, where both fills were measured."""
    keys = [(f"insertion_{fill}", f"deletion_{fill}") for fill in FILLS]
    if not values.keys() >= {key for pair in keys for key in pair}:
        return {}
    differences = [values[insertion] - values[deletion] for insertion, deletion in keys]
    return {"faithfulness": np.mean(differences, axis=0)}


def _by_change(
    methods: Mapping[str, Method],
    masks: Mapping[str, np.ndarray],
    case: _Case,
    std: Sequence[float],
) -> dict[str, dict[str, np.ndarray]]:
    """Randomisation and stability: how the maps change with the weights, and with the image."""
    given = case.model, case.images, case.categories
    options = {"batch_size": case.batch_size, "seed": case.seed}
    correlations = by_shuffles(*given, methods, masks, watch=case.watch, **options)
    return {
        name: {
            "sanity": correlations[name],
            "stability": stability(method, *given, std, masks=masks[name], **options),
        }
        for name, method in case.watch(methods.items(), "stability")
    }
