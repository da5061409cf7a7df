"""What a model's final features tell apart: their principal components, as colours.

As in Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision" (section
7.5), the features of all patches of all images are centred and projected to their first three
principal components; these become red, green and blue, and the first one separates the foreground.
One fit for all images makes colours agree between them.

A patch's features are a ViT's token after the final norm, prefix tokens left out, or in any other
model the last grid of features (vitexplain.attention.last_grid). A component's sign means nothing;
here it is fixed: the first one is positive where the image's border is not, the others where their
largest weight is.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.checks import images_for
from vitexplain.attention.families import GLOBAL, UnsupportedModel, timms_model
from vitexplain.attention.last_grid import LastGrid, last_grid, watch
from vitexplain.attention.readout import has_own_code
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import token_layout
from vitexplain.errors import RequestError
from vitexplain.methods.base import own_code_named

COLOURS = 3
PERCENTILES = (1, 99)  # of a component, between which its colour goes from none to full


class FinalFeatures:
    """Each patch's final features: (B, 3, H, W) -> (B, h, w, C) float32 on the CPU.

    Args:
        model: timm's; left as it was found.

    Raises:
        UnsupportedModel: if it is not timm's; on a call, if its features are no grid of patches, or
            not finite.
    """

    def __init__(self, model: nn.Module):
        self.model = timms_model(model)
        self._grids: dict[tuple[int, int], LastGrid | None] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        images = images_for(self.model, tensor)
        with torch.inference_mode(), own_code_named(self.model):
            is_vit = isinstance(self.model, GLOBAL)
            found = self._of_vit(images) if is_vit else self._of_grid(images)
        if not bool(found.isfinite().all()):
            raise UnsupportedModel(
                self.model, "its features are not finite: are there NaNs in its weights?"
            )
        return found.float().cpu()

    def _of_vit(self, images: Tensor) -> Tensor:
        prefix, grid = self._tokens(tuple(images.shape[2:]))
        shadow = shadow_of(self.model)
        tokens = shadow.forward_features(images)  # (B, N, C)
        if isinstance(shadow.norm, nn.Identity):
            tokens = shadow.fc_norm(tokens)  # which comes after the mean otherwise
        return tokens[:, prefix:].unflatten(1, grid)

    def _tokens(self, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """How many tokens stand before a ViT's patches, and their grid; of any pooling."""
        if has_own_code(self.model):
            layout = token_layout(self.model, *size)  # it finds out where they are
            return layout.prefix_tokens, layout.grid
        return self.model.num_prefix_tokens, tuple(self.model.patch_embed.dynamic_feat_size(size))

    def _of_grid(self, images: Tensor) -> Tensor:
        size = tuple(images.shape[2:])
        if size not in self._grids:
            self._grids[size] = last_grid(self.model, *size)
        grid = self._grids[size]
        if grid is None:
            raise UnsupportedModel(self.model, "no grid of features that its outputs read was seen")
        shadow, seen = shadow_of(self.model), []
        with ExitStack() as undo:
            watch(shadow, grid.place, seen.append, undo)
            forward(shadow, images)
        return grid.patches(seen[-1]).unflatten(1, grid.shape)


class Covariance:
    """Mean and covariance of all patches' features, of any number of images in little memory."""

    def __init__(self):
        self.count, self.sum, self.products = 0, 0.0, 0.0

    def add(self, features: Tensor) -> None:
        """Count (B, h, w, C) in."""
        rows = features.flatten(0, 2).double()
        self.count += len(rows)
        self.sum = self.sum + rows.sum(dim=0)
        self.products = self.products + rows.T @ rows

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mean (C,), axes (COLOURS, C) of length 1, the share of the variance along each).

        Raises:
            RequestError: if there are no features, or nothing to tell apart.
        """
        if not self.count:
            raise RequestError("features are of at least one image")
        mean = self.sum / self.count
        covariance = self.products / self.count - mean[:, None] * mean
        values, vectors = torch.linalg.eigh(covariance)  # the smallest first
        total = float(values.clamp(min=0).sum())
        if len(values) < COLOURS or total <= 1e-12 * float(self.products.trace() / self.count):
            raise RequestError("the features of all patches are the same: there is nothing to show")
        axes = vectors[:, -COLOURS:].T.flip(0)
        largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
        shares = values.flip(0)[:COLOURS].clamp(min=0) / total
        return mean.numpy(), (axes * largest.sign()).numpy(), shares.numpy()


@dataclass(frozen=True)
class Palette:
    """How features become colours, for all images of a run.

    Attributes:
        mean: (C,) of all patches.
        axes: (3, C), the principal axes.
        shares: (3,), how much of the variance is along each, 0 to 1.
        low, high: (3,), the PERCENTILES of the components.
        threshold: of the first component, between background and foreground (Otsu 1979).
    """

    mean: np.ndarray
    axes: np.ndarray
    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    threshold: float

    def colours(self, components: np.ndarray) -> np.ndarray:
        """(h, w, 3) from 0 to 1."""
        span = np.where(self.high > self.low, self.high - self.low, 1)
        return ((components - self.low) / span).clip(0, 1)

    def foreground(self, components: np.ndarray) -> np.ndarray:
        """(h, w) bool."""
        return components[..., 0] > self.threshold


def components_of(features: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """(..., 3), the components of features (..., C)."""
    return (features - mean) @ axes.T


def palette(
    mean: np.ndarray, axes: np.ndarray, shares: np.ndarray, components: Iterable[np.ndarray]
) -> Palette:
    """The palette of a run whose images have these components (h, w, 3).

    Where the first axis points to the images' borders, it is turned round; their components must be
    turned with it: see `turned`.
    """
    components = list(components)
    border = np.concatenate([_border(each[..., 0]) for each in components])
    sign = -1.0 if border.mean() > 0 else 1.0
    turn = np.array([sign, 1, 1])
    every = np.concatenate([each.reshape(-1, COLOURS) for each in components]) * turn
    low, high = np.percentile(every, PERCENTILES, axis=0)
    return Palette(mean, axes * turn[:, None], shares, low, high, _otsu(every[:, 0]))


def _border(values: np.ndarray) -> np.ndarray:
    """The values (h, w) along the four sides."""
    inner = np.zeros(values.shape, bool)
    inner[1:-1, 1:-1] = True
    return values[~inner]


def _otsu(values: np.ndarray) -> float:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return low
    levels = np.uint8(np.round(255 * (values - low) / (high - low)))
    level, _ = cv2.threshold(levels[:, None], 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return low + (level + 0.5) / 255 * (high - low)


class Features:
    """The features of several images of one run, and their colours.

    Args:
        features: (h, w, C) of each image.

    Attributes:
        palette: of all of them.
        colours: (h, w, 3) float64 of each, 0 to 1.
        foreground: (h, w) bool of each.
    """

    def __init__(self, features: Iterable[np.ndarray]):
        self.features = list(features)
        covariance = Covariance()
        for each in self.features:
            covariance.add(torch.from_numpy(each)[None])
        mean, axes, shares = covariance.axes()
        found = [components_of(each, mean, axes) for each in self.features]
        self.palette = palette(mean, axes, shares, found)
        found = [components_of(each, mean, self.palette.axes) for each in self.features]
        self.colours = [self.palette.colours(each) for each in found]
        self.foreground = [self.palette.foreground(each) for each in found]
