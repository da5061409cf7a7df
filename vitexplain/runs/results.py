"""What a run over many images has done so far, on disk, so that it can be resumed after any stop.

results.jsonl holds one line for each finished image, errors.csv one for each that failed, and
run.json the settings. A line is written once the image's files are complete; a later run
with the same settings skips these images.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from vitexplain.errors import RequestError
from vitexplain.images.finding import ImageFile
from vitexplain.images.reading import state_of
from vitexplain.images.writing import remove_parts, write_whole
from vitexplain.words import to_json

# what a line, and each of its maps, must have
LINE = {
    "path": str, "name": str, "size": list, "region_seen": list, "model": str, "top": list,
    "maps": list, "milliseconds": dict, "file": (dict, type(None)),
}  # fmt: skip
MAP = {"method": dict, "category": (dict, type(None)), "overlay": str, "grid": list, "mask": str}
RESULTS, ERRORS, RUN, LOCK = "results.jsonl", "errors.csv", "run.json", ".lock"


class Results:
    """The record of a run in its output folder; a context manager that locks the folder.

    Args:
        folder: the output folder.
        settings: everything that changes results, JSON-ready. If the folder's run had others, its
            list is renamed, and all images are explained afresh.
        images: those to explain.
        tell: receives notices for the user.

    Attributes:
        missing: the images that are not finished, or have changed since.
        done: how many are finished.
        failures: (path, reason) of each image that failed in this run.

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
        self.folder, self.settings, self.images, self.tell = folder, settings, images, tell
        self.missing: list[ImageFile] = []
        self.done = 0
        self.failures: list[tuple[str, str]] = []
        self._lock = FileLock(folder / LOCK)

    def __enter__(self) -> "Results":
        for name in (RESULTS, ERRORS, RUN, LOCK):
            if (self.folder / name).is_dir():
                raise RequestError(
                    f"{self.folder / name} is a folder, where a file of this name must be written: "
                    "remove it, or name another --output_dir"
                )
        acquire(self._lock)
        remove_parts({self.folder, *((self.folder / p.name).parent for p in self.images)})
        self._start_afresh_if_settings_changed()
        finished = self._finished()
        self.missing = [image for image in self.images if image.name not in finished]
        self.done = len(self.images) - len(self.missing)
        self._lines = (self.folder / RESULTS).open("a", encoding="utf-8")
        # what failed before is tried again
        self._errors = (self.folder / ERRORS).open(
            "w", encoding="utf-8", errors="surrogateescape", newline=""
        )
        self._failed_row(["path", "reason"])
        return self

    def check_folder(self) -> None:
        """Raise RequestError if the output folder was deleted or replaced during the run."""
        try:
            same = os.path.samestat((self.folder / RESULTS).stat(), os.fstat(self._lines.fileno()))
        except OSError:
            same = False
        if not same:
            raise RequestError(
                f"{self.folder} was deleted or replaced during the run: the results of this run "
                "are lost; run it again"
            )

    def __exit__(self, *_exception: object) -> None:
        self._lines.close()
        self._errors.close()
        self._lock.release()

    def add(self, image: ImageFile, result: dict, state: dict | None = None) -> None:
        """Add one line; the files that it names must exist.

        Args:
            state: of the image's file when it was opened, see images.reading.state_of.
        """
        self._lines.write(to_json(line_of(self.folder, image, result, state)) + "\n")
        self._lines.flush()
        self.done += 1

    def fail(self, image: ImageFile, reason: str) -> None:
        """Add one line to errors.csv."""
        self._failed_row([image.path, reason])
        self.failures.append((image.path, reason))

    @property
    def failed(self) -> int:
        """How many images failed in this run."""
        return len(self.failures)

    def _failed_row(self, row: list[str]) -> None:
        csv.writer(self._errors).writerow([_harmless(cell) for cell in row])
        self._errors.flush()

    def _start_afresh_if_settings_changed(self) -> None:
        file, lines = self.folder / RUN, self.folder / RESULTS
        text = to_json(self.settings, indent=2).encode()
        before = file.read_bytes() if file.exists() else None
        if before == text:
            return
        if lines.exists():
            number = 1
            while (kept := lines.with_stem(f"results-{number}")).exists():
                number += 1
            lines.rename(kept)
            self.tell(f"the settings differ from those of the last run in {self.folder}: "
                      f"starting afresh; its list is now {kept.name}")  # fmt: skip
        write_whole(file, lambda opened: opened.write(text))

    def _finished(self) -> set[str]:
        """Names of finished images; outdated lines are removed."""
        file = self.folder / RESULTS
        if not file.exists():
            return set()
        paths = {image.name: image.path for image in self.images}
        kept: dict[str, dict] = {}
        damaged: list[str] = []
        for line in read_results(file, damaged.append):
            if is_valid(self.folder, line, paths):
                kept[line["name"]] = line
        if damaged:
            self.tell(f"{file}: {len(damaged)} of its lines can't be used: these images are done "
                      "again")  # fmt: skip
        whole = "".join(to_json(line) + "\n" for line in kept.values()).encode()
        if whole != file.read_bytes():
            write_whole(file, lambda opened: opened.write(whole))
        return set(kept)


def acquire(lock: FileLock) -> None:
    """Take the lock of an output folder; RequestError if another run has it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RequestError(
            f"another run is writing into {Path(lock.lock_file).parent}: wait for it, or name "
            "another --output_dir"
        ) from None


def line_of(folder: Path, image: ImageFile, result: dict, state: dict | None) -> dict:
    """The line of a finished image, whose files are in the output folder; see Results.add."""
    state = state_of(image.path) if state is None else state
    line = {"path": image.path, "name": image.name, **result, "file": state}
    return line | {"sizes": sizes_of(folder, result)}


def is_valid(folder: Path, line: dict, paths: Mapping[str, str]) -> bool:
    """Whether a line still holds: its image has not changed, and its files are whole.

    Args:
        paths: by name, where the requested images are; what was not requested has not changed.
    """
    path = paths.get(line["name"])
    return (path is None or state_of(path) == line["file"]) and _is_whole(folder, line)


def read_results(file: Path, damaged: Callable[[str], None] = lambda _: None) -> Iterator[dict]:
    """The lines of results.jsonl that are results.

    Args:
        damaged: receives the start of each other line. The last one may be incomplete if a run was
            killed; others may have been changed by hand.
    """
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if is_result(found):
                yield found
            elif line.endswith("\n") and line.strip():
                damaged(line[:40])


def is_result(line: object) -> bool:
    """Whether it has what later runs, the report and the contact sheet read."""
    return _has(line, LINE) and all(
        _has(found, MAP) and _has(found["method"], {"name": str}) for found in line["maps"]
    )


def _has(value: object, fields: dict[str, type | tuple[type, ...]]) -> bool:
    return isinstance(value, dict) and all(
        name in value and isinstance(value[name], kind) for name, kind in fields.items()
    )


def _is_whole(folder: Path, line: dict) -> bool:
    """Whether all files of a result are there, as large as they were written."""
    sizes = line.get("sizes")
    for name in files_of(line):
        size = _size(folder / name)
        if not size or (isinstance(sizes, dict) and sizes.get(name, size) != size):
            return False
    return True


def sizes_of(folder: Path, result: dict) -> dict[str, int]:
    """The size in bytes of each file of a result."""
    return {name: _size(folder / name) for name in files_of(result)}


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula, whatever a file is called."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def files_of(result: dict) -> list[str]:
    """The files that a line names, below the output folder."""
    kinds = ("overlay", "mask_file")
    return [found[kind] for found in result["maps"] for kind in kinds if kind in found]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
