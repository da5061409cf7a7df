"""Find the images that a request names: files, folders, globs and lists."""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from vitexplain.errors import RequestError
from vitexplain.images.formats import OTHERS, opened_formats, suffix_of, why_not_opened


@dataclass(frozen=True)
class ImageFile:
    """An image to explain.

    Attributes:
        path: where it is.
        name: its path below the folder that all requested images share, with "/"; outputs are
            named after it, so that no two share one.
    """

    path: str
    name: str


def is_one_image(requests: Sequence[str]) -> bool:
    """Whether the request is one path that is meant to be a single image."""
    return len(requests) == 1 and not (
        requests[0].startswith("@") or Path(requests[0]).is_dir() or _is_pattern(requests[0])
    )


def find_images(
    requests: Sequence[str], recursive: bool, leave_out: Path
) -> tuple[list[ImageFile], list[str]]:
    """All requested images, each once, and notices about the request.

    In folders and among the matches of globs, files that aren't images and hidden files are
    skipped. A file that is named explicitly always counts: if it can't be opened, that is an error
    of that image.

    Args:
        requests: paths of images or folders, globs, and "@list.txt" with one path per line.
        recursive: also folders in folders.
        leave_out: the output folder, whose images are not input.

    Raises:
        RequestError: if a list can't be read, nothing is found, or the output folder is one of the
            folders to explain: the next run would take its images for input.
    """
    found: dict[str, str] = {}  # absolute path -> path as it was given
    anchors: list[str] = []
    notices: list[str] = []
    passed: Counter[str] = Counter()
    for path in _listed(requests):
        if Path(path).is_dir():
            anchors.append(path)
            files = _of_folder(path, recursive, leave_out, notices, passed)
        elif _is_pattern(path):
            anchors.append(_fixed_part(path))
            files = _of_pattern(path, recursive, leave_out, notices, passed)
        else:
            anchors.append(os.path.dirname(path) or ".")
            files = iter([path])
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    notices += _passed_over(passed)
    if not found:
        hint = f"; {notices[-1]}" if passed else _hint(recursive)
        raise RequestError(f"no image found in {', '.join(requests)}{hint}")
    base = _common([os.path.abspath(anchor) for anchor in anchors])
    return [ImageFile(path, _name(absolute, base)) for absolute, path in found.items()], notices


def _hint(recursive: bool) -> str:
    return "" if recursive else " (--recursive looks into folders in folders)"


def _listed(requests: Sequence[str]) -> Iterator[str]:
    """The paths themselves, and those in "@list.txt"."""
    for request in requests:
        if not request.startswith("@"):
            yield request
            continue
        try:
            # names of files need not be valid Unicode
            text = Path(request[1:]).read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise RequestError(f"the list {request[1:]} can't be read: {error.strerror}") from None
        yield from (line for line in text.splitlines() if line.strip())


def _of_folder(
    folder: str, recursive: bool, leave_out: Path, notices: list[str], passed: Counter[str]
) -> Iterator[str]:
    if _same(folder, leave_out):
        raise RequestError(f"the results can't be written among the images of {folder}: "
                         "name another --output_dir")  # fmt: skip

    def unreadable(error: OSError) -> None:
        notices.append(f"{error.filename} can't be looked into: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        kept = [name for name in folders if not _hidden(name)] if recursive else []
        folders[:] = sorted(name for name in kept if not _same(f"{parent}/{name}", leave_out))
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not _hidden(name) and _is_image(path, passed):
                yield path


def _of_pattern(
    pattern: str, recursive: bool, leave_out: Path, notices: list[str], passed: Counter[str]
) -> Iterator[str]:
    outputs = f"{os.path.abspath(leave_out)}{os.sep}"
    for path in sorted(glob.glob(pattern, recursive=True)):
        if Path(path).is_dir():
            if recursive:
                yield from _of_folder(path, recursive, leave_out, notices, passed)
        elif not os.path.abspath(path).startswith(outputs) and _is_image(path, passed):
            yield path


def _is_pattern(path: str) -> bool:
    """Whether a path is a glob; the name of an existing file is not."""
    return glob.has_magic(path) and not Path(path).exists()


def _fixed_part(pattern: str) -> str:
    """The folder that all matches of a glob are in, from the pattern alone."""
    parts = Path(pattern).parts
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[:first])) if first else "."


def _is_image(path: str, passed: Counter[str]) -> bool:
    """Judged by its suffix; a file with another suffix is opened. What isn't one is counted."""
    suffix = suffix_of(path)
    if why_not_opened(path):
        passed[suffix] += 1
        return False
    if not os.path.isfile(path):  # a pipe would be waited for
        return False
    formats = opened_formats()
    format_ = Image.registered_extensions().get(suffix)
    if format_ in Image.OPEN:
        return format_ in formats
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats):
                return True
    except Exception:  # whatever the decoders raise: then it is no image
        return False


def _passed_over(passed: Counter[str]) -> list[str]:
    """A notice on the files of formats that are not opened."""
    if not passed:
        return []
    counts = [f"{count} {suffix} ({OTHERS[suffix]})" for suffix, count in sorted(passed.items())]
    return [f"passed over: {', '.join(counts)}"]


def _hidden(name: str) -> bool:
    return name.startswith(".")  # also what macOS leaves beside each image, "._a.jpg"


def _same(folder: str, other: Path) -> bool:
    return os.path.realpath(folder) == os.path.realpath(other)


def _common(folders: Sequence[str]) -> str | None:
    try:
        return os.path.commonpath(folders)
    except ValueError:  # on several drives of Windows
        return None


def _name(path: str, base: str | None) -> str:
    if base is None:
        drive, rest = os.path.splitdrive(path)
        return PurePath(drive.strip(":\\/") + rest).as_posix()
    return PurePath(os.path.relpath(path, base)).as_posix()
