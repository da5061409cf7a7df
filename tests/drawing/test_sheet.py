import unicodedata

import numpy as np
import pytest
from PIL import Image

from vitexplain.drawing import sheet
from vitexplain.drawing.fonts import font_with
from vitexplain.drawing.panels import font_of
from vitexplain.drawing.sheet import (
    GAP,
    draw_sheet,
    drawable,
    lettering,
    line_height,
    sheet_size,
    with_answers,
)


def test_every_image_is_in_its_place_and_keeps_its_proportions():
    colours = ["red", "lime", "blue"]
    cells = [(c, Image.new("RGB", (400, 200), c)) for c in colours]
    drawn = draw_sheet([cells[:2], cells[2:]], cell=100)
    pixels = np.asarray(drawn)
    assert pixels.shape[1] == GAP + 2 * (100 + GAP)
    for index, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (50, 100)
        assert columns.min() == GAP + (index % 2) * (100 + GAP)
        assert (rows.min() > drawn.height / 2) == (index == 2)


def test_captions_are_drawn_above_and_stay_in_their_cell():
    white = Image.new("RGB", (100, 100), "white")
    caption = "a very long caption with an Unbreakablyveryverylongword and words " * 3
    pixels = np.asarray(draw_sheet([[(caption, white), ("", white)]], cell=100).convert("L"))
    rows, columns = np.nonzero(pixels < 128)
    assert len(rows) > 50
    assert columns.max() <= GAP + 100
    assert rows.max() < pixels.shape[0] - 100 - GAP


def test_cells_need_not_be_square_and_may_be_empty():
    red = Image.new("RGB", (300, 100), "red")
    drawn = draw_sheet([[("", None), ("", red)], [("", red)]], cell=(90, 30), lines=1)
    assert (
        drawn.size == sheet_size(2, 2, (90, 30), 1) == (8 + 2 * 98, 8 + 2 * (38 + line_height(90)))
    )
    rows, columns = np.nonzero((np.asarray(drawn) == (255, 0, 0)).all(axis=2))
    first = rows < drawn.height // 2
    for these, left in ((first, GAP + 98), (~first, GAP)):
        assert (columns[these].min(), np.ptp(columns[these]) + 1) == (left, 90)
        assert np.ptp(rows[these]) + 1 == 30


def test_a_long_name_is_broken_before_it_is_cut():
    white = Image.new("RGB", (100, 100), "white")

    def inked(caption):
        pixels = np.asarray(draw_sheet([[(caption, white)]], cell=100).convert("L"))
        return [
            (pixels[start : start + line_height(100)] < 128).sum()
            for start in (8, 8 + line_height(100))
        ]

    short, broken, cut = inked("x" * 10), inked("x" * 30), inked("x" * 300)
    assert short[0] == 0 < short[1]  # right above the image
    assert broken[0] == cut[0] > short[1]
    assert 0 < broken[1] < cut[1]


def test_what_is_cut_ends_in_an_ellipsis():
    cut = draw_sheet([[("a\nb", None)]], cell=100, lines=1)
    assert cut.tobytes() == draw_sheet([[("a…", None)]], cell=100, lines=1).tobytes()


def test_a_caption_has_lines_of_its_own():
    pixels = np.asarray(draw_sheet([[("a\nb", None)]], cell=100).convert("L"))
    lines = [
        (pixels[top : top + line_height(100)] < 128).sum() for top in (8, 8 + line_height(100))
    ]
    assert all(lines)


@pytest.mark.parametrize(
    ("caption", "expected"),
    {
        "plain ~ text…": "plain ~ text…",
        "a\tb\nc": "a b\nc",
        "déjà vu": "deja vu",
        unicodedata.normalize("NFD", "déjà vu"): "deja vu",
        "猫.png": "\\u732b.png",
        "🐱": "\\U0001f431",
        "a\udcffb": "a\\udcffb",
        "\u202egnp.\u05d0": "\\u202egnp.\\u05d0",
        "\x1b[0m\x00": "\\x1b[0m\\x00",
        "": "",
    }.items(),
)
def test_any_name_can_be_drawn(caption, expected, monkeypatch):
    monkeypatch.setattr(sheet, "font_with", lambda *_: None)  # a machine without other fonts
    assert drawable(caption) == expected
    plain = draw_sheet([[(expected, None)]])
    assert draw_sheet([[(caption, None)]]).tobytes() == plain.tobytes()


def test_other_letters_are_drawn_where_a_font_has_them():
    """Greek and Cyrillic are in the font that matplotlib brings; a right-to-left mark never is."""
    font, text = lettering("κόσμε привет", font_of(20))
    assert text == "κόσμε привет"
    assert len({font.getmask(letter).getbbox() for letter in "κπ"}) == 2
    assert bytes(font.getmask("κ")) != bytes(font.getmask("\uffff"))
    _, text = lettering("κ\u202egnp", font_of(20))
    assert text == "κ\\u202egnp"
    drawn = draw_sheet([[("猫", None)]]).tobytes()
    assert (drawn == draw_sheet([[("\\u732b", None)]]).tobytes()) == (
        font_with(frozenset("猫"), 14) is None
    )


def test_answers_stand_below_in_one_column_whatever_their_length():
    sheet = Image.new("RGB", (400, 50), "lime")
    answers = [("a question", "no"), ("a longer question", "a long answer " * 30), ("?", "猫")]
    drawn = np.asarray(with_answers(sheet, answers))
    assert (drawn[:50] == (0, 255, 0)).all() and drawn.shape[1] == 400
    line = line_height(224)
    assert drawn.shape[0] == 50 + 4 * line + GAP  # the second one has two lines, and an ellipsis
    dark = (drawn[50:] < 100).all(axis=2)
    start = np.nonzero((drawn[50:] == 0).all(axis=2).any(axis=0))[0].min()
    starts = []
    for place in range(4):
        columns = np.nonzero(dark[place * line : (place + 1) * line].any(axis=0))[0]
        assert columns.max() < 400 - GAP
        starts.append(columns[columns >= start].min())
        asked = columns[columns < start - GAP]
        assert bool(len(asked)) == (place != 2)  # a question is not repeated beside the second line
    assert max(starts) - min(starts) <= 2
    assert with_answers(sheet, []).tobytes() == sheet.tobytes()


def test_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        draw_sheet([])
