"""Candidates made of the scores of other methods: see benchmarks.candidate_list.

"Later blocks" are the second half.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.candidate_maps import Scores, middle
from vitexplain.attention.tokens import TokenLayout, check_supported
from vitexplain.methods.base import CategoryMethod, Choose, contrasts, on_shadow
from vitexplain.methods.consensus import at_mean_ranks, consensus
from vitexplain.methods.registry import Method
from vitexplain.targets import AUTO, Chosen

Mix = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def of_later_blocks(model: nn.Module, method: Method) -> CategoryMethod:
    """The method for which the later blocks alone count."""
    return method.make(model, start_block=middle(model))


class Mixture(CategoryMethod):
    """Scores made of those of several methods, each from passes of its own.

    Args:
        model: one that all of them explain; left as it was found.
        parts: by name.
        mix: name -> (B, h, w) in, (B, h, w) out.
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, Method], mix: Mix):
        self.model, self.mix = check_supported(model), mix
        self.parts = {name: part.make(model) for name, part in parts.items()}

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        found = {}
        for name, part in self.parts.items():
            found[name], logits, categories = on_shadow(part)._scores(images, layout, choose)
        of_categories = (
            dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)
        )
        return [self.mix(parts) for parts in of_categories], logits, categories


def all_agree(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The consensus of all parts."""
    return consensus(list(parts.values()))


def multiplied(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The product of all parts."""
    return np.prod(list(parts.values()), axis=0)


def geometric(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The geometric mean of all parts' positive parts."""
    positive = [part.clip(min=0) for part in parts.values()]
    return multiplied(dict(enumerate(positive))) ** (1 / len(positive))


def relevance_in_order(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Relevance's own values, in the order of the mean ranks of all the parts but relevance."""
    return in_order(
        parts["relevance"], [part for name, part in parts.items() if name != "relevance"]
    )


def relevance_half_in_order(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Relevance's own values, in the order of the mean ranks of relevance and the other parts."""
    return in_order(parts["relevance"], list(parts.values()))


def in_order(values: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The values (B, h, w) of each image, moved to where the mean ranks of the parts put them.

    Quantile normalisation, see vitexplain.methods.consensus.
    """
    return at_mean_ranks(np.sort(values.reshape(len(values), -1), axis=1), parts)


class AgainstRivals(CategoryMethod):
    """What sets a category apart from those whose logits are nearest, as `--against auto`."""

    def __init__(self, model: nn.Module, method: Method):
        self.model, self.method = check_supported(model), method.make(model)

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        def contrasted(logits: Tensor) -> list[list[Chosen]]:
            return contrasts(choose, AUTO, logits, both=True, likely=False)

        both, logits, chosen = on_shadow(self.method)._scores(images, layout, contrasted)
        scores = [there - back for there, back in zip(both[::2], both[1::2], strict=True)]
        return scores, logits, [[target.index for target in of[::2]] for of in chosen]


class Shifted(CategoryMethod):
    """The mean of a method's scores over 2 x 2 shifts of the image by half a patch."""

    def __init__(self, model: nn.Module, method: Method):
        self.model, self.method = check_supported(model), method.make(model)

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        half = images.shape[2] // layout.grid[0] // 2
        method = on_shadow(self.method)
        scores, logits, categories = method._scores(images, layout, choose)
        moved = [[moved_back(each, 0, 0) for each in scores]]
        for down, across in ((0, 1), (1, 0), (1, 1)):
            shown = F.pad(images, (across * half, 0, down * half, 0), mode="replicate")
            shown = shown[..., : images.shape[2], : images.shape[3]]
            scores, _, _ = method._scores(shown, layout, lambda _: categories)
            moved.append([moved_back(each, down, across) for each in scores])
        means = [mean_of_shifts(of_shifts) for of_shifts in zip(*moved, strict=True)]
        return means, logits, categories


def moved_back(scores: np.ndarray, down: int, across: int) -> np.ndarray:
    """(B, 2h, 2w): scores (B, h, w) of an image that was shifted by so many half patches.

    NaN where the shifted image does not show the image.
    """
    fine = scores.repeat(2, axis=1).repeat(2, axis=2)
    height, width = fine.shape[1:]
    moved = np.full_like(fine, np.nan)
    moved[:, : height - down, : width - across] = fine[:, down:, across:]
    return moved


def mean_of_shifts(moved: Sequence[np.ndarray]) -> np.ndarray:
    """(B, h, w) from several (B, 2h, 2w): of each half patch the mean of what shows it."""
    images, height, width = moved[0].shape
    fine = np.nanmean(moved, axis=0)
    return fine.reshape(images, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
