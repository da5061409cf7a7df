"""How far long work has come, on standard error: a bar on a terminal, elsewhere lines."""

import sys
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Watch = Callable[[Iterable[Item], str], Iterable[Item]]  # items, title -> the same items

SECONDS = 10  # from one line to the next
LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} passed, {remaining} left"


class Bar(tqdm):
    """A bar without a thread of its own, which can be one too many."""

    monitor_interval = 0


def bar(items: Iterable[Item], title: str) -> Iterable[Item]:
    """The same items; a bar shows how many have passed, where standard error is a terminal."""
    return Bar(items, title, leave=False) if on_terminal() else items


def bar_or_lines(items: Iterable[Item], title: str) -> Iterable[Item]:
    """The same items, with a bar; where there is no terminal, with a line every SECONDS."""
    if not _writable():
        return items
    if on_terminal():
        return bar(items, title)
    return Bar(items, title, file=_Lines(), mininterval=SECONDS, miniters=1, bar_format=LINE)


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


class _Lines:
    """A stream for tqdm, which begins each of its texts at the start of the same line."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass
