"""Worker processes that open images and draw their maps while the model runs.

The process that opened an image also draws it, so that no image travels between processes.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from PIL import Image

from vitexplain.drawing.overlay import Overlay
from vitexplain.errors import RequestError
from vitexplain.explainer import Map
from vitexplain.images.addresses import fetched, is_address
from vitexplain.images.finding import ImageFile
from vitexplain.images.reading import PictureError, open_image, pixels_of, read_image, state_of
from vitexplain.images.region import Region
from vitexplain.parallel import begin, starting

LARGE_PIXELS = 50_000_000  # of images that are opened one at a time
LARGE_LOCK = ".large.lock"
# of images that workers keep open until they are drawn, 4 bytes each; others are opened twice
KEPT_PIXELS = 16_000_000  # by each, however many they are
KEPT_ALTOGETHER = 256_000_000  # by all of them, if they are few


@dataclass(frozen=True)
class Decoded:
    """An opened image.

    Attributes:
        seen: what the model sees of it, (H, W, 3) uint8.
        size: its own width and height.
        region: (left, top, right, bottom) of what is seen, in its pixels.
        milliseconds: how long it took.
        notice: what a user should know of the image, or "".
        state: size and time of its file when it was opened.
    """

    seen: np.ndarray
    size: tuple[int, int]
    region: Region
    milliseconds: float
    notice: str = ""
    state: dict | None = None


@dataclass(frozen=True)
class Written:
    """The files of an image's maps, kind -> path for each, and how long they took."""

    files: list[dict[str, Path]]
    milliseconds: float


class Workers:
    """`count` processes; a context manager, after which they are gone.

    Each call returns a future, which raises the errors of opening and writing. A process that is
    killed is replaced. What it had been given is tried once more, one image at a time, in a process
    apart, so that an image that kills processes is found and is the only one that fails.

    Raises:
        RequestError: from a future, if processes can't be started at all.
    """

    def __init__(self, count: int, overlay: Overlay, folder: Path):
        check_room(count)
        self._context, self._given = begin(), (overlay, folder, kept_pixels(count))
        self._pools = [self._pool() for _ in range(count)]
        self._apart: ProcessPoolExecutor | None = None
        self._retries = ThreadPoolExecutor(1)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._retries.shutdown(cancel_futures=True)
        pools = [pool for pool in (*self._pools, self._apart) if pool is not None]
        # all at the same time; without waiting, the interpreter's end can meet pipes half closed
        with ThreadPoolExecutor(len(pools)) as threads:
            for pool in pools:
                threads.submit(pool.shutdown, cancel_futures=True)

    def decode(
        self, number: int, image: ImageFile, *, large: bool = False
    ) -> Future[Decoded | None]:
        """Open image `number` of the run; None, and nothing opened, if that is larger than said."""
        return self._submit(number, "decode", number, image, large)

    def write(self, number: int, image: ImageFile, maps: Sequence[Map]) -> Future[Written]:
        """Draw and write the maps of a decoded image."""
        return self._submit(number, "write", number, image, maps)

    def _submit(self, number: int, *call: object) -> Future:
        place = number % len(self._pools)
        try:
            inner = _started(self._pools[place], *call)
        except BrokenProcessPool:
            self._pools[place] = self._pool()
            inner = _started(self._pools[place], *call)
        outer: Future = Future()
        inner.add_done_callback(partial(self._settle, outer, call))
        return outer

    def _settle(self, outer: Future, call: tuple, inner: Future) -> None:
        """Pass an answer on; where the process has gone, ask again."""
        if inner.cancelled():
            outer.cancel()
            return
        error = inner.exception()
        if isinstance(error, BrokenProcessPool):
            with suppress(RuntimeError):  # the run is being ended
                self._retries.submit(self._settle_apart, outer, call)
        elif error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())

    def _settle_apart(self, outer: Future, call: tuple) -> None:
        try:
            outer.set_result(self._ask_apart(*call))
        except BaseException as error:  # whoever waits for the answer must get one
            outer.set_exception(error)

    def _ask_apart(self, task: str, number: int, image: ImageFile, *more: object) -> object:
        if self._apart is None:
            self._apart = self._pool()
            try:
                _started(self._apart, "answer").result()
            except BrokenProcessPool:
                raise RequestError(
                    "worker processes end as soon as they start, perhaps for want of memory: try "
                    "fewer --workers"
                ) from None
        try:
            return _started(self._apart, task, number, image, *more).result()
        except BrokenProcessPool:
            self._apart = None
            doing = "opened" if task == "decode" else "drawn"
            raise PictureError(
                f"{image.path}: the process in which it was {doing} was killed, twice, probably "
                "for want of memory"
            ) from None

    def _pool(self) -> ProcessPoolExecutor:
        try:
            return ProcessPoolExecutor(1, self._context, _Worker.start, self._given)
        except OSError as error:
            raise RequestError(
                f"worker processes can't be started ({error.strerror}): they need shared memory, "
                "on Linux a /dev/shm that can be written to"
            ) from error


class SameThread:
    """In the place of `Workers`, without processes: where the model leaves no processor for them.

    Calls return futures that are done already.
    """

    def __init__(self, overlay: Overlay, folder: Path):
        cv2.setNumThreads(1)
        self._worker = _Worker(overlay, folder)

    def decode(
        self, number: int, image: ImageFile, *, large: bool = False
    ) -> Future[Decoded | None]:
        """As Workers.decode."""
        return _answered(self._worker.decode, number, image, large)

    def write(self, number: int, image: ImageFile, maps: Sequence[Map]) -> Future[Written]:
        """As Workers.write."""
        return _answered(self._worker.write, number, image, maps)


def _answered(call: Callable, *arguments: object) -> Future:
    future: Future = Future()
    try:
        future.set_result(call(*arguments))
    except Exception as error:  # as a future of another process would hold it
        future.set_exception(error)
    return future


def _started(pool: ProcessPoolExecutor, *call: object) -> Future:
    with starting():
        future = pool.submit(_Worker.call, *call)
    close_writer(pool)
    return future


def close_writer(pool: ProcessPoolExecutor) -> None:
    """Close this process's end of the pipe that the pool's worker, once started, answers through.

    With that end open, a worker that is killed in the middle of an answer leaves the pool waiting
    for the rest of it for ever; now the pipe ends, and the pool is broken, as it should be.
    """
    writer = getattr(getattr(pool, "_result_queue", None), "_writer", None)
    if writer is not None:  # an implementation detail of CPython
        writer.close()


def check_room(count: int) -> None:
    """Raise RequestError if so many workers, and the threads that serve them, can't be started.

    A thread that can't be started once the work has begun leaves a pool waiting for ever.
    """
    enough = threading.Event()
    # for each worker two threads here, and there its process, with a thread that watches this one
    threads = [threading.Thread(target=enough.wait, daemon=True) for _ in range(4 * count + 8)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        raise RequestError(
            f"{count} workers need more threads and processes than the system allows: lower "
            "--workers, end other programs, or raise the limit (ulimit -u, pids.max)"
        ) from None
    finally:
        enough.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


class _Worker:
    """The state of a worker process."""

    here: "_Worker"

    def __init__(self, overlay: Overlay, folder: Path, kept_pixels: int = KEPT_PIXELS):
        self.overlay, self.folder, self.kept_pixels = overlay, folder, kept_pixels
        self.open: dict[int, tuple[Image.Image, Region | None]] = {}

    @classmethod
    def start(cls, overlay: Overlay, folder: Path, kept_pixels: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
        cv2.setNumThreads(1)
        if hasattr(os, "nice"):
            os.nice(10)  # the model first: it is what everything waits for
        threading.Thread(target=_end_with_parent, daemon=True).start()
        cls.here = cls(overlay, folder, kept_pixels)

    @classmethod
    def call(cls, task: str, *arguments: object) -> Decoded | Written:
        return getattr(cls.here, task)(*arguments)

    def answer(self) -> None:
        """That it is there."""

    def decode(self, number: int, image: ImageFile, large: bool) -> Decoded | None:
        if not large and _pixels_of(image.path) >= LARGE_PIXELS:
            return None
        with _one_at_a_time(self.folder, large):
            decoded, canvas, region = look(self.overlay, image.path)
            kept = sum(other.width * other.height for other, _ in self.open.values())
            if kept + canvas.width * canvas.height <= self.kept_pixels:
                self.open[number] = canvas, region
            del canvas  # before another process opens one as large
        return decoded

    def write(self, number: int, image: ImageFile, maps: Sequence[Map]) -> Written:
        base = self.folder / image.name
        if number in self.open:  # what is kept open is never large
            return write_maps(self.overlay, base, *self.open.pop(number), maps)
        with _one_at_a_time(self.folder, _pixels_of(image.path) >= LARGE_PIXELS):
            _, canvas, region = look(self.overlay, image.path)
            written = write_maps(self.overlay, base, canvas, region, maps)
            del canvas
        return written


def _pixels_of(path: str) -> int:
    """0 of an image at an address, whose head would have to be fetched."""
    return 0 if is_address(path) else pixels_of(path)


@contextmanager
def _one_at_a_time(folder: Path, large: bool) -> Iterator[None]:
    """Images of many pixels are opened by one worker after the other: each takes much memory."""
    if not large:
        yield
        return
    with FileLock(folder / LARGE_LOCK):
        try:
            yield
        finally:
            _give_back_memory()


def _give_back_memory() -> None:
    """To the system, what images have freed: Linux's C library would keep it for this process."""
    with suppress(OSError, AttributeError):  # another library, or another system
        ctypes.CDLL(None).malloc_trim(0)


def look(overlay: Overlay, path: str) -> tuple[Decoded, Image.Image, Region | None]:
    """Open the image at `path`, or at an address.

    Returns:
        (Decoded, what its overlays are drawn on, and what the model sees in its pixels).

    Raises:
        vitexplain.images.reading.PictureError: it can't be opened.
    """
    started = time.perf_counter()
    state = state_of(path)
    stretch = overlay.transform.stretch
    if is_address(path):
        opened = read_image(fetched(path), path, stretch=stretch)
    elif Path(path).exists() and not Path(path).is_file():
        raise PictureError(f"{path} is no file: a folder, a pipe or a device can't be opened here")
    else:
        opened = open_image(path, stretch=stretch)
    size = opened.size
    notice = "; ".join(filter(None, (opened.info["notice"], overlay.ending(*size)[1])))
    seen = overlay.transform.seen(opened)
    canvas, covered = overlay.canvas(opened, seen)
    region = overlay.transform.region(*size)
    decoded = Decoded(np.asarray(seen), size, region, _since(started), notice, state)
    return decoded, canvas, covered


def write_maps(
    overlay: Overlay,
    base: Path,
    canvas: Image.Image,
    region: Region | None,
    maps: Sequence[Map],
) -> Written:
    """The files of an image's maps, their names beginning with `base`, see Overlay.write."""
    started = time.perf_counter()
    base.parent.mkdir(parents=True, exist_ok=True)
    files = [overlay.write(base, canvas, region, found) for found in maps]
    return Written(files, _since(started))


def kept_pixels(count: int) -> int:
    """How many pixels each of `count` workers keeps open."""
    return max(KEPT_ALTOGETHER // count, KEPT_PIXELS)


def _end_with_parent() -> None:
    """End this worker when its run is killed."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
