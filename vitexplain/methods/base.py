"""What all methods with a map for each category share: which categories, of which images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vit_rollout import Explanation
from vitexplain.attention.checks import check_one_image, images_for
from vitexplain.attention.tokens import TokenLayout, token_layout
from vitexplain.errors import RequestError

# logits (B, categories) -> K categories for each of the B images
Choose = Callable[[Tensor], list[list[int]]]


class OfCategory(ABC):
    """A method that explains one category of each image; its own part is `_maps`.

    Attributes:
        model: a timm ViT; used in evaluation mode, left as it was found.
    """

    model: nn.Module

    def __call__(self, input_tensor: Tensor, category_index: int | None = None) -> np.ndarray:
        """The mask (h, w) of one image (1, 3, H, W): float32, largest value 1.

        Args:
            category_index: index of the category; None for the most likely one.
        """
        check_one_image(input_tensor)
        return self.batch(input_tensor, None if category_index is None else [category_index])[0]

    def batch(
        self, input_tensor: Tensor, category_indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """The masks (B, h, w) of B images, of one category each (None: the most likely)."""
        return self.explain(input_tensor, category_indices).masks

    def explain(
        self, input_tensor: Tensor, category_indices: Sequence[int] | None = None
    ) -> Explanation:
        """Masks and logits of B images (B, 3, H, W), of one category each (None: the most likely).

        Raises:
            UnsupportedModel: if the method can't explain this model.
            RequestError: if a category is out of range, the model has none, or the input is not a
                batch of images of a size that the model takes.
        """
        return self._explain(input_tensor, partial(_one_category_each, category_indices))[0]

    def explain_several(
        self, input_tensor: Tensor, category_indices: Sequence[Sequence[int]] | int
    ) -> list[Explanation]:
        """Maps of K categories of each image, from one forward pass.

        Args:
            category_indices: K for each of the B images, or K itself for the K most likely.

        Returns:
            K explanations of the B images.

        Raises:
            As `explain`.
        """
        return self._explain(input_tensor, partial(_several_categories_each, category_indices))

    def _explain(self, input_tensor: Tensor, choose: Choose) -> list[Explanation]:
        """One explanation for each category that `choose` finds, from the logits, per image."""
        if not self.model.num_classes:
            raise RequestError("the model has no categories: only attention rollout explains it")
        with torch.inference_mode(False), torch.enable_grad():
            # a tensor made in inference mode could not be recorded by autograd
            images = images_for(self.model, input_tensor).clone()
            layout = token_layout(self.model, *images.shape[2:])
            masks, logits, categories = self._maps(images, layout, choose)
        logits = logits.detach().float().cpu()
        return [
            Explanation(mask, logits, layout, list(chosen))
            for mask, chosen in zip(masks, zip(*categories, strict=True), strict=True)
        ]

    @abstractmethod
    def _maps(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        """K times masks (B, h, w), the logits (B, categories), and what `choose` made of these."""


def scores(logits: Tensor, categories: list[list[int]]) -> Iterator[tuple[Tensor, bool]]:
    """(sum over the images of the k-th category's logit, whether there is another) for each k."""
    chosen = logits.gather(1, torch.tensor(categories, device=logits.device))  # (B, K)
    count = chosen.shape[1]
    for number in range(count):
        yield chosen[:, number].sum(), number < count - 1


def _one_category_each(category_indices: Sequence[int] | None, logits: Tensor) -> list[list[int]]:
    if category_indices is None:
        return _several_categories_each(1, logits)
    return _several_categories_each([[category] for category in category_indices], logits)


def _several_categories_each(
    category_indices: Sequence[Sequence[int]] | int, logits: Tensor
) -> list[list[int]]:
    count = logits.shape[1]
    if isinstance(category_indices, int):
        if not 1 <= category_indices <= count:
            raise RequestError(f"the model has 1 to {count} categories, not {category_indices}")
        return logits.topk(category_indices, dim=1).indices.tolist()
    categories = [[int(category) for category in several] for several in category_indices]
    if len(categories) != len(logits):
        raise RequestError(
            f"category_indices must hold one category for each of {len(logits)} images, "
            f"not {len(categories)}"
        )
    if not categories[0] or len({len(several) for several in categories}) > 1:
        raise RequestError("category_indices must hold equally many categories for each image")
    for category in (category for several in categories for category in several):
        if not 0 <= category < count:
            raise RequestError(f"category_index must be from 0 to {count - 1}, not {category}")
    return categories
