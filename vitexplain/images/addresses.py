"""Images at addresses that pyarrow reads, such as s3://bucket/folder, for runs on a cluster."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import Image

from vitexplain.errors import MissingPackage, RequestError, one_line
from vitexplain.images.finding import ImageFile
from vitexplain.images.reading import PictureError

SEPARATOR = "://"


def is_address(path: str) -> bool:
    """Whether it names something at an address, not a file here."""
    return SEPARATOR in path and not Path(path).exists()


def find_addresses(requests: Sequence[str], recursive: bool) -> list[ImageFile]:
    """All images at these addresses, each once; see images.finding.find_images.

    Of a folder, files are told by their suffix, as opening each would mean fetching it.

    Args:
        requests: addresses of images or folders.
        recursive: also folders in folders.

    Raises:
        RequestError: if an address can't be read, or nothing is found.
    """
    found: dict[str, str] = {}  # address -> the folder that its name begins below
    for request in requests:
        for address, base in _listed(request, recursive):
            found.setdefault(address, base)
    if not found:
        hint = "" if recursive else " (--recursive looks into folders in folders)"
        raise RequestError(f"no image found in {', '.join(requests)}{hint}")
    one = len(set(found.values())) == 1
    return [ImageFile(a, _name(a, base if one else "")) for a, base in found.items()]


def fetched(address: str) -> BinaryIO:
    """What is at an address, in memory.

    Raises:
        PictureError: if it can't be read.
    """
    try:
        filesystem, path = _opened(address)
        with filesystem.open_input_stream(path) as stream:
            return io.BytesIO(stream.read())
    except FileNotFoundError:
        raise PictureError(f"no image at {address}: no such file") from None
    except (OSError, RequestError) as error:
        raise PictureError(f"{address} can't be read: {one_line(error)}") from None


def _opened(address: str):
    """(pyarrow's file system, path in it)."""
    try:
        from pyarrow import ArrowInvalid, fs
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{address} needs pyarrow ({error}): pip install -r requirements-ray.txt"
        ) from error
    try:
        return fs.FileSystem.from_uri(address)
    except (ArrowInvalid, OSError) as error:
        raise RequestError(f"{address} can't be read: {one_line(error)}") from None


def _listed(request: str, recursive: bool) -> Iterator[tuple[str, str]]:
    """(address, the path of the folder above it) of each image."""
    filesystem, path = _opened(request)
    from pyarrow.fs import FileSelector, FileType

    try:
        about = filesystem.get_file_info(path)
        if about.type != FileType.Directory:  # a missing one is an error of that image
            yield request, str(PurePosixPath(path).parent)
            return
        files = filesystem.get_file_info(FileSelector(path, recursive=recursive))
    except OSError as error:
        raise RequestError(f"{request} can't be read: {one_line(error)}") from None
    head = (
        request[: request.index(path)] if path in request else f"{request.split(SEPARATOR)[0]}://"
    )
    _, question, options = request.partition("?")  # such as the region of a bucket
    suffixes = {s for s, name in Image.registered_extensions().items() if name in Image.OPEN}
    for file in sorted(files, key=lambda file: file.path):
        below = PurePosixPath(file.path).relative_to(path)
        hidden = any(part.startswith(".") for part in below.parts)
        if file.type == FileType.File and not hidden and below.suffix.lower() in suffixes:
            yield f"{head}{file.path}{question}{options}", path


def _name(address: str, base: str) -> str:
    """The path below the folder that all share, or below the root."""
    path = address.partition("?")[0].partition(SEPARATOR)[2]
    return path[path.index(base) + len(base) :].lstrip("/") if base in path else path.lstrip("/")
