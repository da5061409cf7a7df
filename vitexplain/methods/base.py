"""The two kinds of methods, and what each of them returns.

An `ImageMethod` makes one map per image, the same for every category; a `CategoryMethod` one for
each category it is asked for. A method's own part is `_scores`: a number per patch, in its own
unit, of either sign where the method distinguishes evidence for a category from evidence against
it. The map is the positive part of these, the largest value scaled to 1.

B images, K categories each; h x w is the grid of a map's patches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.checks import check_one_image, images_for
from vitexplain.attention.readout import has_categories, has_own_code
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import TokenLayout, UnsupportedModel, token_layout
from vitexplain.attention.verify import check_pass
from vitexplain.errors import RequestError, is_out_of_memory, one_line
from vitexplain.outputs import both_sides
from vitexplain.targets import (
    AUTO,
    Chosen,
    Target,
    indices_of,
    nearest_rivals,
    set_against,
    value_of,
)

# logits (B, categories) -> K categories, or contrasts of them, for each of the B images
Choose = Callable[[Tensor], list[list[Chosen]]]
Against = str | Sequence[int] | None  # "auto", categories, or none
Method = TypeVar("Method", bound="ImageMethod | CategoryMethod")


@dataclass(frozen=True)
class Explanation:
    """Result of one forward pass over B images.

    Attributes:
        masks: the maps, (B, h, w) float32, the largest value of each 1 (all 0 where no patch
            counts).
        logits: (B, categories) on the CPU; (B, features) for a model without a classifier; (B, 1)
            for a single output, whose categories are 0 (against) and 1 (for).
        layout: the tokens of this input, and which of them the classifier pools; None of a model
            whose attention can't be explained.
        categories: the category explained, for each image; None if the method has none.
        scores: (B, h, w) float32, the method's own numbers before they were scaled.
        targets: for each image, what its category was set against; None if it was against none.
            The masks are signed then, -1 to 1: what speaks for the category, and for the others.
    """

    masks: np.ndarray
    logits: Tensor
    layout: TokenLayout | None
    categories: list[int] | None = None
    scores: np.ndarray | None = None
    targets: list[Target] | None = None


class ImageMethod(ABC):
    """Base class of methods whose map is the same for every category.

    Attributes:
        model: a timm ViT; used in evaluation mode, left as it was found.
    """

    model: nn.Module

    def __call__(self, input_tensor: Tensor) -> np.ndarray:
        """The map (h, w) of one image (1, 3, H, W): float32, largest value 1."""
        check_one_image(input_tensor)
        return self.batch(input_tensor)[0]

    def batch(self, input_tensor: Tensor) -> np.ndarray:
        """The maps (B, h, w) of B images (B, 3, H, W): float32, largest value of each 1.

        Nothing is computed that only the logits need, where the method allows for that.
        """
        scores, _, _ = self._run(input_tensor, with_logits=False)
        return largest_is_one(scores)

    def explain(self, input_tensor: Tensor) -> Explanation:
        """Maps and logits of B images (B, 3, H, W), from one forward pass.

        Raises:
            UnsupportedModel: if the method can't explain this model.
            RequestError: if the input is not a batch of images of a size that the model takes.
        """
        scores, layout, logits = self._run(input_tensor, with_logits=True)
        logits = logits.float().clone()  # no tensor of inference mode
        return Explanation(largest_is_one(scores), logits, layout, scores=scores)

    def _run(
        self, input_tensor: Tensor, *, with_logits: bool
    ) -> tuple[np.ndarray, TokenLayout, Tensor | None]:
        images = images_for(self.model, input_tensor)
        layout = self._layout(images)
        with torch.inference_mode(), own_code_named(self.model):
            scores, logits = on_shadow(self)._scores(images, layout, with_logits=with_logits)
        logits = None if logits is None else logits.cpu()
        check_pass(self.model, images, logits)
        return finite(self.model, scores), layout, logits

    def _layout(self, images: Tensor) -> TokenLayout:
        """The tokens of these images."""
        return token_layout(self.model, *images.shape[2:])

    @abstractmethod
    def _scores(
        self, images: Tensor, layout: TokenLayout, *, with_logits: bool
    ) -> tuple[np.ndarray, Tensor | None]:
        """The patches' scores (B, h, w), and the logits; without `with_logits` these may be None.

        It is called in inference mode.
        """


class CategoryMethod(ABC):
    """Base class of methods that explain one category per image.

    Attributes:
        model: a timm ViT; used in evaluation mode, left as it was found.
        linear: its scores are linear in what is explained: those of y_a - y_b are a's less b's.
    """

    model: nn.Module
    linear = False

    def __call__(self, input_tensor: Tensor, category_index: int | None = None) -> np.ndarray:
        """The map (h, w) of one image (1, 3, H, W): float32, largest value 1.

        Args:
            category_index: index of the category; None for the most likely one.
        """
        check_one_image(input_tensor)
        return self.batch(input_tensor, None if category_index is None else [category_index])[0]

    def batch(
        self, input_tensor: Tensor, category_indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """The maps (B, h, w) of B images, of one category each (None: the most likely)."""
        return self.explain(input_tensor, category_indices).masks

    def explain(
        self,
        input_tensor: Tensor,
        category_indices: Sequence[Chosen] | None = None,
        against: Against = None,
    ) -> Explanation:
        """Maps and logits of B images (B, 3, H, W), of one category each (None: the most likely).

        Args:
            category_indices: of categories, or contrasts of each image's own (see
                vitexplain.targets), which need no `against`.
            against: other categories, the same for all images, that each is set against; "auto"
                for those whose logits are nearest (see vitexplain.targets). Where the method is
                not linear, the map is that of the contrast less that of its reverse. An image whose
                most likely category is one of them is set against the rest of them, or if there is
                none, against the nearest.

        Raises:
            UnsupportedModel: if the method can't explain this model.
            RequestError: if a category is out of range, the model has none, or the input is not a
                batch of images of a size that the model takes.
        """
        choose = partial(one_category_each, category_indices)
        return self._explain(input_tensor, choose, against, category_indices is None)[0]

    def explain_several(
        self,
        input_tensor: Tensor,
        category_indices: Sequence[Sequence[int]] | int,
        against: Against = None,
    ) -> list[Explanation]:
        """Maps of K categories of each image, from one forward pass.

        Args:
            category_indices: K for each of the B images, or K itself for the K most likely.
            against: as for `explain`; "auto" sets each of several against the others of them.

        Returns:
            K explanations of the B images.

        Raises:
            As `explain`.
        """
        choose = partial(_several_categories_each, category_indices)
        return self._explain(input_tensor, choose, against, isinstance(category_indices, int))

    def _explain(
        self, input_tensor: Tensor, choose: Choose, against: Against, likely: bool
    ) -> list[Explanation]:
        """K explanations, of the categories that `choose` picks for each image.

        Args:
            likely: it picks the most likely ones.
        """
        if not has_categories(self.model):
            raise RequestError("the model has no categories: only attention rollout explains it")
        with torch.inference_mode(False), torch.enable_grad():
            # a tensor made in inference mode could not be recorded by autograd
            images = images_for(self.model, input_tensor).clone()
            layout = self._layout(images)
            with own_code_named(self.model):
                both = not self.linear
                planned = partial(contrasts, choose, against, both=both, likely=likely)
                scores, logits, chosen = on_shadow(self)._scores(images, layout, planned)
        logits = logits.detach().cpu()
        check_pass(self.model, images, logits)
        logits = logits.float()
        scores = [finite(self.model, each) for each in scores]
        targets = list(zip(*chosen, strict=True))  # K times those of the B images
        if not isinstance(targets[0][0], Target):
            return [
                Explanation(largest_is_one(each), logits, layout, list(of), each)
                for each, of in zip(scores, targets, strict=True)
            ]
        if not self.linear:
            scores = [there - back for there, back in zip(scores[::2], scores[1::2], strict=True)]
            targets = targets[::2]
        return [
            Explanation(
                largest_size_is_one(each), logits, layout, [t.index for t in of], each, list(of)
            )
            for each, of in zip(scores, targets, strict=True)
        ]

    def _layout(self, images: Tensor) -> TokenLayout | None:
        """The tokens of these images; None where the method needs to know of none."""
        return token_layout(self.model, *images.shape[2:])

    @abstractmethod
    def _scores(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        """K times the patches' scores (B, h, w), the logits, and what `choose` made of these.

        It is called with gradients enabled; the images require none.
        """


def on_shadow(method: Method) -> Method:
    """The method on a shadow of its model, which it may hook and change."""
    there = copy(method)
    there.model = shadow_of(method.model)
    return there


@contextmanager
def own_code_named(model: nn.Module) -> Iterator[None]:
    """An error in code that is not timm's becomes UnsupportedModel, with that code's words."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or not has_own_code(model):
            raise
        raise UnsupportedModel(
            model, f"code of its own fails under this method: {one_line(error, 160)}"
        ) from error


def finite(model: nn.Module, scores: np.ndarray) -> np.ndarray:
    """The same scores, if they are numbers; else UnsupportedModel."""
    if not np.isfinite(scores).all():
        raise UnsupportedModel(model, "its maps are not finite: are there NaNs in its weights?")
    return scores


def on_grid(patches: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """(B, h*w) -> (B, h, w), float32."""
    return patches.detach().float().cpu().numpy().reshape(-1, *grid)


def largest_is_one(scores: np.ndarray) -> np.ndarray:
    """Maps from scores (B, h, w): their positive part, divided by its maximum unless that is 0."""
    positive = scores.clip(min=0)
    largest = positive.max(axis=(1, 2), keepdims=True)
    return positive / np.where(largest > 0, largest, 1)


def largest_size_is_one(scores: np.ndarray) -> np.ndarray:
    """Signed maps from scores (B, h, w): divided by the largest absolute value unless that is 0."""
    largest = np.abs(scores).max(axis=(1, 2), keepdims=True)
    return scores / np.where(largest > 0, largest, 1)


def chosen_logits(
    logits: Tensor, targets: Sequence[Sequence[Chosen]]
) -> Iterator[tuple[Tensor, bool]]:
    """For each k: the sum over the images of their k-th target, and if more follow.

    An image's target depends on that image alone, so that the sum's gradients are those of each.
    """
    logits = both_sides(logits)
    count = len(targets[0])
    for number in range(count):
        of_images = [value_of(of[number], row) for of, row in zip(targets, logits, strict=True)]
        yield torch.stack(of_images).sum(), number < count - 1


def contrasts(
    choose: Choose, against: Against, logits: Tensor, *, both: bool, likely: bool
) -> list[list[Chosen]]:
    """What `choose` picks, set against others; with `both`, each is followed by its reverse.

    Args:
        logits: (B, K).
        likely: it picks the most likely ones.
    """
    categories = choose(logits)
    if against is None and not isinstance(categories[0][0], Target):
        return categories
    outputs = both_sides(logits)
    chosen: list[list[Chosen]] = []
    for row, of_image in zip(outputs, categories, strict=True):
        chosen.append([])
        for index in of_image:
            others = against
            if likely and against != AUTO:  # what is most likely can be one of them
                others = [other for other in against if other != index] or AUTO
            given = isinstance(index, Target)
            target = index if given else _contrast(index, of_image, others, row)
            chosen[-1] += [target, target.reversed()] if both else [target]
    return chosen


def _contrast(index: int, chosen: Sequence[int], against: Against, outputs: Tensor) -> Target:
    if against != AUTO:
        return set_against(index, against, len(outputs))
    others = [other for other in chosen if other != index]
    return nearest_rivals(index, outputs, others or None)


def one_category_each(category_indices: Sequence[int] | None, logits: Tensor) -> list[list[int]]:
    if category_indices is None:
        return _several_categories_each(1, logits)
    return _several_categories_each([[category] for category in category_indices], logits)


def _several_categories_each(
    category_indices: Sequence[Sequence[int]] | int, logits: Tensor
) -> list[list[int]]:
    logits = both_sides(logits)
    count = logits.shape[1]
    if isinstance(category_indices, int):
        if not 1 <= category_indices <= count:
            raise RequestError(f"the model has 1 to {count} categories, not {category_indices}")
        return logits.topk(category_indices, dim=1).indices.tolist()
    categories = [
        [each if isinstance(each, Target) else int(each) for each in several]
        for several in category_indices
    ]
    if len(categories) != len(logits):
        raise RequestError(
            f"category_indices must hold one category for each of {len(logits)} images, "
            f"not {len(categories)}"
        )
    if not categories[0] or len({len(several) for several in categories}) > 1:
        raise RequestError("category_indices must hold equally many categories for each image")
    for several in categories:
        for category in (index for each in several for index in indices_of(each)):
            if not 0 <= category < count:
                raise RequestError(f"category_index must be from 0 to {count - 1}, not {category}")
    return categories
