"""The methods that the settings ask for, on batches of images, and what they found in words."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from vit_rollout import Explanation
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.faithfulness.score import faithfulness
from vitexplain.methods.registry import METHODS, Method, methods_of
from vitexplain.models.loading import LoadedModel
from vitexplain.settings import Settings

TOP = 5


@dataclass(frozen=True)
class Map:
    """One map of one image.

    Attributes:
        mask: (h, w) float32, largest value 1.
        category: index, name and probability; None for a map of all categories.
        method: its name and options.
        faithfulness: see vitexplain.faithfulness; None where it was not measured.
    """

    mask: np.ndarray
    category: dict | None
    method: Mapping
    faithfulness: float | None = None


@dataclass(frozen=True)
class Explained:
    """What was found in one image: its most likely categories, and its maps."""

    top: list[dict]
    maps: list[Map]


class Explainer:
    """Explains batches as the settings say.

    Attributes:
        methods: of each method its name and options, JSON-ready.
        left_out: why some methods can't explain this model, where all were asked for.

    Raises:
        vitexplain.models.categories.CategoryError: if the category is none of the model's.
        UnsupportedModel: if a method that was asked for can't explain the model.
        ValueError: if a setting is out of range, asks for categories of a model without, or is
            none of the methods'.
    """

    def __init__(self, settings: Settings, loaded: LoadedModel):
        self.settings, self.loaded = settings, loaded
        self.left_out: list[str] = []
        self.methods: list[dict] = []
        self._runs: list[Callable[[Tensor], list[Explanation]]] = []
        chosen = [METHODS[name] for name in names_of(settings)]
        _check_options(settings, chosen)
        if settings.compare and not loaded.categories:
            raise ValueError("--compare measures how faithful maps are to a category: the model "
                             "has none")  # fmt: skip
        for method in chosen:
            try:
                self._add(method)
            except (UnsupportedModel, ImportError) as error:
                if settings.method or not settings.compare:
                    raise
                reason = getattr(error, "reason", error)
                self.left_out.append(f"without {method.title}: {reason}")

    def _add(self, method: Method) -> None:
        options = options_of(method, self.settings)
        made = method.make(self.loaded.model, **options)
        self._runs.append(self._of_category(made) if method.of_category else _of_none(made))
        self.methods.append({"name": method.name, **options})

    def _of_category(self, made) -> Callable[[Tensor], list[Explanation]]:
        settings, has = self.settings, len(self.loaded.categories)
        if settings.category in (None, "top"):
            count = settings.top_k or 1
            if count > has:
                raise ValueError(f"the model has {has or 'no'} categories, not {count}")
            return lambda x: made.explain_several(x, count)
        index = self.loaded.category_index(settings.category)
        return lambda x: [made.explain(x, [index] * len(x))]

    def __call__(self, tensors: Tensor) -> list[Explained]:
        """Of each of B images (B, 3, H, W) its maps: of each method, of each category."""
        found = [run(tensors) for run in self._runs]
        probabilities = found[0][0].logits.softmax(dim=1)
        return [
            Explained(
                self._top1(shares),
                self._measured(
                    tensors[place],
                    [
                        self._map(method, explanation, place, shares)
                        for method, explanations in zip(self.methods, found, strict=True)
                        for explanation in explanations
                    ],
                    int(shares.argmax()),
                ),
            )
            for place, shares in enumerate(probabilities)
        ]

    def beside(self) -> "Explainer":
        """Another one on the same weights, which can run in another thread at the same time.

        Hooks and modes belong to modules, so these are copied; the parameters are frozen.
        """
        model = self.loaded.model.requires_grad_(False)
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        return Explainer(self.settings, replace(self.loaded, model=deepcopy(model, shared)))

    def _measured(self, tensor: Tensor, maps: list[Map], top1: int) -> list[Map]:
        """With their faithfulness, where maps are compared."""
        if not self.settings.compare:
            return maps
        return with_faithfulness(maps, partial(faithfulness, self.loaded.model, tensor), top1)

    def _map(self, method: dict, found: Explanation, place: int, probabilities: Tensor) -> Map:
        categories = found.categories
        category = None if categories is None else self._category(categories[place], probabilities)
        return Map(found.masks[place], category, method)

    def _top1(self, probabilities: Tensor) -> list[dict]:
        """The TOP most likely categories of one image, from all its probabilities."""
        if not self.loaded.categories:
            return []
        chosen = probabilities.sort(descending=True, stable=True).indices[:TOP]
        return [self._category(index, probabilities) for index in chosen.tolist()]

    def _category(self, index: int, probabilities: Tensor) -> dict:
        """Index, name and probability of a category of one image."""
        name, probability = self.loaded.categories[index], float(probabilities[index])
        return {"index": index, "name": name, "probability": probability}


def most_faithful(maps: Sequence[Map]) -> set[int]:
    """Places of the maps with the highest faithfulness of each category.

    A map of no category stands in the first one's row.
    """
    best: dict[int, int] = {}
    for place, row in enumerate(rows_of(maps)):
        if row not in best or maps[place].faithfulness > maps[best[row]].faithfulness:
            best[row] = place
    return set(best.values())


def with_faithfulness(
    maps: Sequence[Map], measure: Callable[[np.ndarray, int], float], top1: int
) -> list[Map]:
    """The same maps, each measured.

    Args:
        measure: (mask (h, w), category) -> faithfulness.
        most likely: the category to which maps of no category are held, if none has one.
    """
    first = next((found.category["index"] for found in maps if found.category), top1)
    return [
        replace(
            found,
            faithfulness=measure(found.mask, found.category["index"] if found.category else first),
        )
        for found in maps
    ]


def rows_of(maps: Sequence[Map]) -> list[int]:
    """The row of each map's category, in the order in which categories first come."""
    indices = [found.category["index"] for found in maps if found.category]
    order = {index: row for row, index in enumerate(dict.fromkeys(indices))}
    return [order[found.category["index"]] if found.category else 0 for found in maps]


def names_of(settings: Settings) -> tuple[str, ...]:
    """The names of the methods that the settings ask for."""
    of_category = settings.category is not None or settings.top_k is not None
    return methods_of(settings.method, every=settings.compare, of_category=of_category)


def options_of(method: Method, settings: Settings) -> dict:
    """Those settings that are options of the method; what is not set is as the method has it."""
    wanted = {
        "head_fusion": settings.head_fusion or method.defaults.get("head_fusion", "mean"),
        "discard_ratio": settings.discard_ratio,
        "start_block": settings.start_block,
        "as_published": settings.as_published,
        "block": -1 if settings.block is None else settings.block,
        "head": settings.head,
    }
    return {name: wanted[name] for name in wanted if name in method.options}


def _of_none(made) -> Callable[[Tensor], list[Explanation]]:
    return lambda x: [made.explain(x)]


def _check_options(settings: Settings, methods: Sequence[Method]) -> None:
    """Raise a ValueError if something is set that none of the methods takes."""
    names = " and ".join(method.title for method in methods)
    for option in ("head_fusion", "start_block", "as_published", "block", "head"):
        is_set = getattr(settings, option) != getattr(Settings, option)
        if is_set and not any(option in method.options for method in methods):
            raise ValueError(f"--{option} means nothing to {names}: leave it out")
    of_category = any(method.of_category for method in methods)
    if not of_category and (settings.category is not None or settings.top_k):
        raise ValueError(f"{names} is the same for every category: leave the category out")
