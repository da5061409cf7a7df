"""Start worker processes, and yield their results in order.

Imports nothing heavy, so that it can be imported first.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TypeVar

Given = TypeVar("Given")

HAS_SERVER = "forkserver" in multiprocessing.get_all_start_methods()


def begin() -> BaseContext:
    """The context to start workers in; torch and timm begin to load for them in the background.

    Never a fork of this process: it runs torch's threads, and perhaps CUDA.
    """
    if not HAS_SERVER:
        return multiprocessing.get_context("spawn")
    # they take seconds to import: once for all workers
    modules = ["vitexplain.runs.workers"]
    if threading.current_thread() is threading.main_thread():  # it ends with the *thread* that asks
        modules.insert(0, "vitexplain._with_parent")
    forkserver.set_forkserver_preload(modules)
    with _found_here(), starting():
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def python_path() -> str:
    """PYTHONPATH with the folder of this package, for processes that may run anywhere."""
    here, before = str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")
    return os.pathsep.join([here, before] if before else [here])


@contextmanager
def starting() -> Iterator[None]:
    """Processes started inside leave Ctrl-C to this one, and don't run its main module again.

    A worker needs nothing of the script that asked for it, and a script without
    `if __name__ == "__main__"` would ask again. A signal's mask is inherited, also by a process
    that is still importing and can't ignore signals yet.
    """
    if HAS_SERVER:
        resource_tracker.ensure_running()  # it would let the signal through again
    main = sys.modules["__main__"]
    hidden = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    masked = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masked else None
    try:
        yield
    finally:
        vars(main).update(hidden)
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _found_here() -> Iterator[None]:
    """Processes started inside find this package from any folder.

    In Python 3.11 the server does not inherit sys.path. It silently skips modules that it can't
    import, and each worker then imports them for itself.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = python_path()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def in_order(
    submitted: Iterable[tuple[Given, Future | None]], ahead: int, *, prompt: bool = False
) -> Iterator[tuple[Given, Future | None]]:
    """Yield the pairs in order, while up to `ahead` of them are being worked on.

    Args:
        prompt: yield finished results immediately; otherwise keep the queue full.
    """
    waiting: deque[tuple[Given, Future | None]] = deque()
    for pair in submitted:
        waiting.append(pair)
        while len(waiting) > ahead or (prompt and waiting and _is_done(waiting[0][1])):
            yield waiting.popleft()
    yield from waiting


def _is_done(future: Future | None) -> bool:
    return future is None or future.done()
