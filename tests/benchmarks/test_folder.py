"""How the benchmark of folders counts, what it is measured on, and what it leaves out."""

import importlib.util
import math

import numpy as np
import pytest
from PIL import Image

from benchmarks import folder
from benchmarks.folder import Done, PictureRow, make_photographs, middle_rate, picture_table


def test_grain_is_what_cameras_add(tmp_path):
    """Of its strength in brightness, none in colour; the same in every run."""
    sharp, grained, again = (tmp_path / name for name in ("sharp", "grained", "again"))
    make_photographs(sharp, 1, (320, 240))
    make_photographs(grained, 1, (320, 240), grain=6)
    make_photographs(again, 1, (320, 240), grain=6)
    assert (grained / "00000.jpg").read_bytes() == (again / "00000.jpg").read_bytes()
    one, other = (
        np.asarray(Image.open(folder / "00000.jpg").convert("YCbCr")).astype(float)
        for folder in (sharp, grained)
    )
    added = (other - one).reshape(-1, 3)
    assert 5 < added[:, 0].std() < 8
    assert added[:, 1:].std() < 3


def test_shares_are_of_opening_and_writing_alone():
    rows = [
        PictureRow("", "5 of 40x30", rate=6.0, copy_rate=8.0, mebibytes=700.4),
        PictureRow("--size 9", "5 of 40x30", rate=9.0, copy_rate=6.0, mebibytes=600.0),
    ]
    text = picture_table(rows).splitlines()
    assert "5 of 40x30" in text[0]
    assert text[-2:] == ["| none | 0.75 | 700 MiB |", "| `--size 9` | 1.50 | 600 MiB |"]


def test_the_rate_is_that_of_the_middle():
    """What comes late at the start, or waits for the last one at the end, is not counted."""
    steady = [100 + number / 4 for number in range(40)]
    assert middle_rate(steady) == pytest.approx(4)
    assert middle_rate([0.0, *steady[::-1], 500.0]) == pytest.approx(4)
    assert math.isnan(middle_rate([]))


def test_two_actors_are_compared_with_one_by_turns(tmp_path, monkeypatch):
    asked, rates = [], {"1": iter([10, 12, 11]), "2": iter([30, 19, 22])}

    def explain(images, _output, arguments):
        asked.append(arguments[-1])
        assert len(list(images.iterdir())) == 3
        return Done(1.0, 100.0 * int(arguments[-1]), next(rates[arguments[-1]]))

    monkeypatch.setattr(folder, "explain", explain)
    found = folder.scaling(folder.parser().parse_args(["--ray", "3"]), tmp_path)
    assert asked == ["2", "1", "1", "2", "2", "1"]
    assert found.rates == {1: 11, 2: 22}
    assert "| 2 | 22.0 | 2.00 | 200 MiB |" in folder.scaling_table(found)


def test_without_ray_it_is_left_out_with_a_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    arguments = ["--models", "bundled", "--small", "0", "--large", "0", "--ray", "5"]
    assert folder.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == "--ray is left out: it needs pip install -r requirements-ray.txt\n"
    assert "actors" not in captured.out
