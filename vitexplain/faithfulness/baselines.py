"""Maps made without looking at the model: a method has to beat them to say anything about it."""

import zlib
from abc import abstractmethod

import numpy as np
from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.tokens import TokenLayout
from vitexplain.methods.base import ImageMethod
from vitexplain.methods.registry import Method


class Baseline(ImageMethod):
    """A map that is made without looking at the model, for any supported model."""

    def __init__(self, model: nn.Module):
        self.model = model

    def _scores(
        self, images: Tensor, layout: TokenLayout, *, with_logits: bool
    ) -> tuple[np.ndarray, Tensor | None]:
        logits = None
        if with_logits:
            logits = forward(self.model, images)
        return np.stack([self.mask(image, *layout.grid) for image in images]), logits

    @abstractmethod
    def mask(self, image: Tensor, rows: int, columns: int) -> np.ndarray:
        """(rows, columns) float32, the largest value 1."""


class RandomMap(Baseline):
    """Noise: each patch uniform between 0 and 1.

    The image's own values are the seed: an image has the same map in any batch, and the slightest
    change gives another one.
    """

    def mask(self, image: Tensor, rows: int, columns: int) -> np.ndarray:
        mask = random_map(image, rows, columns)
        return mask / mask.max()


class CentreBlob(Baseline):
    """A Gaussian in the centre: photographers centre what they show."""

    def mask(self, image: Tensor, rows: int, columns: int) -> np.ndarray:  # noqa: ARG002
        blob = centre_blob(rows, columns)
        return blob / blob.max()


def random_map(image: Tensor, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) float32: each patch uniform between 0 and 1, by the values of the image."""
    seed = zlib.crc32(image.float().cpu().numpy().tobytes())
    return np.random.default_rng(seed).random((rows, columns), dtype=np.float32)


def centre_blob(rows: int, columns: int) -> np.ndarray:
    """(rows, columns) float32: a Gaussian in the centre, which maps have to beat on boxes, too."""
    down = (np.arange(rows) + 0.5) / rows - 0.5
    across = (np.arange(columns) + 0.5) / columns - 0.5
    return np.exp(-(down[:, None] ** 2 + across[None] ** 2) / (2 * 0.25**2)).astype(np.float32)


_HERE = "vitexplain.faithfulness.baselines"

BASELINES = {
    "random": Method("random", "random map", "", False, (_HERE, "RandomMap")),
    "centre_blob": Method("centre_blob", "centre Gaussian", "", False, (_HERE, "CentreBlob")),
}
