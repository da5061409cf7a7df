"""How a category's probability changes as the patches that a map ranks are removed.

Petsiuk, Das & Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models"
(section 4.2). Deletion removes patches, the most relevant first: a faithful map makes the
probability fall early. Insertion puts them into an empty image in the same order: it rises early.
Either is summarised by the area under the curve of probability over the share of patches.

Chefer, Gur & Wolf 2021, "Transformer Interpretability Beyond Attention Visualization" (section 4,
perturbation tests): how often the category stays the most likely one while 10 % to 90 % are
removed, the most relevant first (positive) or last (negative).

The papers remove pixels; here whole patches go, as a map has one value for each. What takes their
place is said in vitexplain.faithfulness.states. (Chefer, Gur & Wolf fill with black.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from vitexplain.errors import RequestError
from vitexplain.faithfulness.dropping import DROP, check_drops_tokens
from vitexplain.faithfulness.passes import check_categories
from vitexplain.faithfulness.states import FILLS, Answers, State, check_fills, state_of
from vitexplain.progress import Watch, silent
from vitexplain.targets import Chosen, Target

TENTHS = range(1, 10)


@dataclass(frozen=True)
class Curves:
    """The model's output for B images while patches are removed, or inserted, in S steps.

    Attributes:
        shares: (S + 1,), 0 to 1, the share of the patches removed, or inserted.
        probabilities: (B, S + 1), the category's probability.
        first: (B, S + 1) bool, whether the category is the most likely one.
    """

    shares: np.ndarray
    probabilities: np.ndarray
    first: np.ndarray

    @property
    def areas(self) -> np.ndarray:
        """(B,), the area under each curve of probabilities by the trapezoid rule, 0 to 1."""
        return np.trapezoid(self.probabilities, self.shares, axis=1)


@dataclass(frozen=True)
class Ranking:
    """One map of one image: the order in which patches go, and what is measured meanwhile.

    Attributes:
        image: its number.
        grid: (h, w) of the patches.
        ranks: (h*w,), 0 the most relevant patch, see patch_ranks.
        target: the category, or contrast, that is measured.
    """

    image: int
    grid: tuple[int, int]
    ranks: np.ndarray
    target: Chosen

    def moved(self, steps: int) -> list[int]:
        """How many patches have been removed, or inserted, after 0, 1, ... all steps."""
        return moved_after(len(self.ranks), steps)

    def states(self, fill: str, steps: int, *, insert: bool) -> list[State]:
        """The image at each of these moments."""
        found = []
        for number in self.moved(steps):
            has_moved = self.ranks < number
            shown = has_moved if insert else ~has_moved
            found.append(state_of(self.image, fill, self.grid, shown))
        return found


def moved_after(patches: int, steps: int) -> list[int]:
    """How many of the patches have moved after 0, 1, ... all steps."""
    return [round(step * patches / steps) for step in range(steps + 1)]


def rankings_of(masks: np.ndarray, targets: Sequence[Chosen], seed: int = 0) -> list[Ranking]:
    """Rankings by maps (B, h, w) of B images, with one target each."""
    ranks = patch_ranks(masks, seed)
    return [
        Ranking(number, masks.shape[1:], of_image, each if isinstance(each, Target) else int(each))
        for number, (of_image, each) in enumerate(zip(ranks, targets, strict=True))
    ]


def ask_for(
    answers: Answers,
    rankings: Iterable[Ranking],
    steps: int,
    fills: Sequence[str] = FILLS,
    watch: Watch = silent,
) -> None:
    """Pass all that the curves of these rankings need through the model, in common batches."""
    wanted = (
        (state, ranking.target)
        for ranking in rankings
        for fill in fills
        for insert in (False, True)
        for state in ranking.states(fill, steps, insert=insert)
    )
    answers.ask(wanted, watch)


def curves(
    answers: Answers, rankings: Sequence[Ranking], fill: str, steps: int, *, insert: bool
) -> Curves:
    """The curves of rankings of one grid: of insertion, or else of deletion.

    What has been asked for before takes no further pass.
    """
    states = [ranking.states(fill, steps, insert=insert) for ranking in rankings]
    asked = [
        [(state, ranking.target) for state in of_curve]
        for ranking, of_curve in zip(rankings, states, strict=True)
    ]
    answers.ask(pair for row in asked for pair in row)
    found = [[answers[pair] for pair in row] for row in asked]
    return Curves(
        np.array(rankings[0].moved(steps)) / len(rankings[0].ranks),
        np.array([[answer.probability for answer in row] for row in found]),
        np.array([[answer.first for answer in row] for row in found]),
    )


class Removal:
    """Removes patches of B images in the order of any map, each image having one category.

    The whole images and the empty ones are the same for all maps and both directions: they pass
    through the model once. A curve then takes at most `steps` - 1 passes of each image.

    Args:
        model: gives logits (B, categories); used in evaluation mode, left as it was found.
        images: (B, 3, H, W), normalised: 0 is the mean colour.
        categories: B of them, or contrasts: each category's share of its own and its rivals'
            probabilities, p_a / (p_a + p_b), takes the place of its probability.
        fill: what takes the place of a removed patch, "mean" or "blur"; or "drop", its token is
            left out.
        steps: the number of roughly equal parts in which patches are removed.
        batch_size: images per forward pass; halved where memory does not suffice. None: what suits
            the device.
        seed: of the order of patches with equal values.
        labels: how the outputs become probabilities, "exclusive" or "independent".

    Raises:
        RequestError: if an argument is out of range, or tokens can't be left out of this model.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        categories: Sequence[Chosen],
        fill: str,
        steps: int = 20,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        labels: str = "exclusive",
    ):
        check_fills([fill])
        if steps < 1:
            raise RequestError(f"steps must be at least 1, not {steps}")
        check_categories(model, images, categories)
        if fill == DROP:
            check_drops_tokens(model)
        self.fill, self.steps, self.seed = fill, steps, seed
        self.categories = categories
        self.answers = Answers(model, images, labels, batch_size)

    def deletion(self, masks: np.ndarray) -> Curves:
        """Curves of removal by maps (B, h, w), the most relevant patch first: low is good."""
        return self._curves(masks, insert=False)

    def insertion(self, masks: np.ndarray) -> Curves:
        """Curves of insertion by maps (B, h, w), the most relevant patch first: high is good."""
        return self._curves(masks, insert=True)

    def _curves(self, masks: np.ndarray, *, insert: bool) -> Curves:
        count = len(self.categories)
        if masks.ndim != 3 or len(masks) != count:
            raise RequestError(f"{count} images need as many masks (h, w), not {masks.shape}")
        rankings = rankings_of(masks, self.categories, self.seed)
        return curves(self.answers, rankings, self.fill, self.steps, insert=insert)


def perturbation(deletion: Curves, insertion: Curves) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative), (B,) each: how often the category stays the most likely one.

    Of 10 %, 20 %, ... 90 % of the patches removed, the share at which it does; the most relevant
    patches go first (positive: low is good), or last (negative: high is good). Removing the least
    relevant 10 % is the same as inserting the most relevant 90 %, so that the curves (of the same
    fill, in a multiple of 10 steps) hold all that is needed.

    Raises:
        RequestError: if the curves have no such steps.
    """
    steps = len(deletion.shares) - 1
    if steps % 10 or insertion.shares.shape != deletion.shares.shape:
        raise RequestError(f"the perturbation test needs curves in 10, 20, ... steps, not {steps}")
    at = [steps * tenth // 10 for tenth in TENTHS]
    return deletion.first[:, at].mean(axis=1), insertion.first[:, at].mean(axis=1)


def patch_ranks(masks: np.ndarray, seed: int = 0) -> np.ndarray:
    """(B, h, w) -> (B, h*w): each patch's rank by relevance, 0 the most relevant.

    A random order, the same for all images, decides among equal values: if position did, maps with
    many equal values (zeros, after a discard) would be scored by where those patches are.
    """
    values = masks.reshape(len(masks), -1)
    lots = np.random.default_rng(seed).permutation(values.shape[1])
    order = np.lexsort((np.broadcast_to(lots, values.shape), -values), axis=1)
    return np.argsort(order, axis=1)
