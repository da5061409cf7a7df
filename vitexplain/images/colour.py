"""Colours as sRGB, which models were trained on: an image's ICC profile is applied."""

import io
from functools import lru_cache

from PIL import Image, ImageCms

SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


def to_srgb(image: Image.Image) -> tuple[Image.Image, str]:
    """The image with its profile applied, and a notice or ""; transparency is kept.

    An image without a profile, or with sRGB's, is returned as it is.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image, ""
    alpha = None
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("RGBA", "LA"):
        alpha, image = image.getchannel("A"), image.convert(image.mode[:-1])
    if image.mode not in SPACES:
        return image, ""
    try:
        transform = _transform(bytes(profile), image.mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _joined(image, alpha), "its colour profile is damaged: colours are taken as sRGB"
    if transform is not None:
        image = transform.apply(image)
    return _joined(image, alpha), ""


def _joined(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    if alpha is None:
        return image
    image = image.convert("RGB")
    image.putalpha(alpha)
    return image


@lru_cache(maxsize=8)
def _transform(content: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None if it is sRGB."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    if profile.profile.xcolor_space.strip() != SPACES[mode]:
        raise ValueError("a profile of another kind of colours")
    if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(profile).lower():
        return None
    return ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        FLAGS,
    )
