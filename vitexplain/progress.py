"""How far long work has come, on standard error: a bar on a terminal, elsewhere lines."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Watch = Callable[[Iterable[Item], str], Iterable[Item]]  # items, title -> the same items

FIRST, SECONDS = 1, 10  # until the first line, and from one to the next


class Bar(tqdm):
    """A bar without a thread of its own, which can be one too many."""

    monitor_interval = 0


def bar(items: Iterable[Item], title: str) -> Iterable[Item]:
    """The same items; a bar shows how many have passed, where standard error is a terminal."""
    return Bar(items, title, leave=False) if on_terminal() else items


def bar_or_lines(items: Iterable[Item], title: str) -> Iterable[Item]:
    """The same items, with a bar; where there is no terminal, with a line now and then."""
    if not _writable():
        return items
    return bar(items, title) if on_terminal() else _with_lines(items, title)


def _with_lines(items: Iterable[Item], title: str) -> Iterator[Item]:
    """None in the first second: what fails at once says nothing else."""
    total = len(items) if isinstance(items, Sized) else None
    started, wait = time.monotonic(), FIRST
    for done, item in enumerate(items, start=1):
        yield item
        passed = time.monotonic() - started
        if passed < wait and not (wait > FIRST and done == total):
            continue
        wait = passed + SECONDS
        left = "?" if total is None else _time(passed / done * (total - done))
        line = f"{title}: {done} of {total or '?'}, {_time(passed)} passed, {left} left"
        print(line, file=sys.stderr, flush=True)


_time = tqdm.format_interval


def silent(items: Iterable[Item], _title: str) -> Iterable[Item]:
    """The same items, and nothing said."""
    return items


class Wishes(Protocol):
    """What settings.RunOptions says of progress."""

    quiet: bool
    lines: bool


def watch_of(run: Wishes) -> Watch:
    """Nothing if quiet; without a terminal lines, if these are wanted."""
    if run.quiet:
        return silent
    return bar_or_lines if run.lines else bar


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return _writable() and sys.stderr.isatty()


def _writable() -> bool:
    """Whether there is a standard error: it can be missing (pythonw) or closed (cron)."""
    return sys.stderr is not None and not sys.stderr.closed
