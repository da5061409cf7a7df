"""What long work says of itself, on a terminal and where there is none."""

import io
import re
import sys
import time

import pytest

from vitexplain import progress
from vitexplain.progress import bar, bar_or_lines, silent, watch_of
from vitexplain.settings import RunOptions


class Terminal(io.StringIO):
    def isatty(self):
        return True


def said(monkeypatch, watch, stream, count=3):
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(watch(range(count), "maps")) == list(range(count))
    return stream.getvalue()


def slowly(monkeypatch, count, first, seconds):
    monkeypatch.setattr(progress, "FIRST", first)
    monkeypatch.setattr(progress, "SECONDS", seconds)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in bar_or_lines(range(count), "maps"):
        time.sleep(0.01)
    return sys.stderr.getvalue().splitlines()


def test_a_line_now_and_then_and_at_the_end(monkeypatch):
    lines = slowly(monkeypatch, 40, 0.02, 0.05)
    done = [int(re.fullmatch(r"maps: (\d+) of 40, 00:00 passed, 00:00 left", line)[1])
            for line in lines]  # fmt: skip
    assert 4 <= len(done) <= 11
    assert done == sorted(done) and done[0] <= 3 and done[-1] == 40


def test_the_time_that_is_left(monkeypatch):
    clock = iter([0.0, 30.0, 60.0, 90.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    list(bar_or_lines(range(4), "maps"))
    first, *_, last = sys.stderr.getvalue().splitlines()
    assert first == "maps: 1 of 4, 00:30 passed, 01:30 left"
    assert last == "maps: 4 of 4, 02:00 passed, 00:00 left"


def test_what_is_done_at_once_or_fails_at_once_says_nothing(monkeypatch):
    assert said(monkeypatch, bar_or_lines, io.StringIO()) == ""


def test_a_number_of_items_that_is_not_known(monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    list(bar_or_lines(iter([1]), "maps"))
    assert sys.stderr.getvalue() == "maps: 1 of ?, 00:00 passed, ? left\n"


def test_a_bar_on_a_terminal(monkeypatch):
    for watch in (bar, bar_or_lines):
        assert "\r" in said(monkeypatch, watch, Terminal())


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_no_bar_elsewhere(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(bar(range(3), "maps")) == [0, 1, 2]
    assert stream is None or stream.getvalue() == ""


@pytest.mark.parametrize("closed", [True, False])
def test_where_there_is_no_standard_error(monkeypatch, capsys, closed):
    """As under pythonw, or where cron has closed it."""
    stream = io.StringIO() if closed else None
    if closed:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(bar_or_lines(range(3), "maps")) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_what_was_asked_for():
    assert watch_of(RunOptions(quiet=True, lines=True)) is silent
    assert watch_of(RunOptions(lines=True)) is bar_or_lines
    assert watch_of(RunOptions()) is bar
