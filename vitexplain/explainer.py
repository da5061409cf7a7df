"""The requested methods on batches of images, with the names of the model's categories."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.batches import batch_for
from vitexplain.attention.families import check_classifier
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.errors import MissingPackage, RequestError
from vitexplain.faithfulness.baselines import centre_blob, random_map
from vitexplain.faithfulness.score import faithfulness_of
from vitexplain.lens import predictions_by_block
from vitexplain.methods.base import CategoryMethod, Explanation
from vitexplain.methods.questions import TIE
from vitexplain.methods.registry import METHODS, Method, methods_of
from vitexplain.models.loading import LoadedModel
from vitexplain.outputs import are_probabilities, are_values, both_sides, probabilities
from vitexplain.progress import Watch, silent
from vitexplain.settings import MapOptions
from vitexplain.targets import AUTO, Chosen, among, set_against
from vitexplain.words import share_of, short_name

TOP = 5
GPU_BATCH = 32


class Category(NamedTuple):
    """A category of the model, and its probability in one image.

    Attributes:
        probability: 0 to 1; None where outputs are values, not probabilities.
        output: that value then.
    """

    index: int
    name: str
    probability: float | None
    output: float | None = None

    @property
    def short_name(self) -> str:
        """The first synonym: "tiger cat" of "tiger cat, Felis silvestris"."""
        return short_name(self.name)

    @property
    def share(self) -> str:
        """The probability, or the value, in words."""
        return share_of(self.as_json())

    def as_json(self) -> dict:
        """As reports and results have it."""
        fields = self._asdict()
        if self.output is None:
            del fields["output"]
        return fields


@dataclass(frozen=True)
class Map:
    """One map of one image.

    Attributes:
        mask: (h, w) float32, largest value 1; with rivals signed, largest absolute value 1.
        category: the one it explains; None for a map that is the same for all of them.
        method: its name and options.
        faithfulness: see vitexplain.faithfulness; None where it was not measured.
        baseline: the higher faithfulness of the random map and the centre Gaussian, by the same
            target; None where it was not measured.
        scores: (h, w) float32, the method's own numbers before scaling, signed if it has signs.
        rivals: what the category is set against.
    """

    mask: np.ndarray
    category: Category | None
    method: Mapping
    faithfulness: float | None = None
    scores: np.ndarray | None = None
    rivals: tuple[Category, ...] = ()
    baseline: float | None = None

    @property
    def ranked(self) -> np.ndarray:
        """(h, w), by which patches are ranked: signed, where the mask shows what is positive."""
        return self.mask if self.scores is None else self.scores

    @property
    def beats_baselines(self) -> bool:
        """It leads the random map and the centre Gaussian by more than noise, if that is known."""
        return self.baseline is None or self.faithfulness > self.baseline + TIE

    @property
    def signed(self) -> bool:
        """Whether the mask, -1 to 1, has a side for the category and one for its rivals."""
        return bool(self.rivals)

    @property
    def measured_by(self) -> Chosen:
        """The target of measurements, of a map of a category: it, or its share among rivals."""
        return among(self.category.index, [each.index for each in self.rivals])

    @property
    def about(self) -> dict:
        """Method and target as reports and results have them (JSON-ready)."""
        return {"method": self.method, **self.target}

    @property
    def measured(self) -> dict:
        """The same with its faithfulness, as comparisons have it."""
        return {
            **self.about,
            "faithfulness": self.faithfulness,
            "baseline": self.baseline,
            "beats_baselines": self.beats_baselines,
        }

    @property
    def target(self) -> dict:
        """What it explains: a category or None, and what that is set against, if anything."""
        category = None if self.category is None else self.category.as_json()
        against = {"against": [each.as_json() for each in self.rivals]} if self.rivals else {}
        return {"category": category, **against}


@dataclass(frozen=True)
class ImageMaps:
    """One image's most likely categories, its maps, and its true category if that is known."""

    top: list[Category]
    maps: list[Map]
    truth: Category | None = None


@dataclass(frozen=True)
class Block:
    """What the head answers to the tokens after one block, see vitexplain.lens.

    Attributes:
        number: the block's, from 0 on.
        top: the three most likely categories.
        votes: (h, w) int64, the category that each patch alone votes for.
        shares: (h, w) float32, its probability.
        names: of all categories in `votes`, in short.
    """

    number: int
    top: tuple[Category, ...]
    votes: np.ndarray
    shares: np.ndarray
    names: Mapping[int, str]

    def as_json(self) -> dict:
        """As reports have it: the votes as how many patches are for each category."""
        numbers, counts = np.unique(self.votes, return_counts=True)
        votes = [
            {"index": int(index), "name": self.names[int(index)], "patches": int(count)}
            for index, count in zip(numbers, counts, strict=True)
        ]
        top = [each.as_json() for each in self.top]
        return {"block": self.number, "top": top, "votes": sorted(votes, key=_fewest_last)}


def _fewest_last(vote: dict) -> int:
    return -vote["patches"]


def blocks_of_image(loaded: LoadedModel, tensor: Tensor) -> tuple[Block, ...]:
    """The predictions after each block that has what the head reads, of one image (3, H, W).

    Raises:
        UnsupportedModel: if the model's blocks can't be followed.
        RequestError: if it has no categories, or its outputs are no probabilities.
    """
    if not loaded.categories:
        raise RequestError("the model has no categories: no block predicts one")
    return tuple(
        Block(
            each.block,
            tuple(Category(index, loaded.categories[index], share) for index, share in each.top),
            each.votes,
            each.shares,
            {i: short_name(loaded.categories[i]) for i in np.unique(each.votes).tolist()},
        )
        for each in predictions_by_block(loaded.model, tensor[None], loaded.labels)
    )


def answer_stays(blocks: Sequence[Block]) -> int:
    """The number of the block from which the most likely category is the last one's."""
    answer = blocks[-1].top[0].index
    after = (each.number for each in reversed(blocks) if each.top[0].index != answer)
    return next(after, blocks[0].number - 1) + 1


class Explainer:
    """Explains batches of images by the methods that the options request.

    Attributes:
        methods: each method's name and options, JSON-ready.
        left_out: why some methods can't explain this model, where all were requested.

    Raises:
        CategoryError: if the model has no such category.
        UnsupportedModel: if a requested method can't explain the model.
        RequestError: if an option is out of range, applies to none of the methods, or asks for
            categories that the model doesn't have.
    """

    def __init__(self, options: MapOptions, loaded: LoadedModel):
        self.options, self.loaded = options, loaded
        self.left_out: list[str] = []
        self.methods: list[dict] = []
        self._runs: list[Callable[[Tensor], list[Explanation]]] = []
        self._of_categories: list[tuple[dict, CategoryMethod]] = []
        chosen = [METHODS[name] for name in names_of(options)]
        check_options(options, chosen)
        if options.compare and not loaded.categories:
            raise RequestError(
                "--compare measures how faithful maps are to a category: the model has none"
            )
        if options.compare and loaded.labels == "none":
            raise RequestError(
                "--compare measures by probabilities: outputs of --labels none are values"
            )
        for method in chosen:
            try:
                self._add(method)
            except (UnsupportedModel, MissingPackage) as error:
                if options.method or not options.compare:
                    raise
                reason = getattr(error, "reason", error)
                self.left_out.append(f"without {method.title}: {reason}")

    def _add(self, method: Method) -> None:
        options = options_of(method, self.options)
        made = method.make(self.loaded.model, **options)
        self._runs.append(self._of_category(made) if method.of_category else _of_none(made))
        self.methods.append({"name": method.name, **options})
        if method.of_category:
            self._of_categories.append((self.methods[-1], made))

    def _of_category(self, made) -> Callable[[Tensor], list[Explanation]]:
        options, has = self.options, len(self.loaded.categories)
        against = self.rivals
        if options.category in (None, "top"):
            count = options.top_k or 1
            if count > has:
                raise RequestError(f"the model has {has or 'no'} categories, not {count}")
            return lambda x: made.explain_several(x, count, against)
        index = self.loaded.category_index(options.category)
        if isinstance(against, tuple):
            set_against(index, against, has)  # it says what is wrong before the first pass
        return lambda x: [made.explain(x, [index] * len(x), against)]

    @cached_property
    def rivals(self) -> str | tuple[int, ...] | None:
        """What categories are set against: "auto", their indices, or nothing."""
        names = self.options.against
        if not names:
            return None
        if len(self.loaded.categories) < 2:
            raise RequestError("the model has no second category to set one against")
        if AUTO in names:
            if len(names) > 1:
                raise RequestError("--against auto stands alone: leave the other names out")
            return AUTO
        return tuple(self.loaded.category_index(name) for name in names)

    def __call__(
        self,
        tensors: Tensor,
        watch: Watch = silent,
        truths: Sequence[int | None] | None = None,
    ) -> list[ImageMaps]:
        """The maps of B images (B, 3, H, W): for each method, for each category.

        Args:
            truths: the true category of each image. A mistake has two more maps by each method of
                categories: of what is true, and of that against what was predicted.
        """
        found = [run(tensors) for run in watch(self._runs, "maps")]
        outputs = self._outputs(found[0][0].logits)
        explained = []
        for place, shares in enumerate(outputs):
            maps = [
                self._map(method, explanation, place, shares)
                for method, explanations in zip(self.methods, found, strict=True)
                for explanation in explanations
            ]
            truth = truths[place] if truths else None
            if truth is not None and truth != int(shares.argmax()):
                maps += self._of_mistake(tensors[place : place + 1], truth, shares)
            if self.options.compare:
                measure = partial(
                    faithfulness_of,
                    self.loaded.model,
                    tensors[place],
                    labels=self.loaded.labels,
                    watch=watch,
                )
                grid = maps[0].mask.shape
                baselines = [random_map(tensors[place], *grid), centre_blob(*grid)]
                maps = with_faithfulness(maps, measure, int(shares.argmax()), baselines)
            known = None if truth is None else self._category(truth, shares)
            explained.append(ImageMaps(self._top(shares), maps, known))
        return explained

    def _of_mistake(self, tensor: Tensor, truth: int, shares: Tensor) -> list[Map]:
        """By each method of categories: the map of what is true, and why it is not believed."""
        predicted = int(shares.argmax())
        return [
            self._map(method, made.explain(tensor, [truth], against), 0, shares)
            for method, made in self._of_categories
            for against in (None, [predicted])
        ]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.loaded.model.parameters()).device

    def batch_size(self, device: torch.device | None = None) -> int:
        """Images per batch that suit a device, by default the model's; see attention.batches."""
        return batch_for(self.loaded.model, *self.loaded.transform.size, GPU_BATCH, device)

    def _outputs(self, logits: Tensor) -> Tensor:
        """(B, categories): probabilities, or values where the outputs are no probabilities."""
        if not self.loaded.categories:
            return logits
        if logits.ndim != 2:
            raise UnsupportedModel(
                self.loaded.model, f"its outputs {tuple(logits.shape)} are not (B, categories)"
            )
        if are_values(self.loaded.labels):
            return both_sides(logits)
        if are_probabilities(logits):
            raise UnsupportedModel(
                self.loaded.model,
                "its outputs are probabilities already: pass it without the softmax at its end, as "
                "maps are of logits",
            )
        return probabilities(logits, self.loaded.labels)

    def _map(self, method: dict, found: Explanation, place: int, outputs: Tensor) -> Map:
        category = None
        if found.categories is not None:
            category = self._category(found.categories[place], outputs)
        rivals = found.targets[place].rivals if found.targets else ()
        others = tuple(self._category(index, outputs) for index in rivals)
        scores = found.scores[place]
        return Map(found.masks[place], category, method, scores=scores, rivals=others)

    def _top(self, outputs: Tensor) -> list[Category]:
        """The TOP most likely categories of one image, from all its outputs."""
        if not self.loaded.categories:
            return []
        chosen = outputs.sort(descending=True, stable=True).indices[:TOP]
        return [self._category(index, outputs) for index in chosen.tolist()]

    def _category(self, index: int, outputs: Tensor) -> Category:
        output, name = float(outputs[index]), self.loaded.categories[index]
        if are_values(self.loaded.labels):
            return Category(index, name, None, output)
        return Category(index, name, output)


def most_faithful(maps: Sequence[Map]) -> set[int]:
    """Places of the maps with the highest faithfulness of each category.

    A map that is the same for every category competes in the first one's row. Where the highest
    leads by no more than TIE, none is marked: so little is noise of one image. Nor is a map that
    does not beat the baselines.
    """
    of_rows: dict[int, list[int]] = {}
    for place, row in enumerate(rows_of(maps)):
        of_rows.setdefault(row, []).append(place)
    best = set()
    for places in of_rows.values():
        highest = max(maps[place].faithfulness for place in places)
        first = [place for place in places if maps[place].faithfulness >= highest - TIE]
        best.update(place for place in first if len(first) == 1 and maps[place].beats_baselines)
    return best


def with_faithfulness(
    maps: Sequence[Map],
    measure: Callable[[Sequence[tuple[np.ndarray, Chosen]]], list[float]],
    top1: int,
    baselines: Sequence[np.ndarray] = (),
) -> list[Map]:
    """The same maps of one image, each measured.

    Args:
        measure: pairs of scores (h, w) and the target they are measured by -> their faithfulness.
        top1: the category by which maps are measured if none of them is of a category.
        baselines: maps (h, w) that know nothing of the model, measured by every target.
    """
    of_category = next((found for found in maps if found.category), None)
    targets = []
    for found in maps:
        by = found if found.category else of_category  # those of no category by the first one's
        targets.append(by.measured_by if by else top1)
    asked = [(found.ranked, target) for found, target in zip(maps, targets, strict=True)]
    asked += [(mask, target) for target in dict.fromkeys(targets) for mask in baselines]
    values = measure(asked)
    highest: dict[Chosen, float] = {}
    for (_, target), value in list(zip(asked, values, strict=True))[len(maps) :]:
        highest[target] = max(value, highest.get(target, value))
    return [
        replace(found, faithfulness=value, baseline=highest.get(target))
        for found, target, value in zip(maps, targets, values, strict=False)
    ]


def unbeaten(maps: Sequence[Map]) -> bool:
    """No map of these, of one image, beats the random map and the centre Gaussian."""
    return bool(maps) and not any(found.beats_baselines for found in maps)


def rows_of(maps: Sequence[Map]) -> list[int]:
    """The row of each map's category, in the order in which categories first come."""
    indices = [found.category.index for found in maps if found.category]
    order = {index: row for row, index in enumerate(dict.fromkeys(indices))}
    return [order[found.category.index] if found.category else 0 for found in maps]


def names_of(options: MapOptions) -> tuple[str, ...]:
    """The names of the requested methods."""
    of_category = bool(options.category is not None or options.top_k or options.against)
    return methods_of(
        options.method, every=options.compare, of_category=of_category, quick=options.quick
    )


def check_of(options: MapOptions) -> Callable[[nn.Module], nn.Module]:
    """What raises UnsupportedModel for a model that can't be explained as requested.

    It returns timm's model within the given one, and needs no weights. Where all methods are
    compared, some of them may be left out.
    """
    if options.compare and not options.method:
        return check_classifier
    methods = [METHODS[name] for name in names_of(options)]

    def check(model: nn.Module) -> nn.Module:
        made = [method.make(model, **options_of(method, options)) for method in methods]
        return made[0].model

    return check


def options_of(method: Method, options: MapOptions) -> dict:
    """The options that apply to the method, with its defaults for those that are not set."""
    wanted = {
        "head_fusion": options.head_fusion or method.defaults.get("head_fusion"),
        "discard_ratio": options.discard_ratio,
        "start_block": options.start_block,
        "as_published": options.as_published,
        "block": -1 if options.block is None else options.block,
        "head": options.head,
    }
    return {name: wanted[name] for name in wanted if name in method.options}


def _of_none(made) -> Callable[[Tensor], list[Explanation]]:
    return lambda x: [made.explain(x)]


def check_options(options: MapOptions, methods: Sequence[Method]) -> None:
    """Raise RequestError if an option is set that applies to none of the methods."""
    names = " and ".join(method.title for method in methods)
    for option in ("head_fusion", "start_block", "as_published", "block", "head"):
        is_set = getattr(options, option) != getattr(MapOptions, option)
        if is_set and not any(option in method.options for method in methods):
            raise RequestError(f"--{option} does not apply to {names}: leave it out")
    of_category = any(method.of_category for method in methods)
    if options.against and not of_category:
        raise RequestError(f"{names} is the same for every category: leave --against out")
    if options.against and options.as_published:
        raise RequestError("--against does not apply to --as_published: leave one of them out")
    if not of_category and (options.category is not None or options.top_k):
        raise RequestError(f"{names} is the same for every category: leave the category out")
