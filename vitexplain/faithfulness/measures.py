"""Everything that can be measured of methods on images without labels."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.errors import RequestError
from vitexplain.faithfulness.baselines import BASELINES
from vitexplain.faithfulness.passes import BATCH, check_categories, masks_of, top1
from vitexplain.faithfulness.removal import FILLS, Removal, perturbation
from vitexplain.faithfulness.sanity import randomisation
from vitexplain.faithfulness.stability import stability
from vitexplain.faithfulness.table import Measure
from vitexplain.faithfulness.timing import cost
from vitexplain.methods.registry import METHODS, Method

ALL = METHODS | BASELINES
REMOVED = (
    Measure("deletion_mean", "Deletion ↓ (mean)", "lower"),
    Measure("deletion_blur", "Deletion ↓ (blur)", "lower"),
    Measure("insertion_mean", "Insertion ↑ (mean)", "higher"),
    Measure("insertion_blur", "Insertion ↑ (blur)", "higher"),
    Measure("positive", "Perturbation, positive ↓", "lower"),
    Measure("negative", "Perturbation, negative ↑", "higher"),
)
OTHERS = (
    Measure("sanity", "Randomisation ρ → 0", "nearer to 0"),
    Measure("stability", "Stability ρ ↑", "higher"),
    Measure("time", "Time × forward ↓", "lower"),
)
MEASURES = (*REMOVED, *OTHERS)
STEPS = 10
FEW = 5  # images for measures that explain each of them many times
TIMED = 2  # images at once while methods are timed


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        values: method -> key of a measure -> its value for each image (one for the time).
        left_out: method -> why it can't explain this model.
    """

    values: dict[str, dict[str, np.ndarray]]
    left_out: dict[str, str]


def evaluate_images(
    model: nn.Module,
    images: Tensor,
    std: Sequence[float],
    methods: Mapping[str, Method] | None = None,
    categories: Sequence[int] | None = None,
    *,
    steps: int = STEPS,
    few: int = FEW,
    batch_size: int = BATCH,
    seed: int = 0,
) -> Evaluation:
    """Measure methods on B images; see MEASURES.

    Args:
        model: left as it was found.
        images: (B, 3, H, W), transformed; batches of them go to the model's device.
        std: by which the transform divided their three channels.
        methods: by name; by default all methods and floors.
        categories: B of them; by default the model's first choices.
        steps: of the curves, a multiple of 10.
        few: how many images, the first ones, randomisation and stability are measured on.
        batch_size: images that the model gets at once.
        seed: of shuffles, noise and lots.

    Raises:
        RequestError: if an argument is out of range, or the model has no categories.
    """
    if steps < 1 or steps % 10:
        raise RequestError(f"steps must be a multiple of 10, not {steps}")
    if not model.num_classes:
        raise RequestError("a model without categories has no probabilities to measure by")
    if categories is None:
        categories = top1(model, images, batch_size)
    check_categories(model, images, categories)
    methods = ALL if methods is None else methods
    masks, left_out = _masks(methods, model, images, categories, batch_size)
    methods = {name: methods[name] for name in masks}
    values = _removed(masks, model, images, categories, steps, batch_size, seed)
    first, its = images[:few], categories[:few]
    _, alike = randomisation(
        model, first, its, methods, only_last=True, batch_size=batch_size, seed=seed
    )
    ratios = cost(methods, model, images[:TIMED], list(categories[:TIMED]))
    for name, method in methods.items():
        values[name]["sanity"] = alike[name][:, -1]
        values[name]["stability"] = stability(
            method,
            model,
            first,
            its,
            std,
            masks=masks[name][:few],
            batch_size=batch_size,
            seed=seed,
        )
        values[name]["time"] = np.array([ratios[name]])
    return Evaluation(values, left_out)


def _masks(
    methods: Mapping[str, Method],
    model: nn.Module,
    images: Tensor,
    categories: Sequence[int],
    batch_size: int,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(B, h, w) of each method that explains this model, and why the others don't."""
    masks, left_out = {}, {}
    for name, method in _progress(methods.items(), "maps"):
        try:
            masks[name] = masks_of(method, model, images, categories, batch_size)
        except UnsupportedModel as error:
            left_out[name] = error.reason
    return masks, left_out


def _removed(
    masks: dict[str, np.ndarray],
    model: nn.Module,
    images: Tensor,
    categories: Sequence[int],
    steps: int,
    batch_size: int,
    seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """What insertion, deletion and the perturbation test say, for each image."""
    parts: dict[str, list[dict]] = {name: [] for name in masks}
    for start in _progress(range(0, len(images), batch_size), "patches removed"):
        part = slice(start, start + batch_size)
        removals = {
            fill: Removal(
                model,
                images[part],
                categories[part],
                fill,
                steps,
                batch_size=batch_size,
                seed=seed,
            )
            for fill in FILLS
        }
        for name in masks:
            parts[name].append(_curves_of(removals, masks[name][part]))
    return {
        name: {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        for name, found in parts.items()
    }


def _curves_of(removals: dict[str, Removal], masks: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for fill, removal in removals.items():
        deletion, insertion = removal.deletion(masks), removal.insertion(masks)
        found[f"deletion_{fill}"] = deletion.areas
        found[f"insertion_{fill}"] = insertion.areas
        if fill == "mean":
            found["positive"], found["negative"] = perturbation(deletion, insertion)
    return found


def _progress(items, what: str):
    return tqdm(items, what, disable=not sys.stderr.isatty())
