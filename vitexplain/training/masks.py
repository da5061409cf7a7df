"""Images with masks of their objects, and how well maps tell the objects from the background.

A folder, or a zip file with the same layout:

    index.csv     a row for each image: file, mask, and, if wanted, imagenet_indices
    images/       what `file` names
    masks/        what `mask` names: 0 is background, 1 the object, 255 unknown, not counted

`imagenet_indices` are the categories of the object, "281-285" or several of these: the most likely
of them is explained, so that a dog is one of any breed. Without any, it is the most likely of all.
"""

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.checks import images_for
from vitexplain.attention.readout import has_categories
from vitexplain.attention.shadow import shadow_of
from vitexplain.errors import one_line
from vitexplain.faithfulness.baselines import centre_blob, random_map
from vitexplain.faithfulness.segmentation import (
    BACKGROUND,
    OBJECT,
    UNKNOWN,
    other_values,
    segmented,
)
from vitexplain.images.reading import PictureError, read_mask
from vitexplain.models.loading import LoadedModel
from vitexplain.models.transform import InputTransform
from vitexplain.outputs import both_sides
from vitexplain.progress import Watch, silent
from vitexplain.training.data import DataError, StoredImages
from vitexplain.training.localisation import MapFunction

INDEX = "index.csv"
INDICES = "imagenet_indices"  # a column
RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class _Row:
    """Of index.csv: the line, the mask's name, and the categories of the object, if any."""

    line: int
    mask: str
    categories: tuple[int, ...]


class MaskedImages(StoredImages):
    """The images that index.csv names, in its order.

    Attributes:
        names: of the images, as `file` has them.

    Raises:
        DataError: if there is no index.csv, or it is not as described above.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        try:
            text = self.side_file(INDEX)
        except UnicodeDecodeError:
            raise DataError(f"{INDEX} in {self.path} is no text in UTF-8") from None
        if text is None:
            raise DataError(f"{self.path} holds no {INDEX}, which names images and their masks")
        self._rows = _read_index(text, f"{INDEX} in {self.path}")
        self.names = list(self._rows)

    @property
    def masks(self) -> set[str]:
        """The names of the files that are masks."""
        return {row.mask for row in self._rows.values()}

    def categories(self, name: str, count: int) -> tuple[int, ...]:
        """Those that an image's object may have in a model of `count` categories; none if unknown.

        Raises:
            DataError: if the model has no such category.
        """
        row = self._rows[name]
        if row.categories and max(row.categories) >= count:
            raise DataError(
                f"{INDEX} in {self.path}, line {row.line}: the model has the categories 0 to "
                f"{count - 1}, not {max(row.categories)}; leave {INDICES} empty to explain the "
                "most likely one"
            )
        return row.categories

    def truth(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """The mask (H, W) of an image: BACKGROUND, OBJECT or UNKNOWN.

        Args:
            size: (width, height) of the image.

        Raises:
            PictureError: if the mask can't be read, is not as large as its image, has other
                values, or no object.
        """
        name_of_mask = self._rows[name].mask
        mask = read_mask(self.source(name_of_mask), name_of_mask)
        if mask.shape[::-1] != size:
            raise PictureError(
                f"{name_of_mask} has {mask.shape[1]}x{mask.shape[0]} pixels, and its image {name} "
                f"{size[0]}x{size[1]}: they must be of one size"
            )
        if others := other_values(mask):
            raise PictureError(
                f"{name_of_mask} holds the value {min(others)}: {BACKGROUND} is background, "
                f"{OBJECT} the object and {UNKNOWN} unknown"
            )
        if not (mask == OBJECT).any():
            raise PictureError(
                f"{name_of_mask} has no pixel of value {OBJECT}, the object; {BACKGROUND} is "
                f"background and {UNKNOWN} unknown"
            )
        return mask.astype(np.uint8)


def on_masks(
    maps: Mapping[str, MapFunction],
    loaded: LoadedModel,
    data: MaskedImages,
    names: Sequence[str],
    watch: Watch = silent,
    tell: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Each image's name, and by method the values of its map: see segmentation.segmented.

    An image is measured when the next one is asked for, so that work can stop and resume after any
    of them. What can't be read, or shows nothing of its object, is named and skipped.

    Args:
        maps: methods, and baselines if they are wanted; see localisation.map_functions and
            `baselines_like`.
        names: which of the images.
        watch: shows how far the work has come, see vitexplain.progress.
        tell: receives a sentence for each image that is skipped; by default, on standard error.

    Raises:
        DataError: if an image's categories are none of the model's.
    """
    tell = _on_stderr if tell is None else tell
    for name in watch(names, "images with masks"):
        try:
            image = data.read(name, stretch=loaded.transform.stretch)
            truth = seen_mask(loaded.transform, data.truth(name, image.size))
            if not (truth == OBJECT).any():
                raise PictureError(f"{name}: the model sees nothing of its object")
        except PictureError as error:
            tell(f"skipped: {error}")
            continue
        tensor = loaded.transform(image)[None]
        category = _category(loaded.model, tensor, data, name)
        found = {method: explain(tensor, [category])[0] for method, explain in maps.items()}
        yield name, {method: segmented(mask, truth) for method, mask in found.items()}


def seen_mask(transform: InputTransform, mask: np.ndarray) -> np.ndarray:
    """What a mask (H, W) says of each pixel of the model's input, (h, w).

    The nearest pixel counts; where the input is padded, it is UNKNOWN.
    """
    height, width = mask.shape
    region = transform.region(width, height)
    rows, columns = transform.size
    down = np.floor(region.top + (np.arange(rows) + 0.5) * region.height / rows).astype(int)
    across = np.floor(region.left + (np.arange(columns) + 0.5) * region.width / columns).astype(int)
    seen = mask[np.clip(down, 0, height - 1)][:, np.clip(across, 0, width - 1)].copy()
    seen[(down < 0) | (down >= height)] = UNKNOWN
    seen[:, (across < 0) | (across >= width)] = UNKNOWN
    return seen


def baselines_like(explain: MapFunction) -> dict[str, MapFunction]:
    """Both baselines on the grid of a method's maps: for any model, also for a CNN."""

    @cache
    def grid(shape: tuple[int, ...]) -> tuple[int, int]:
        return explain(torch.zeros(shape), [0])[0].shape

    def random(x: Tensor, categories: Sequence[int]) -> np.ndarray:
        return random_map(x[0], *grid(tuple(x.shape)))[None].repeat(len(categories), axis=0)

    def centre(x: Tensor, categories: Sequence[int]) -> np.ndarray:
        return centre_blob(*grid(tuple(x.shape)))[None].repeat(len(categories), axis=0)

    return {"random": random, "centre_blob": centre}


@torch.inference_mode()
def _category(model: nn.Module, tensor: Tensor, data: MaskedImages, name: str) -> int:
    """The most likely of those that the image's object may have; 0 of a model that has none."""
    if not has_categories(model):
        return 0
    shadow = shadow_of(model)
    logits = both_sides(forward(shadow, images_for(shadow, tensor)))[0]
    allowed = list(data.categories(name, len(logits))) or list(range(len(logits)))
    return allowed[int(logits[allowed].argmax())]


def _read_index(text: str, where: str) -> dict[str, _Row]:
    """The rows of index.csv by the images' names."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
    rows: dict[str, _Row] = {}
    try:
        missing = {"file", "mask"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{where} has no column {' and '.join(sorted(missing))}")
        for row in reader:
            place = f"{where}, line {reader.line_num}"
            name, mask = (_inside(row[column], place) for column in ("file", "mask"))
            if name in rows:
                raise DataError(f"{place}: {name} has a row already")
            rows[name] = _Row(reader.line_num, mask, _indices(row.get(INDICES), place))
    except csv.Error as error:
        raise DataError(f"{where} is no CSV: {one_line(error)}") from None
    if not rows:
        raise DataError(f"{where} names no image")
    return rows


def _inside(name: str | None, place: str) -> str:
    """The name of a file of the data, which no name leads out of."""
    name = (name or "").strip()
    if not name:
        raise DataError(f"{place}: an image and its mask were due, file and mask")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{place}: {name} leads out of the data")
    return name


def _indices(text: str | None, place: str) -> tuple[int, ...]:
    """(1, 7, 8) of "1 7-8", also with commas or semicolons between them."""
    found: set[int] = set()
    for part in filter(None, re.split(r"[\s,;]+", text or "")):
        match = RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise DataError(f"{place}: {part!r} are no categories like 281-285 or 7")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def _on_stderr(notice: str) -> None:
    print(notice, file=sys.stderr)
