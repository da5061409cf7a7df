"""Maps that know nothing of the model: a method that does not beat them says nothing of it."""

import zlib
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.checks import images_for
from vitexplain.attention.tokens import token_layout
from vitexplain.faithfulness.passes import evaluation_mode
from vitexplain.methods.base import Explanation
from vitexplain.methods.registry import Method


class Floor(ABC):
    """As a method that knows nothing of categories, for any supported model."""

    def __init__(self, model: nn.Module):
        self.model = model

    def explain(self, input_tensor: Tensor) -> Explanation:
        """Masks of B images (B, 3, H, W), the largest value of each 1, and their logits."""
        images = images_for(self.model, input_tensor)
        layout = token_layout(self.model, *images.shape[2:])
        with torch.inference_mode(), evaluation_mode(self.model):
            logits = forward(self.model, images)
        masks = np.stack([self.mask(image, *layout.grid) for image in images])
        return Explanation(masks, logits.float().cpu().clone(), layout)

    @abstractmethod
    def mask(self, image: Tensor, rows: int, columns: int) -> np.ndarray:
        """(rows, columns) float32, the largest value 1."""


class RandomMap(Floor):
    """Noise, each patch evenly between 0 and 1.

    It is seeded by the image's own values: one image always has the same map, whatever else
    is in its batch, and the slightest change gives another.
    """

    def mask(self, image: Tensor, rows: int, columns: int) -> np.ndarray:
        seed = zlib.crc32(image.float().cpu().numpy().tobytes())
        mask = np.random.default_rng(seed).random((rows, columns), dtype=np.float32)
        return mask / mask.max()


class CentreBlob(Floor):
    """A round spot in the middle: photographers centre what they show."""

    def mask(self, image: Tensor, rows: int, columns: int) -> np.ndarray:  # noqa: ARG002
        blob = centre_blob(rows, columns)
        return blob / blob.max()


def centre_blob(rows: int, columns: int) -> np.ndarray:
    """A round spot in the middle, the floor that a map of boxes has to beat."""
    down = (np.arange(rows) + 0.5) / rows - 0.5
    across = (np.arange(columns) + 0.5) / columns - 0.5
    return np.exp(-(down[:, None] ** 2 + across[None] ** 2) / (2 * 0.25**2)).astype(np.float32)


_HERE = "vitexplain.faithfulness.baselines"

FLOORS = {
    "random": Method("random", "random map", "", False, (_HERE, "RandomMap")),
    "centre_blob": Method("centre_blob", "spot in the middle", "", False, (_HERE, "CentreBlob")),
}
