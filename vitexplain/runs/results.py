"""What a run over many images has done so far, on disk, so that it can be resumed after any stop.

results.jsonl holds one line for each finished image, errors.csv one for each that failed, and
run.json the settings. A line is written once the image's files are complete; a later run
with the same settings skips these images.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vitexplain.errors import RequestError
from vitexplain.images.finding import ImageFile
from vitexplain.images.writing import remove_parts, write_whole
from vitexplain.words import to_json

RESULTS, ERRORS, RUN = "results.jsonl", "errors.csv", "run.json"


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
        done, failed: how many are finished, and how many failed in this run.

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
        self.done = self.failed = 0
        self._lock = FileLock(folder / ".lock")

    def __enter__(self) -> "Results":
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RequestError(f"another run is writing into {self.folder}: wait for it, or "
                             "name another --output_dir") from None  # fmt: skip
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

    def __exit__(self, *_exception: object) -> None:
        self._lines.close()
        self._errors.close()
        self._lock.release()

    def add(self, image: ImageFile, result: dict) -> None:
        """Add one line; the files that it names must exist."""
        state = _state(image.path)
        line = {"path": image.path, "name": image.name, **result, "file": state}
        self._lines.write(to_json(line) + "\n")
        self._lines.flush()
        self.done += 1

    def fail(self, image: ImageFile, reason: str) -> None:
        """Add one line to errors.csv."""
        self._failed_row([image.path, reason])
        self.failed += 1

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
        for line in read_results(file):
            path = paths.get(line["name"])
            unchanged = path is None or _state(path) == line["file"]
            if unchanged and all(_is_there(self.folder / name) for name in files_of(line)):
                kept[line["name"]] = line
        whole = "".join(to_json(line) + "\n" for line in kept.values()).encode()
        if whole != file.read_bytes():
            write_whole(file, lambda opened: opened.write(whole))
        return set(kept)


def read_results(file: Path) -> Iterator[dict]:
    """The lines of results.jsonl; the last may be incomplete if a run was killed."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula, whatever a file is called."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def files_of(result: dict) -> list[str]:
    """The files that a line names, below the output folder."""
    kinds = ("overlay", "mask_file")
    return [found[kind] for found in result["maps"] for kind in kinds if kind in found]


def _state(path: str) -> dict | None:
    """Size and time stamp, to detect changed images."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def _is_there(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
