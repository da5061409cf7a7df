"""Write files so that an interrupted run leaves no half file behind."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin


def writable_folder(folder: str | Path) -> Path:
    """The folder, made if missing.

    Raises:
        OSError: if it can't be made or nothing can be written into it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def write_png(path: Path, picture: Image.Image, texts: Mapping[str, str]) -> None:
    """A PNG with text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        # names of files need not be valid Unicode, text chunks must be
        info.add_itxt(key, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    # level 3 is about three times as fast as the default on photographs, and hardly larger
    write_whole(path, lambda file: picture.save(file, "PNG", pnginfo=info, compress_level=3))


def write_array(path: Path, array: np.ndarray) -> None:
    """A .npy file."""
    write_whole(path, lambda file: np.save(file, array, allow_pickle=False))


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """What `write` puts into a file, under a temporary name first: renaming it is atomic."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".vit_explain-", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner only
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
