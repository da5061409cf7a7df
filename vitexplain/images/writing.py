"""Write files whole: an interrupted run leaves no half-written file."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitexplain.images.encoding import save_image
from vitexplain.images.png import save_png

PREFIX, SUFFIX = ".vit_explain-", ".part"  # of unfinished files


LONGEST = 200  # bytes of a name to which endings are added; file systems take 255


def short_stem(name: str) -> str:
    """A file's name to which endings can be added: a long one ends in a hash of the whole."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    kept = encoded[: LONGEST - len(digest) - 1]
    # no half characters, unless the name had them itself
    kept = kept.decode("utf-8", "ignore") if _is_unicode(name) else os.fsdecode(kept)
    return f"{kept}-{digest}"


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def writable_folder(folder: str | Path) -> Path:
    """The folder, created if missing.

    Raises:
        OSError: if it can't be created or is not writable.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def write_png(path: Path, image: Image.Image, texts: Mapping[str, str]) -> None:
    """An RGB image as PNG, with text chunks."""
    write_whole(path, lambda file: save_png(file, image, texts))


def write_image(path: Path, pixels: np.ndarray, texts: Mapping[str, str]) -> None:
    """An image with texts, as its path's ending says: see images.encoding."""
    write_whole(path, lambda file: save_image(file, pixels, path.suffix.lower(), texts))


def write_array(path: Path, array: np.ndarray) -> None:
    """A .npy file."""
    write_whole(path, lambda file: np.save(file, array, allow_pickle=False))


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name and then rename it, which is atomic."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=PREFIX, suffix=SUFFIX)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves the new name on an empty file
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner only
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def remove_parts(folders: Iterable[Path]) -> None:
    """Remove what a killed run left half-written. No other run may be writing there."""
    for folder in folders:
        for part in folder.glob(f"{PREFIX}*{SUFFIX}"):
            part.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
