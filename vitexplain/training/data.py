"""Labelled images: a folder of folders, or a zip file with the same layout.

A folder's name is the category: an index of the model's output ("0243"), or a name.
"""

import io
import lzma
import os
import random
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vitexplain.errors import RequestError, one_line
from vitexplain.images.reading import PictureError, read_image
from vitexplain.progress import bar_or_lines

LARGEST = 256 << 20  # bytes of a file in an archive
HELD_OUT = 1  # photographs whose category index is this modulo 5 are for evaluation only


class DataError(RequestError):
    """The data hold no labelled images, or not those that are needed."""


class StoredImages:
    """Images by their names in a folder, or in a zip file with the same layout.

    Raises:
        DataError: if the path is neither.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._archive = None
        if self.path.is_file():
            self._archive, self._process = _opened(self.path), os.getpid()
        elif not self.path.is_dir():
            raise DataError(f"{path} is neither a folder nor a zip file")

    def __reduce__(self) -> tuple:
        """For other processes, which open archives for themselves."""
        return type(self), (self.path,)

    def read(self, name: str, *, stretch: bool = False) -> Image.Image:
        """One image, RGB.

        Args:
            stretch: make its darkest values black and its brightest white.

        Raises:
            PictureError: if it can't be read.
        """
        return read_image(self.source(name), name, stretch=stretch)

    def source(self, name: str) -> Path | io.BytesIO:
        """What one file is read from.

        Raises:
            PictureError: if the archive has no such file, or it can't be unpacked.
        """
        return self.path / name if self._archive is None else io.BytesIO(self._member(name))

    def _member(self, name: str) -> bytes:
        """A file of the archive, whatever its header says of its size.

        Raises:
            PictureError: if it is missing, damaged, encrypted or too large.
        """
        try:
            if self._process != os.getpid():  # forks would share one place in the file
                self._archive, self._process = _opened(self.path), os.getpid()
            with self._archive.open(name) as file:
                content = file.read(LARGEST + 1)
        except KeyError:
            raise PictureError(f"{self.path} holds no {name}") from None
        except RuntimeError as error:  # encrypted, or of a compression that zipfile lacks
            raise PictureError(f"{name} in {self.path}: {one_line(error)}") from None
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            raise PictureError(f"{name} in {self.path} is damaged ({one_line(error)})") from None
        if len(content) > LARGEST:
            raise PictureError(
                f"{name} in {self.path} has more than {LARGEST >> 20} MiB: no image that "
                "training could use"
            )
        return content

    def side_file(self, name: str) -> str | None:
        """The text of a file next to the folders, such as boxes.csv; None if there is none."""
        if self._archive is None:
            file = self.path / name
            return file.read_text(encoding="utf-8") if file.is_file() else None
        if name not in self._archive.namelist():
            return None
        return self._member(name).decode("utf-8")


class LabelledImages(StoredImages):
    """All files in the folders of categories, in the order of their names.

    Attributes:
        names: "CATEGORY/file" of each.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        if self._archive is None:
            files = (f for f in self.path.glob("*/*") if f.is_file())
            names = [file.relative_to(self.path).as_posix() for file in files]
        else:
            names = [name for name in self._archive.namelist() if name.count("/") == 1]
        files = {name for name in names if not name.endswith("/") and "/." not in name}
        self.names = sorted(name for name in files if _is_category(category_of(name)))
        if not self.names:
            raise DataError(f"{path} holds no images in folders named by category")

    def good(self, names: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        """Each image that can be read; the others are named on stderr and skipped."""
        for name in names:
            try:
                yield name, self.read(name)
            except PictureError as error:
                print(f"skipped: {error}", file=sys.stderr)

    def categories(self) -> set[str]:
        """Every category that has a folder, with or without images in it."""
        if self._archive is None:
            return {f.name for f in self.path.iterdir() if f.is_dir() and f.name[0] != "."}
        folders = {category_of(name) for name in self._archive.namelist() if "/" in name}
        return set(filter(_is_category, folders))


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(
            f"{path} is neither a folder nor a zip file that can be read ({one_line(error)})"
        ) from None


def _is_category(name: str) -> bool:
    """Not what leads out of the archive, nor what systems put into it."""
    return not name.startswith(".") and name not in ("", "__MACOSX")


def category_of(name: str) -> str:
    """The folder of "CATEGORY/file"."""
    return name.partition("/")[0]


class ImageDataset(Dataset):
    """Transformed images, each with the index of its category in `categories`."""

    def __init__(
        self,
        images: LabelledImages,
        names: list[str],
        categories: list[str],
        transform: Callable[[Image.Image], Tensor],
    ):
        self.images, self.names, self.transform = images, names, transform
        place = {category: index for index, category in enumerate(categories)}
        self.labels = [place[category_of(name)] for name in names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images.read(self.names[index])), self.labels[index]


def is_held_out(category: int) -> bool:
    """Whether training of the bundled model leaves out this category's photographs."""
    return category % 5 == HELD_OUT


def usable_names(images: LabelledImages) -> list[str]:
    """Names of the images that can be read; the others are named on stderr.

    Raises:
        DataError: if there are fewer than two categories, or one has no image that can be read.
    """
    names = [name for name, _ in images.good(bar_or_lines(images.names, "images checked"))]
    found = {category_of(name) for name in names}
    empty = sorted(images.categories() - found)
    if empty:
        raise DataError(f"{images.path}: no usable image in category {', '.join(empty)}")
    if len(found) < 2:
        raise DataError(f"{images.path}: training needs at least two categories")
    return names


def split(names: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """(training, validation): about `share` of every category for validation, at least one image.

    A category with a single image is used for training only.
    """
    rng = random.Random(seed)
    train, validation = [], []
    for category in sorted({category_of(name) for name in names}):
        own = [name for name in names if category_of(name) == category]
        rng.shuffle(own)
        held = min(max(1, round(share * len(own))), len(own) - 1) if share else 0
        validation += own[:held]
        train += own[held:]
    return sorted(train), sorted(validation)
