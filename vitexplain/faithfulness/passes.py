"""Run images through a model or a method, batch by batch; the model is left as it was found."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.batches import notify
from vitexplain.attention.capture import forward
from vitexplain.attention.checks import images_for
from vitexplain.attention.shadow import shadow_of
from vitexplain.device import in_batches
from vitexplain.errors import RequestError
from vitexplain.methods.base import Explanation, contrasts, one_category_each
from vitexplain.methods.registry import Method
from vitexplain.models.answers import count_outputs
from vitexplain.outputs import both_sides
from vitexplain.targets import Chosen, Target, indices_of

BATCH = 16  # images per forward pass


def top1(model: nn.Module, images: Tensor, batch_size: int = BATCH) -> list[int]:
    """The model's most likely category for each of (B, 3, H, W)."""
    shadow = shadow_of(model)

    @torch.inference_mode()
    def run(batch: Tensor) -> list[int]:
        logits = forward(shadow, images_for(shadow, batch))
        return both_sides(logits).argmax(dim=1).tolist()

    batches = in_batches(run, images, batch_size, notify)
    return [category for batch in batches for category in batch]


def contrasts_of(
    model: nn.Module,
    images: Tensor,
    categories: Sequence[int] | None,
    against: str | Sequence[int],
    batch_size: int = BATCH,
) -> list[Target]:
    """Each image's category (None: the most likely) against others, as explaining it sets it.

    Args:
        against: other categories, or "auto" for those whose logits are nearest.

    Raises:
        RequestError: as CategoryMethod.explain.
    """
    shadow = shadow_of(model)

    @torch.inference_mode()
    def run(places: range) -> list[Target]:
        part = slice(places.start, places.stop)
        logits = forward(shadow, images_for(shadow, images[part]))
        choose = partial(one_category_each, None if categories is None else categories[part])
        found = contrasts(choose, against, logits, both=False, likely=categories is None)
        return [target for (target,) in found]

    batches = in_batches(run, range(len(images)), batch_size, notify)
    return [target for batch in batches for target in batch]


def check_categories(model: nn.Module, images: Tensor, categories: Sequence[Chosen]) -> None:
    """One category, or contrast, for each image, all of them the model's, or RequestError."""
    if len(categories) != len(images):
        raise RequestError(f"{len(images)} images need as many categories, not {len(categories)}")
    count = count_outputs(model)
    count = 2 if count == 1 else count  # the two answers of a single output
    if not all(0 <= index < count for category in categories for index in indices_of(category)):
        raise RequestError(f"categories must be from 0 to {count - 1}, not {list(categories)}")


def masks_of(
    method: Method,
    model: nn.Module,
    images: Tensor,
    categories: Sequence[Chosen],
    batch_size: int = BATCH,
) -> np.ndarray:
    """The maps (B, h, w) of B images, each for its own category where the method has categories.

    Args:
        categories: B categories, or contrasts, whose maps are signed.

    Raises:
        UnsupportedModel: if the method can't explain this model.
    """
    found = _explanations(method, model, images, categories, batch_size)
    return np.concatenate([each.masks for each in found])


def scores_of(
    method: Method,
    model: nn.Module,
    images: Tensor,
    categories: Sequence[Chosen],
    batch_size: int = BATCH,
) -> np.ndarray:
    """As masks_of, but what patches are ranked by: signed, where masks show what is positive.

    Most patches of a Grad-CAM are 0 in its mask, and differ in how much they speak against it.
    """
    found = _explanations(method, model, images, categories, batch_size)
    return np.concatenate([each.masks if each.scores is None else each.scores for each in found])


def _explanations(
    method: Method, model: nn.Module, images: Tensor, categories: Sequence[Chosen], batch_size: int
) -> Iterator[Explanation]:
    explain = method.make(model).explain

    def run(places: range) -> Explanation:
        batch = images[places.start : places.stop]
        if method.of_category:
            return explain(batch, [categories[place] for place in places])
        return explain(batch)

    return in_batches(run, range(len(images)), batch_size, notify)
