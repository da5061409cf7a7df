"""What folders of photographs are measured on, and how it is told."""

import numpy as np
from PIL import Image

from benchmarks.folder import PictureRow, make_photographs, picture_table


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
