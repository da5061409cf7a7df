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


def test_lines_at_the_start_and_at_the_end(monkeypatch):
    first, last = said(monkeypatch, bar_or_lines, io.StringIO()).splitlines()
    assert re.fullmatch(r"maps: 0 of 3, 00:00 passed, \? left", first)
    assert re.fullmatch(r"maps: 3 of 3, 00:0\d passed, 00:00 left", last)


def test_a_line_every_so_often(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in bar_or_lines(range(40), "maps"):
        time.sleep(0.01)
    lines = sys.stderr.getvalue().splitlines()
    assert 4 <= len(lines) <= 11
    assert [int(line.split()[1]) for line in lines] == sorted(
        int(line.split()[1]) for line in lines
    )


def test_the_first_line_comes_before_the_first_item(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    next(iter(bar_or_lines(iter([1]), "maps")))
    assert sys.stderr.getvalue().startswith("maps: 0 of ?")


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
