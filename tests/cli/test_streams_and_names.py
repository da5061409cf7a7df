"""Odd names of files, and standard streams that are not a terminal's."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT, run_here
from vitexplain.cli.main import main
from vitexplain.errors import one_line, printable
from vitexplain.images.writing import LONGEST, short_stem
from vitexplain.words import to_json

CAT = ROOT / "examples" / "cat.jpg"
BUNDLED = ("--model", "bundled", "--workers", "1")


class NotebookStream:
    """As Jupyter's: no reconfigure, no number."""

    def __init__(self):
        self.text = io.StringIO()

    def write(self, text):
        return self.text.write(text)

    def flush(self):
        pass


@pytest.mark.parametrize("kind", [NotebookStream, lambda: None])
def test_streams_of_notebooks_and_missing_ones(kind, tmp_path, monkeypatch):
    streams = kind(), kind()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    code = main(["--image_path", str(CAT), "--model", "bundled", "--output_dir", str(tmp_path)])
    wrong = main(["--image_path", "no_such.png", "--model", "bundled"])
    assert (sys.stdout, sys.stderr) == streams
    monkeypatch.undo()
    assert (code, wrong) == (0, 2)
    assert len(list(tmp_path.iterdir())) == 2
    if streams[0] is not None:
        assert "Most likely categories" in streams[0].text.getvalue()
        assert "no_such.png" in streams[1].text.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="descriptors are closed by a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_descriptors(closed, tmp_path):
    command = f"{sys.executable} {ROOT / 'vit_explain.py'} --image_path {CAT} --model bundled"
    done = subprocess.run(f"{command} --output_dir out {closed}", shell=True, cwd=tmp_path)
    assert done.returncode == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


NAMES = (
    "bad\udcff.jpg",
    "猫" * 80 + ".jpg",
    "เหมียว.jpg",
    "a\x1b[31mred\nline.jpg",
    "=HYPERLINK(\"http:evil\",\"x\").jpg",
    "a cat, " * 30 + "end.jpg",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_any_name_goes_through_a_whole_run(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.open(CAT).resize((80, 60)).save(tmp_path / "small.jpg")
    for name in NAMES:
        try:
            (folder / name).write_bytes((tmp_path / "small.jpg").read_bytes())
        except OSError:  # longer than this file system takes
            continue
    count = len(list(folder.iterdir()))
    (folder / "=1+1.png").write_bytes(b"broken")
    done = run_here(
        "--image_path", "in", *BUNDLED, "--report", "--contact_sheet", "png", "--output_dir",
        "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").open()]
    assert len(records) == count
    for record in records:
        for found in record["maps"]:
            path = tmp_path / "out" / found["overlay"]
            assert path.is_file()
            assert len(os.fsencode(path.name)) <= 255
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    with (tmp_path / "out" / "errors.csv").open(newline="", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert all(cell[:1] not in "=+-@" for row in rows for cell in row if cell)


@pytest.mark.parametrize("first", "=+-@\t\r")
def test_a_cell_is_no_formula(first, tmp_path):
    from vitexplain.runs.results import _harmless

    assert _harmless(f"{first}cmd") == f"'{first}cmd"
    assert _harmless("a=b") == "a=b"


def test_long_names_are_cut_and_stay_apart():
    long = "猫" * 100
    found = {short_stem(long + end) for end in "abc"}
    assert len(found) == 3
    for name in found:
        assert len(name.encode()) <= LONGEST
        assert name.startswith("猫" * 50)
    assert short_stem("a" * LONGEST) == "a" * LONGEST
    assert short_stem(long) == short_stem(long)
    assert len(os.fsencode(short_stem("\udcff" * 300))) <= LONGEST


def test_terminals_are_told_no_commands():
    assert printable("a\x1b[2Jb\r\n\u202e\udcff é猫") == "a\\x1b[2Jb\\r\\n\\u202e\\udcff é猫"
    assert one_line("a\x07\nb") == "a\\x07 b"


def test_json_holds_no_nan():
    value = {"a": float("nan"), "b": [np.float64("inf"), 1.5], "c": ({"d": float("-inf")},)}
    assert json.loads(to_json(value)) == {"a": None, "b": [None, 1.5], "c": [{"d": None}]}
