"""What a map explains: one scalar of a model's outputs.

For a category it is that category's logit y_c. For a category against others it is their contrast,

    y = y_c - sum_d w_d y_d,    sum_d w_d = 1,

which evidence that they share leaves as it is: why c, and not d. Rivals need not be named. Zhang et
al. 2025, "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation" (CVPR),
take the categories whose logits are nearest to that of c, with the weights p_d / sum_d p_d. (On 240
mosaics of four photographs, the most likely others did as well with DeiT-tiny, and worse with the
bundled model: gradient rollout had 0.74 of its map in the right cell, and 0.79 with the nearest.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vitexplain.errors import RequestError

RIVALS = 3  # that are taken if none are named, as in the paper
AUTO = "auto"


@dataclass(frozen=True)
class Target:
    """The contrast of a category with others.

    Attributes:
        index: the category that it is evidence for.
        rivals: the others.
        weights: of each, summing to 1.
        sign: -1 for the same contrast seen from the others' side.
    """

    index: int
    rivals: tuple[int, ...]
    weights: tuple[float, ...]
    sign: int = 1

    def of(self, outputs: Tensor) -> Tensor:
        """The scalar, from one image's outputs (K,)."""
        others = outputs.new_tensor(self.weights)
        return self.sign * (outputs[self.index] - outputs[list(self.rivals)] @ others)

    def reversed(self) -> "Target":
        """The others' evidence against the category."""
        return replace(self, sign=-self.sign)


Chosen = int | Target  # a category's own logit, or a contrast


def value_of(target: Chosen, outputs: Tensor) -> Tensor:
    """A target's scalar, from one image's outputs (K,)."""
    return target.of(outputs) if isinstance(target, Target) else outputs[target]


def indices_of(target: Chosen) -> tuple[int, ...]:
    """The categories that a target is about, its own one first."""
    return (target.index, *target.rivals) if isinstance(target, Target) else (int(target),)


def among(index: int, rivals: Sequence[int]) -> Chosen:
    """What a category is measured by: itself, or its share of its and its rivals' probabilities.

    Probabilities are summed, so that rivals have no weights.
    """
    return Target(index, tuple(rivals), ()) if rivals else index


def set_against(index: int, rivals: Sequence[int], count: int) -> Target:
    """A category against others that count the same.

    Args:
        count: how many categories there are.

    Raises:
        RequestError: if the category is one of the others, or one is out of range.
    """
    rivals = tuple(dict.fromkeys(rivals))
    if not rivals:
        raise RequestError("a category needs at least one other to be set against")
    for rival in rivals:
        if not 0 <= rival < count:
            raise RequestError(f"categories must be from 0 to {count - 1}, not {rival}")
    if index in rivals:
        raise RequestError(f"category {index} can't be set against itself: name another one")
    return Target(index, rivals, (1 / len(rivals),) * len(rivals))


def nearest_rivals(index: int, outputs: Tensor, among: Sequence[int] | None = None) -> Target:
    """A category against the RIVALS whose logits are nearest to its own, as in Finer-CAM.

    Args:
        outputs: one image's logits (K,).
        among: the others to take instead of these.

    Raises:
        RequestError: if there is no other category.
    """
    if len(outputs) < 2:
        raise RequestError("the model has no second category to set one against")
    outputs = outputs.detach().float().cpu()
    if among is None:
        distance = (outputs - outputs[index]).abs()
        order = distance.sort(stable=True).indices.tolist()
        among = [other for other in order if other != index][:RIVALS]
    weights = outputs[list(among)].double().softmax(dim=0)
    return Target(index, tuple(among), tuple(weights.tolist()))
