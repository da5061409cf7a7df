"""Write images as PNG, JPEG or WebP: which of them, and their limits."""

from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitexplain.errors import RequestError
from vitexplain.images.metadata import exif, xmp
from vitexplain.images.png import save_png

# pixels of a side; beyond PNG's, no image fits into memory
LIMITS = {".webp": 16383, ".jpg": 65500, ".png": 2**31 - 1}
KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP"}
LOSSLESS_UP_TO = 4_000_000  # pixels that "auto" writes as PNG
QUALITY = 92
WEBP_METHOD = 1  # of 0 to 6: 0.8 s for 12 megapixels, and 4, the default, 7 s


def ending_of(format_: str, width: int, height: int) -> tuple[str, str]:
    """(The ending of the file of an image of this size, a notice or "").

    An image that is too large for its format is written as the next one that can hold it: one
    panorama among many photographs should not fail.

    Args:
        format_: one of choices.FORMATS.
    """
    wanted = f".{format_}"
    if format_ == "auto":
        wanted = ".png" if width * height <= LOSSLESS_UP_TO else ".jpg"
    endings = list(LIMITS)
    ending = next(
        each for each in endings[endings.index(wanted) :] if max(width, height) <= LIMITS[each]
    )
    if ending == wanted or format_ == "auto":
        return ending, ""
    return ending, f"{_limit(wanted)}: its overlay is a {KINDS[ending]} of {width}x{height}"


def check_fits(ending: str, width: int, height: int) -> None:
    """Raise RequestError if a file with this ending can't hold an image of this size."""
    ending = ".jpg" if ending == ".jpeg" else ending
    if max(width, height) > LIMITS[ending]:
        raise RequestError(
            f"{_limit(ending)}, not {width}x{height}: give a smaller size, or save it as .png"
        )


def save_image(file: BinaryIO, pixels: np.ndarray, ending: str, texts: Mapping[str, str]) -> None:
    """An image with texts: PNG's chunks, or XMP and EXIF in JPEG and WebP.

    Args:
        pixels: (H, W, 3) uint8, RGB; for JPEG and WebP also (H, W, 4), the last one unused, which
            Pillow takes without a copy.
        ending: one of KINDS.
    """
    kind = KINDS[ending]
    if kind == "PNG":
        save_png(file, pixels, texts)
        return
    if pixels.shape[2] == 4:
        size = pixels.shape[1], pixels.shape[0]
        image = Image.frombuffer("RGBX", size, np.ascontiguousarray(pixels), "raw", "RGBX", 0, 1)
    else:
        image = Image.fromarray(pixels)
    options = {"subsampling": "4:2:0"} if kind == "JPEG" else {"method": WEBP_METHOD}
    image.save(file, kind, quality=QUALITY, exif=exif(texts), xmp=xmp(texts), **options)


def _limit(ending: str) -> str:
    return f"{KINDS[ending]} holds at most {LIMITS[ending]} pixels a side"
