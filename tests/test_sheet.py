import numpy as np
import pytest
from PIL import Image

from vit_sheet import GAP, draw_sheet


def test_every_picture_is_in_its_place_and_keeps_its_proportions():
    colours = ["red", "lime", "blue"]
    cells = [(c, Image.new("RGB", (400, 200), c)) for c in colours]
    sheet = draw_sheet([cells[:2], cells[2:]], cell=100)
    pixels = np.asarray(sheet)
    assert pixels.shape[1] == GAP + 2 * (100 + GAP)
    for index, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (50, 100)
        assert columns.min() == GAP + (index % 2) * (100 + GAP)
        assert (rows.min() > sheet.height / 2) == (index == 2)


def test_captions_are_drawn_above_and_stay_in_their_cell():
    white = Image.new("RGB", (100, 100), "white")
    caption = "a very long caption with an Unbreakablyveryverylongword and words " * 3
    pixels = np.asarray(draw_sheet([[(caption, white), ("", white)]], cell=100).convert("L"))
    rows, columns = np.nonzero(pixels < 128)
    assert len(rows) > 50
    assert columns.max() <= GAP + 100
    assert rows.max() < pixels.shape[0] - 100 - GAP


def test_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        draw_sheet([])
