"""Open anything that Pillow reads as upright 8-bit RGB, or raise one clear error."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from vitexplain.errors import RequestError


class PictureError(RequestError):
    """An image is missing, broken or too large, or the file is not an image."""


def open_image(path: str | Path) -> Image.Image:
    """The image at `path` as RGB: EXIF orientation applied, transparency on white.

    An animation gives its first frame; 16-bit and floating-point grey are converted to 8 bits.

    Raises:
        PictureError: in one sentence, with the path and the reason.
    """
    return read_image(Path(path), str(Path(path)))


def read_image(source: Path | BinaryIO, name: str) -> Image.Image:
    """As `open_image`, also from an open file; errors refer to it as `name`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of a possible decompression bomb at half the size it refuses, and of
            # damaged metadata that does not matter here
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                image.load()
                return to_rgb(upright(image))
    except FileNotFoundError:
        raise PictureError(f"no image at {name}: no such file") from None
    except IsADirectoryError:
        raise PictureError(f"{name} is a folder: name one image in it") from None
    except UnidentifiedImageError:
        raise PictureError(f"{name} is not an image, or of a format Pillow can't read") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise PictureError(f"{name} is too large: more than {limit} million pixels") from None
    except MemoryError:
        raise PictureError(f"{name} does not fit into memory: make it smaller first") from None
    except Exception as error:  # Pillow's decoders raise almost anything on broken files
        reason = str(error) or type(error).__name__
        raise PictureError(f"{name} can't be read, it may be damaged: {reason}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> RGB, transparent parts on white."""
    if image.mode.startswith("I;16"):
        image = _grey(np.asarray(image) / 257)  # 65535 is white
    elif image.mode in ("I", "F"):
        image = _grey(_to_0_255(np.asarray(image, dtype=np.float64)))
    elif image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; damaged EXIF is ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the image itself may still be fine
        return image


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.uint8(np.round(values)))


def _to_0_255(values: np.ndarray) -> np.ndarray:
    """Grey without a defined white: taken as 0..1, 0..255 or 0..65535, or else stretched."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    for white in (1, 255, 65535):
        if low >= 0 and high <= white:
            return values * (255 / white)
    return (values - low) * (255 / (high - low or 1))
