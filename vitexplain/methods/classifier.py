"""Methods that need an image and a number for each category, and no attention."""

from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.families import UnsupportedModel, check_classifier
from vitexplain.attention.last_grid import LastGrid, last_grid
from vitexplain.attention.readout import Unreadable, check_outputs
from vitexplain.attention.tokens import TokenLayout, layout_if_any
from vitexplain.methods.base import CategoryMethod


class ClassifierMethod(CategoryMethod):
    """Base class of methods that explain any image classifier of timm, CNNs included.

    The layout of its explanations is None where the model's attention can't be explained.

    Args:
        model: timm's, with categories; used in evaluation mode, left as it was found. It may be
            frozen, and no `.grad` appears anywhere.

    Raises:
        UnsupportedModel: if it is not timm's, or has no categories.
    """

    linear = True

    def __init__(self, model: nn.Module):
        self.model = check_classifier(model)
        self._grids: dict[tuple[int, int], LastGrid | None] = {}

    def _layout(self, images: Tensor) -> TokenLayout | None:
        return layout_if_any(self.model, *images.shape[2:])

    def _logits(self, images: Tensor) -> Tensor:
        """(B, K) of B images.

        Raises:
            UnsupportedModel: if its forward returns something else.
        """
        logits = forward(self.model, images)
        try:
            check_outputs(logits)
        except Unreadable as error:
            raise UnsupportedModel(self.model, str(error)) from error
        return logits

    def _last_grid(self, images: Tensor) -> LastGrid | None:
        """Where the model has its last grid of features; found once for each size of images."""
        size = tuple(images.shape[2:])
        if size not in self._grids:
            self._grids[size] = last_grid(self.model, *size)
        return self._grids[size]

    def _patch_size(self) -> tuple[int, int]:
        """Pixels of a ViT's patch, (down, across)."""
        return self.model.patch_embed.feat_ratio(as_scalar=False)
