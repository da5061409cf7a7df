"""From an image to the model's input, and which region of the image that is.

Resizing, cropping and normalisation are timm's own evaluation transform of the model.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from vitexplain.choices import CROPS
from vitexplain.errors import RequestError
from vitexplain.images.region import Region

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class InputTransform:
    """PIL image -> (3, H, W) float tensor, or (1, H, W), as the model expects it.

    Args:
        size: (H, W) of the model's input in pixels.
        mean, std: of each channel, for values from 0 to 1; the model was trained with them. Of
            a single channel, images become grey.
        interpolation: "bicubic", "bilinear", ...
        crop: "none" squashes the whole image to `size`, as the published images
            do; "center" is the model's own evaluation crop; "pad" resizes
            the whole image in its proportions and pads it with the mean colour.
        crop_pct, crop_mode: timm's description of that crop.
        stretch: whether images are opened with their values stretched, see images.depth.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        crop: str = "none",
        crop_pct: float = 0.875,
        crop_mode: str = "center",
        *,
        stretch: bool = False,
    ):
        if crop not in CROPS:
            raise RequestError(f"crop must be one of {', '.join(CROPS)}, not {crop!r}")
        if crop == "none":
            crop_pct, crop_mode = 1.0, "squash"
        elif crop == "pad":
            crop_pct, crop_mode = 1.0, "border"
        self.stretch = stretch
        self.size, self.grey = size, len(tuple(mean)) == 1
        if interpolation not in INTERPOLATIONS:
            raise RequestError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {interpolation!r}"
            )
        self.mean, self.std, self.interpolation = tuple(mean), tuple(std), interpolation
        self.crop_pct, self.crop_mode = crop_pct, crop_mode
        *self._geometry, self._to_tensor, self._normalize = create_transform(
            input_size=(3, *size),
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
            crop_pct=crop_pct,
            crop_mode=crop_mode,
        ).transforms

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, W), or (1, H, W), normalised."""
        return self.tensor(self.seen(image))

    def seen(self, image: Image.Image) -> Image.Image:
        """What the model sees: RGB, W x H pixels, resized and cropped, not normalised."""
        if self.crop_mode == "border":
            # timm would shrink the short side of a very thin image to nothing
            least = math.ceil(max(image.width / self.size[1], image.height / self.size[0]))
            if min(image.size) < least:
                image = image.resize((max(image.width, least), max(image.height, least)))
        for step in self._geometry:
            image = step(image)
        return image.convert("L").convert("RGB") if self.grey else image

    def tensor(self, image: Image.Image) -> Tensor:
        """An image as `seen` returns it -> (3, H, W), normalised."""
        return self._normalize(self._to_tensor(image.convert("L") if self.grey else image))

    def tensors(self, seen: np.ndarray, device: torch.device) -> Tensor:
        """Images (B, H, W, 3) uint8, as `seen` returns them -> (B, 3, H, W) on the device.

        They travel as bytes, a quarter of what they become there. Bit for bit as by `tensor`.
        """
        if self.grey:
            greys = [np.asarray(Image.fromarray(each).convert("L")) for each in seen]
            seen = np.stack(greys)[..., None]
        pixels = torch.from_numpy(seen)
        if device.type == "cuda":
            pixels = pixels.pin_memory()  # copied while the device computes
        pixels = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None].to(device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return pixels.float().div_(255).sub_(mean).div_(std)

    def region(self, width: int, height: int) -> Region:
        """(left, top, right, bottom) of the part that is seen of a width x height image.

        In the image's own pixels; beyond its edges where timm pads.
        """
        resized = self._resized(width, height)
        offsets = [round((full - seen) / 2) for full, seen in zip(resized, self._wh, strict=True)]
        scale = [side / full for side, full in zip((width, height), resized, strict=True)]
        left, top = (o * s for o, s in zip(offsets, scale, strict=True))
        return Region(left, top, left + self._wh[0] * scale[0], top + self._wh[1] * scale[1])

    @property
    def _wh(self) -> tuple[int, int]:
        return self.size[1], self.size[0]

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after timm's resize, before its crop."""
        target = [math.floor(side / self.crop_pct) for side in self._wh]
        if self.crop_mode == "squash":
            return target[0], target[1]
        ratios = target[0] / width, target[1] / height
        if self.crop_mode == "border":
            return max(1, round(width * min(ratios))), max(1, round(height * min(ratios)))
        if target[0] == target[1]:  # torchvision's Resize rounds the longer side down
            short = min(width, height)
            return target[0] * width // short, target[0] * height // short
        return round(width * max(ratios)), round(height * max(ratios))
