"""Which files are images that are opened: raster formats of Pillow's, and no programs.

EPS would be handed to Ghostscript, WMF to Windows: other programs, told what to do by the image.
"""

import importlib.util
from functools import cache
from pathlib import Path

from PIL import Image

# raster formats that Pillow decodes by itself
OPENED = frozenset(
    "AVIF BLP BMP CUR DDS DIB FLI FTEX GBR GIF HEIF ICNS ICO IM JPEG JPEG2000 MCIDAS MPO MSP PCX "
    "PIXAR PNG PPM PSD QOI SGI SPIDER SUN TGA TIFF WEBP XBM XPM XVTHUMB".split()
)
HEIF = (".heic", ".heif", ".hif")
EXPORT = "export it as PNG or TIFF"
# what people have in their folders that is not opened, and what helps
OTHERS = {
    **dict.fromkeys(HEIF, "pip install pillow-heif"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".raw"),
        f"raw of a camera: {EXPORT}",
    ),
    ".jxl": f"JPEG XL: {EXPORT}",
    **dict.fromkeys((".dcm", ".dicom"), "DICOM: pydicom reads it, and its pixels can be passed"),
    **dict.fromkeys((".nii", ".nii.gz", ".mha", ".svs", ".ndpi"), f"of several layers: {EXPORT}"),
    **dict.fromkeys((".fits", ".fit", ".h5", ".hdf5"), f"data of several kinds: {EXPORT}"),
    **dict.fromkeys((".svg", ".eps", ".ps", ".pdf", ".ai", ".wmf", ".emf"), f"a drawing: {EXPORT}"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "a film: export its frames"),
}


def opened_formats() -> list[str]:
    """The formats to try, those of pillow-heif included where it is installed."""
    Image.init()
    _register_heif()
    return sorted(OPENED & Image.OPEN.keys())


def suffix_of(path: str) -> str:
    """The ending of a file's name, in small letters."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def why_not_opened(path: str) -> str | None:
    """What helps with a file that is not opened because of its format; None if that is not it."""
    suffix = suffix_of(path)
    if suffix in HEIF and _register_heif():
        return None
    return OTHERS.get(suffix)


@cache
def _register_heif() -> bool:
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True
