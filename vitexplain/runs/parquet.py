"""What a run by actors has done so far: Parquet files that can be read, and resumed from, any time.

Each file holds the rows of one share of the images, a row for each map, and in its metadata the
settings of the run. It appears under its name once it is whole, and its name follows from the names
of its images, so that a share that is done twice replaces itself.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from vitexplain.errors import RequestError, printable
from vitexplain.images.finding import ImageFile
from vitexplain.images.writing import remove_parts, write_whole
from vitexplain.runs.items import Item
from vitexplain.runs.results import LOCK, acquire, is_result, is_valid
from vitexplain.words import to_json

PARQUET = "parquet"  # the folder in the output folder
SETTINGS = b"vitexplain"  # where metadata hold the settings
# category -1 for none; mask row by row; result as a line of results.jsonl
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "name": pa.string(),
        "error": pa.string(),
        "method": pa.string(),
        "category": pa.int64(),
        "rows": pa.int64(),
        "columns": pa.int64(),
        "mask": pa.list_(pa.float32()),
        "result": pa.string(),
    }
)


class Parts:
    """The Parquet files in an output folder; a context manager that locks the folder.

    On entering, rows that no longer hold are taken out: of images that failed or have changed, or
    whose files are gone. On leaving, those that actors of a killed run were still writing: this run
    has done their images, too.

    Args:
        folder: the output folder.
        settings: everything that changes results, JSON-ready. If the folder's run had others, its
            Parquet files are set aside, and all images are explained afresh.
        images: those to explain.
        tell: receives notices for the user.

    Attributes:
        place: where the files are.
        missing: the images that are not finished, or have changed since.
        done: how many are finished.

    Raises:
        RequestError: on entering, if another run is writing into the folder.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict,
        images: Sequence[ImageFile],
        tell: Callable[[str], None],
    ):
        self.folder, self.images, self.tell = folder, images, tell
        self.place, self.settings = folder / PARQUET, to_json(settings)
        self.missing: list[ImageFile] = []
        self.done = 0
        self._known: set[Path] = set()
        self._lock = FileLock(folder / LOCK)

    def __enter__(self) -> "Parts":
        for path, wrong in ((self.folder / LOCK, Path.is_dir), (self.place, Path.is_file)):
            if wrong(path):
                raise RequestError(f"{path} is in the way: remove it, or name another --output_dir")
        acquire(self._lock)
        folders = {(self.folder / image.name).parent for image in self.images}
        remove_parts({self.folder, self.place, *folders})
        self._set_aside_if_settings_changed()
        self.place.mkdir(exist_ok=True)
        finished = self._finished()
        self.missing = [image for image in self.images if image.name not in finished]
        self.done = len(self.images) - len(self.missing)
        self._known = set(self._files())
        return self

    def expect(self, shares: Sequence[Sequence[ImageFile]]) -> None:
        """Say in which shares this run does the missing images."""
        self._known |= {part_of(self.place, share) for share in shares}

    def __exit__(self, *_exception: object) -> None:
        if self.missing:
            done_here = pa.array([printable(image.name) for image in self.missing])
            for file in set(self._files()) - self._known:
                table = pq.read_table(file)
                others = pc.invert(pc.is_in(table["name"], done_here))
                _rewrite(file, table.filter(others))
        self._lock.release()

    def _files(self) -> list[Path]:
        return sorted(self.place.glob("*.parquet"))

    def _set_aside_if_settings_changed(self) -> None:
        if all(_settings_of(file) in (None, self.settings) for file in self._files()):
            return
        number = 1
        while (kept := self.folder / f"{PARQUET}-{number}").exists():
            number += 1
        self.place.rename(kept)
        self.tell(f"the settings differ from those of the last run in {self.folder}: starting "
                  f"afresh; its table is now {kept.name}")  # fmt: skip

    def _finished(self) -> set[str]:
        """Names of finished images; all other rows are removed."""
        paths = {image.name: image.path for image in self.images}
        finished: set[str] = set()
        damaged = 0
        for file in self._files():
            try:
                table = pq.read_table(file, columns=["result"])
            except (pa.ArrowException, OSError):
                damaged += 1
                file.unlink()
                continue
            names = [self._name_of(text, paths) for text in table["result"].to_pylist()]
            kept = [name is not None and name not in finished for name in names]
            finished |= {name for name in names if name is not None}
            if not all(kept):
                _rewrite(file, pq.read_table(file).filter(pa.array(kept)))
        if damaged:
            self.tell(f"{self.place}: {damaged} of its files can't be read: these images are done "
                      "again")  # fmt: skip
        return finished

    def _name_of(self, result: str, paths: Mapping[str, str]) -> str | None:
        """The name of a row's image; None if the row does not hold."""
        try:
            line = json.loads(result)
        except ValueError:
            return None
        return line["name"] if is_result(line) and is_valid(self.folder, line, paths) else None


def write_part(place: Path, settings: str, items: Sequence[Item], lines: Sequence[dict]) -> None:
    """Write the rows of some images.

    Args:
        place, settings: of Parts.
        items: the images, finished or failed.
        lines: of each its line, see results.line_of; empty of one that failed.
    """
    rows = [row for pair in zip(items, lines, strict=True) for row in _rows(*pair)]
    schema = SCHEMA.with_metadata({SETTINGS: settings})
    file = part_of(place, [item.image for item in items])
    _rewrite(file, pa.Table.from_pylist(rows, schema))


def part_of(place: Path, share: Sequence[ImageFile]) -> Path:
    """The file that holds the rows of these images."""
    names = to_json([image.name for image in share])
    return place / f"{hashlib.sha256(names.encode()).hexdigest()[:20]}.parquet"


def _rewrite(file: Path, table: pa.Table) -> None:
    if table.num_rows:
        write_whole(file, lambda opened: pq.write_table(table, opened))
    else:
        file.unlink(missing_ok=True)


def _settings_of(file: Path) -> str | None:
    """Of the run that wrote it, "" if another program did; None if it can't be read."""
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    return metadata.get(SETTINGS, b"").decode()


def _rows(item: Item, line: dict) -> list[dict]:
    """A row for each map of an image, or one with the error."""
    about = {"path": printable(item.image.path), "name": printable(item.image.name)}
    if item.failure:
        empty = {"method": "", "category": -1, "rows": 0, "columns": 0, "mask": []}
        return [about | {"error": printable(item.failure)} | empty | {"result": "{}"}]
    result = to_json(line)
    return [
        about
        | {
            "error": "",
            "method": found.method["name"],
            "category": -1 if found.category is None else found.category.index,
            "rows": found.mask.shape[0],
            "columns": found.mask.shape[1],
            "mask": found.mask.flatten(),
            "result": result,
        }
        for found in item.explained.maps
    ]
