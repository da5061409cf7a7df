"""Open anything that Pillow reads as upright 8-bit RGB, or raise one clear error."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from vitexplain.errors import RequestError, one_line, printable
from vitexplain.images.colour import to_srgb
from vitexplain.images.depth import Depth, depth_of, is_deep, stretch_colours, to_8_bits
from vitexplain.images.formats import opened_formats, why_not_opened

Read = TypeVar("Read")


class PictureError(RequestError):
    """An image is missing, broken or too large, or the file is not an image."""


def open_image(path: str | Path, *, stretch: bool = False) -> Image.Image:
    """The image at `path` as RGB: EXIF orientation applied, in sRGB, transparency on white.

    An animation gives its first frame; 16-bit and floating-point grey are converted to 8 bits.
    What a user should know of the image is in its `info["notice"]`.

    Args:
        stretch: make its darkest values black and its brightest white.

    Raises:
        PictureError: in one sentence, with the path and the reason.
    """
    return read_image(Path(path), str(Path(path)), stretch=stretch)


def read_image(source: Path | BinaryIO, name: str, *, stretch: bool = False) -> Image.Image:
    """As `open_image`, also from an open file; errors refer to it as `name`."""

    def upright_rgb(image: Image.Image) -> Image.Image:
        depth = depth_of(image)
        image.load()
        return to_rgb(upright(image), depth, stretch=stretch)

    return _read(source, name, upright_rgb)


def read_mask(source: Path | BinaryIO, name: str) -> np.ndarray:
    """The numbers (H, W) in a mask's file, upright: indices of a palette, not its colours.

    Raises:
        PictureError: if it can't be read, or has several channels; errors refer to it as `name`.
    """

    def numbers(image: Image.Image) -> np.ndarray:
        if len(image.getbands()) > 1:
            raise PictureError(
                f"{printable(name)} has {len(image.getbands())} channels: a mask is a grey or "
                "palette image, whose one channel has the numbers"
            )
        image.load()
        found = np.asarray(upright(image))
        return found.astype(np.uint8) if found.dtype == bool else found

    return _read(source, name, numbers)


def _read(source: Path | BinaryIO, name: str, convert: Callable[[Image.Image], Read]) -> Read:
    """What `convert` makes of an open image; what can go wrong, as one PictureError."""
    name = printable(name)
    try:
        with warnings.catch_warnings():
            # Pillow warns of a possible decompression bomb at half the size it refuses, and of
            # damaged metadata that does not matter here
            warnings.simplefilter("ignore")
            with Image.open(source, formats=opened_formats()) as image:
                return convert(image)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"no image at {name}: no such file") from None
    except IsADirectoryError:
        raise PictureError(f"{name} is a folder: name one image in it") from None
    except UnidentifiedImageError:
        help_ = why_not_opened(name)
        reason = f" that is opened here: {help_}" if help_ else ", or of a format Pillow can't read"
        raise PictureError(f"{name} is not an image{reason}") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise PictureError(
            f"{name} is too large: more than {limit} million pixels; make it smaller first"
        ) from None
    except MemoryError:
        raise PictureError(f"{name} does not fit into memory: make it smaller first") from None
    except Exception as error:  # Pillow's decoders raise almost anything on broken files
        reason = one_line(error)
        raise PictureError(f"{name} can't be read, it may be damaged: {reason}") from None


def to_rgb(image: Image.Image, depth: Depth | None = None, *, stretch: bool = False) -> Image.Image:
    """Any Pillow mode -> RGB in sRGB, transparent parts on white; notices in `info["notice"]`.

    An image that is RGB already is not copied: its `info` is replaced.

    Args:
        depth: what its file says of its values.
        stretch: make its darkest values black and its brightest white.
    """
    notices = []
    deep = is_deep(image)
    if deep:
        image, notice = to_8_bits(image, depth or Depth(), stretch)
        notices.append(notice)
    else:
        image, notice = to_srgb(image)
        notices.append(notice)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image.load()
    if image.mode != "RGB":
        image = image.convert("RGB")
    if stretch and not deep:
        image = stretch_colours(image)
    image.info = {"notice": "; ".join(filter(None, notices))}
    return image


def pixels_of(path: str) -> int:
    """How many pixels a file's head announces; 0 if it can't be told."""
    width, height = size_of(path)
    return width * height


def size_of(path: str) -> tuple[int, int]:
    """The width and height that a file's head announces; 0 and 0 if they can't be told."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=opened_formats()) as image:
                return image.size
    except Exception:  # opening it will say what is wrong
        return 0, 0


def state_of(path: str) -> dict | None:
    """Size and time stamp of a file, to detect changes; None if there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; damaged EXIF is ignored."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the image itself may still be fine
        return image
