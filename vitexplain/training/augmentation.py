"""What training does to images, so that a model can't rely on what changes from one to the next."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose

from vitexplain.errors import RequestError

# optical density of haematoxylin, eosin and a third stain in red, green and blue
# (Ruifrok & Johnston 2001, "Quantification of histochemical staining by color deconvolution")
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)


class StainJitter:
    """An image (RGB) as if its stains had been stronger or weaker.

    Amounts of the three stains, c = -log(I / 255) STAINS^-1, become (1 + a) c + b / 4, with a and b
    uniform in [-strength, strength] for each stain (as in Tellez et al. 2018, "Whole-slide mitosis
    detection in H&E breast histology").
    """

    def __init__(self, strength: float):
        self.strength = strength

    def __call__(self, image: Image.Image) -> Image.Image:
        pixels = np.maximum(np.asarray(image, np.float32), 1) / 255
        amounts = -np.log(pixels) @ np.linalg.inv(STAINS)
        scales, shifts = (self.strength * (2 * torch.rand(2, 3).numpy() - 1))[:, None, None]
        changed = np.exp(-((1 + scales) * amounts + shifts / 4) @ STAINS)
        return Image.fromarray(np.uint8(np.round(255 * changed.clip(0, 1))))


def training_transform(
    config: Mapping,
    *,
    smallest_crop: float,
    color_jitter: float = 0.4,
    hue: float = 0.0,
    grey: float = 0.0,
    stain: float = 0.0,
) -> Callable[[Image.Image], Tensor]:
    """Random crops, mirrored by chance, in changed colours.

    Args:
        config: timm's "input_size", "interpolation", "mean" and "std".
        smallest_crop: smallest share of an image in a crop.
        color_jitter: how far brightness, contrast and saturation may change, as a share.
        hue: how far hues may turn, 0.5 being all the way.
        grey: how often an image becomes grey, 0 to 1.
        stain: of StainJitter.

    Raises:
        RequestError: if one of these is out of range.
    """
    limits = {
        "smallest_crop": (smallest_crop, 1.0),
        "color_jitter": (color_jitter, 1.0),
        "hue": (hue, 0.5),
        "grey": (grey, 1.0),
        "stain": (stain, 1.0),
    }
    for name, (value, most) in limits.items():
        if not 0 <= value <= most:
            raise RequestError(f"--{name} must be from 0 to {most:g}, not {value:g}")
    transform = create_transform(
        **config,
        is_training=True,
        scale=(smallest_crop, 1.0),
        ratio=(0.5, 2.0),
        color_jitter=(color_jitter, color_jitter, color_jitter, hue),
        grayscale_prob=grey,
    )
    return Compose([StainJitter(stain), transform]) if stain else transform
