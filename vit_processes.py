"""How worker processes are started, and how what they do comes back in order.

Imports nothing heavy, so that it can be asked for first.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
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
    forkserver.set_forkserver_preload(["vit_workers"])
    forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def in_order(
    submitted: Iterable[tuple[Given, Future | None]], ahead: int
) -> Iterator[tuple[Given, Future | None]]:
    """The same pairs in their order, `ahead` of them being worked on meanwhile."""
    waiting: deque[tuple[Given, Future | None]] = deque()
    for pair in submitted:
        waiting.append(pair)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
