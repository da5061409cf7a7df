"""The true categories of a run's images: their folders' names, or a CSV of file and category."""

import csv
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vitexplain.errors import RequestError
from vitexplain.images.finding import ImageFile
from vitexplain.models.categories import CategoryError
from vitexplain.models.loading import LoadedModel
from vitexplain.outputs import are_values
from vitexplain.training.accuracy import Share
from vitexplain.training.classify import label_of

FOLDERS = "folders"
HEADS = ("file", "filename", "image", "path", "name")  # of a first line that is none of a file
DELIMITERS = ",;\t"


def true_categories(
    source: str, images: Sequence[ImageFile], loaded: LoadedModel, tell: Callable[[str], None]
) -> dict[str, int]:
    """The index of each image's true category, by the image's name.

    Args:
        source: FOLDERS, for the name of the folder that an image is in; or a CSV file.
        tell: receives a notice where images have none.

    Raises:
        RequestError: if a category is none of the model's, the file can't be read, or no image has
            a category.
    """
    if len(loaded.categories) < 2 or are_values(loaded.labels):
        raise RequestError(
            "--truth is for classifiers: this model has no categories to be right in"
        )
    if source == FOLDERS:
        named = {image.name: Path(image.path).absolute().parent.name for image in images}
        where = {name: f"the folder of {name}" for name in named}
    else:
        named, where = _of_table(Path(source), images)
    indices: dict[str, int] = {}
    for name, category in named.items():
        try:
            indices[name] = label_of(loaded, category)
        except CategoryError as error:
            raise RequestError(f"--truth: {where[name]}: {error}") from None
    if not indices:
        raise RequestError(f"{source} names none of the {len(images)} images")
    if len(indices) < len(images):
        tell(f"{len(images) - len(indices)} of {len(images)} images have no true category")
    return indices


def accuracy(results: Iterable[dict]) -> dict | None:
    """Top-1 of the results that have a true category, with a 95 % interval; None if none has."""
    right = [result["correct"] for result in results if result.get("correct") is not None]
    if not right:
        return None
    share = Share(sum(right), len(right))
    low, high = share.interval
    return {
        "right": share.hits,
        "of": share.count,
        "value": round(share.value, 4),
        "interval": [round(low, 4), round(high, 4)],
    }


def digest_of(source: str | None) -> str | None:
    """What says whether a source has changed since an earlier run."""
    if source in (None, FOLDERS):
        return source
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def _of_table(file: Path, images: Sequence[ImageFile]) -> tuple[dict[str, str], dict[str, str]]:
    """(name -> category, name -> where that is said), from the rows about these images."""
    by_path = {str(Path(image.path).resolve()): image.name for image in images}
    alone: dict[str, str | None] = {}  # by file name, where only one image has it
    for image in images:
        base = Path(image.path).name
        alone[base] = None if base in alone else image.name
    by_name = {image.name: image.name for image in images}
    named: dict[str, str] = {}
    where: dict[str, str] = {}
    for number, cells in _rows(file):
        if len(cells) != 2:
            raise RequestError(
                f"{file}, line {number}: a file and its category were due, not {len(cells)} cells"
            )
        path, category = (cell.strip() for cell in cells)
        name = (
            by_path.get(str((file.parent / path).resolve()))
            or by_path.get(str(Path(path).resolve()))
            or by_name.get(path)
            or alone.get(path)
        )
        if name is None:
            continue  # of another image, or the head
        if named.get(name, category) != category:
            raise RequestError(f"{file}, line {number}: {path} has two categories")
        named[name], where[name] = category, f"{file}, line {number}"
    return named, where


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """(number, cells) of each line that is not empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"{file} is no text in UTF-8: save it as CSV in UTF-8") from None
    except OSError as error:
        hint = f"; for the names of folders, give --truth {FOLDERS}"
        raise RequestError(f"{file} can't be read: {error.strerror}{hint}") from None
    first = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first.count)
    try:
        rows = list(csv.reader(text.splitlines(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise RequestError(f"{file} is no CSV of file and category: {error}") from None
    numbered = [(number, cells) for number, cells in enumerate(rows, 1) if any(cells)]
    if numbered and numbered[0][1][0].strip().lower() in HEADS:
        numbered = numbered[1:]
    return numbered
