"""How high insertion can get, and how low deletion, so that a method's area has a scale.

A greedy order of an image's n patches. At every one of S steps, each patch that has not moved yet
is tried alone: inserted, or deleted. The n/S of them with the highest resulting probability, or the
lowest, move together; the curve runs through what the model then answers.

No map is asked: the search knows what is measured, and takes about n (S + 1) / 2 passes for a
curve. Each direction and each fill has an order of its own, so that no single map need reach all of
them.

The order is greedy, and made of groups whose patches were tried one by one, so that it need not be
the best one. Its area is a lower bound of the highest insertion, and an upper bound of the lowest
deletion, that is possible; a map may even go beyond it. (Where the effects of patches on the logit
add up, it is the best.)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitexplain.errors import RequestError
from vitexplain.faithfulness.passes import check_categories
from vitexplain.faithfulness.removal import Curves, Ranking, curves, moved_after
from vitexplain.faithfulness.states import Answers, State, check_fills, state_of
from vitexplain.targets import Chosen


@dataclass(frozen=True)
class Ceiling:
    """The greedy order of one image's patches, and its curve.

    Attributes:
        ranking: 0 for the patch that moves first; within a step by what each did alone.
        curves: of one image, over the steps of the search.
    """

    ranking: Ranking
    curves: Curves

    @property
    def area(self) -> float:
        """Under the curve, 0 to 1."""
        return float(self.curves.areas[0])

    @property
    def scores(self) -> np.ndarray:
        """(h, w), a map that ranks patches in this order: from 1, the first, down to above 0."""
        ranks = self.ranking.ranks
        return (1 - ranks / len(ranks)).reshape(self.ranking.grid)


def ceiling(
    answers: Answers,
    image: int,
    grid: tuple[int, int],
    target: Chosen,
    steps: int,
    fill: str,
    *,
    insert: bool,
) -> Ceiling:
    """The greedy order of insertion, or else of deletion, see above.

    Args:
        answers: the model's; it keeps those to all states that are tried.
        image: its number among those of `answers`.
        grid: (h, w) of the patches.
        target: the category, or contrast, that is measured.
        steps: in which patches move, S, as those of a method's curve.
        fill: by which patches are hidden.

    Raises:
        RequestError: if an argument is out of range, or the model can't hide patches so.
    """
    check_fills([fill])
    if steps < 1:
        raise RequestError(f"steps must be at least 1, not {steps}")
    if min(grid) < 1:
        raise RequestError(f"grid must be at least 1x1, not {grid[0]}x{grid[1]}")
    if image not in range(len(answers.images)):
        raise RequestError(f"image must be from 0 to {len(answers.images) - 1}, not {image}")
    check_categories(answers.model, answers.images[[image]], [target])
    moved = np.zeros(grid[0] * grid[1], dtype=bool)
    order: list[int] = []
    for number in moved_after(len(moved), steps):
        if number > len(order):  # else there are more steps than patches
            tried = _each_alone(moved, image, grid, fill, insert=insert)
            ranked = _best_first(answers, tried, target, highest=insert)
            order += ranked[: number - len(order)]
            moved[order] = True
    ranking = Ranking(image, grid, np.argsort(order), target)
    return Ceiling(ranking, curves(answers, [ranking], fill, steps, insert=insert))


def _each_alone(
    moved: np.ndarray, image: int, grid: tuple[int, int], fill: str, *, insert: bool
) -> dict[int, State]:
    """Patch that has not moved yet -> the state in which it has, too."""
    states = {}
    for patch in np.flatnonzero(~moved).tolist():
        after = moved.copy()
        after[patch] = True
        states[patch] = state_of(image, fill, grid, after if insert else ~after)
    return states


def _best_first(
    answers: Answers, tried: Mapping[int, State], target: Chosen, *, highest: bool
) -> list[int]:
    """The patches by the probability of their states; of equal ones the first comes first."""
    answers.ask((state, target) for state in tried.values())
    found = {patch: answers[state, target].probability for patch, state in tried.items()}
    return sorted(found, key=found.__getitem__, reverse=highest)
