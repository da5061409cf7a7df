"""Grey images of more than 8 bits: which value is white, and which is black.

A 16-bit file often holds 10 or 12 bits of a camera, a scanner or a microscope. Where it says so,
that is followed. Where it doesn't, values stay as they are, and whoever asked is told that the
model sees a dark image.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

FULL = 65535
DARK = 1 / 4  # of the range: images that stay below it are told of
WHITE_IS_ZERO = 0  # TIFF's photometric interpretation
PHOTOMETRIC, BITS, LEAST, MOST = 262, 258, 280, 281  # tags of TIFF
CLIPPED = 0.1  # per cent of the darkest and of the brightest values that stretching clips


@dataclass(frozen=True)
class Depth:
    """What a file says of its values.

    Attributes:
        black, white: None where it doesn't say.
        bits: significant ones, of a file whose values may fill the range all the same.
        white_is_zero: values grow darker.
    """

    black: int | None = None
    white: int | None = None
    bits: int | None = None
    white_is_zero: bool = False


def depth_of(image: Image.Image) -> Depth:
    """What an image that was just opened says of its values; images in memory say nothing."""
    if image.format == "PNG" and image.mode.startswith("I;16"):
        return Depth(bits=_significant_bits(image.fp))
    tags = getattr(image, "tag_v2", {})
    if not tags:
        return Depth()
    bits = _number(tags, BITS)
    white = 2**bits - 1 if bits in range(9, 16) else _number(tags, MOST)
    white_is_zero = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and is_deep(image)
    return Depth(_number(tags, LEAST), white, None, white_is_zero)


def _number(tags: Mapping, tag: int) -> int | None:
    """A tag's value, also where it is given for each channel."""
    value = tags.get(tag)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def to_8_bits(image: Image.Image, depth: Depth, stretch: bool) -> tuple[Image.Image, str]:
    """A deep image as 8-bit grey, and a notice or "".

    Args:
        depth: what its file says of its values.
        stretch: make the darkest value black and the brightest white.
    """
    values = np.asarray(image).astype(np.float64)
    transparent = image.info.get("transparency")
    clear = values == transparent if isinstance(transparent, int) else None
    notice = ""
    if stretch:
        values = stretched(values)
        values = 255 - values if depth.white_is_zero else values
    elif image.mode.startswith("I;16"):
        values, notice = _of_integers(values, depth)
    else:
        values = _of_any_range(values)
    if clear is not None:
        values = np.where(clear, 255, values)
    return Image.fromarray(np.uint8(np.round(values.clip(0, 255)))), notice


def stretched(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 255, all but CLIPPED per cent of them at either end within the range."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (CLIPPED, 100 - CLIPPED)) if finite.size else (0.0, 0.0)
    if high <= low and finite.size:
        low, high = finite.min(), finite.max()
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return ((values - low) * (255 / (high - low or 1))).clip(0, 255)


def stretch_colours(image: Image.Image) -> Image.Image:
    """An 8-bit image with its values stretched, all channels alike, so that hues stay."""
    return Image.fromarray(np.uint8(np.round(stretched(np.asarray(image).astype(np.float64)))))


def _significant_bits(file: BinaryIO) -> int | None:
    """What a PNG of grey says of its bits (its sBIT chunk); None without one."""
    file.seek(0)
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return None
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"sBIT":
            content = file.read(min(length, 4))
            return content[0] if content and 0 < content[0] <= 16 else None
        if kind in (b"IDAT", b"IEND"):
            return None
        file.seek(length + 4, 1)
    return None


def _of_integers(values: np.ndarray, depth: Depth) -> tuple[np.ndarray, str]:
    low, white = 0, FULL
    darkest, brightest = float(values.min()), float(values.max())
    if depth.white and brightest <= depth.white < FULL:
        white = depth.white
        low = depth.black if depth.black and depth.black < white else 0
    elif depth.bits and brightest <= 2**depth.bits - 1:  # by the book it would fill the range
        white = 2**depth.bits - 1
    if depth.white_is_zero:
        values, brightest = white - values, white - darkest
    notice = ""
    if white == FULL and 0 < brightest < DARK * FULL:
        notice = (
            f"its brightest value is {brightest:.0f} of {FULL}: the model sees it dark; "
            "--stretch makes that white"
        )
    return (values - low) * (255 / (white - low)), notice


def _of_any_range(values: np.ndarray) -> np.ndarray:
    """Grey without a defined white: taken as 0..1, 0..255 or 0..65535, or else stretched."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    for white in (1, 255, FULL):
        if low >= 0 and high <= white:
            return values * (255 / white)
    return (values - low) * (255 / (high - low or 1))
