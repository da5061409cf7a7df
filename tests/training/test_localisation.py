import numpy as np
import pytest
from PIL import Image

from vitexplain.training.localisation import (
    cell_share,
    groups,
    heat_of,
    in_box,
    mosaic,
    read_boxes,
    spread,
)


def spot(row, column, shape=(4, 8)):
    mask = np.full(shape, 0.2, dtype=np.float32)
    mask[row, column] = 1
    return mask


def test_boxes_file():
    text = "file,imagenet_index,x0,y0,x1,y1\n0573/val_0.JPEG,573,0,32,44,62\n"
    assert read_boxes(text) == {"0573/val_0.JPEG": (0, 32, 44, 62)}


def test_in_box():
    """Patch (1, 6) of 4 x 8 over 80 x 40 pixels lies at x 60 to 70, y 10 to 20."""
    assert in_box(spot(1, 6), (60, 10, 70, 20), 80, 40) == (True, pytest.approx(1.0))
    assert in_box(spot(1, 6), (0, 0, 59, 40), 80, 40) == (False, pytest.approx(0.0))
    # half of the patch, without its centre
    assert in_box(spot(1, 6), (65.1, 10, 80, 20), 80, 40) == (False, pytest.approx(0.49))


def test_even_map_scores_the_area():
    even = np.ones((4, 8), dtype=np.float32)
    assert in_box(even, (0, 0, 20, 40), 80, 40)[1] == pytest.approx(0.25)
    assert [cell_share(even, i, 4) for i in range(4)] == pytest.approx([0.25] * 4)
    assert heat_of(even).sum() == pytest.approx(1)


def test_cell_share():
    for index, (row, column) in enumerate([(0, 0), (0, 7), (3, 0), (3, 7)]):
        shares = [cell_share(spot(row, column), i, 4) for i in range(4)]
        assert shares == pytest.approx([float(i == index) for i in range(4)])
        halves = [cell_share(spot(row, column), i, 2) for i in range(2)]
        assert halves == pytest.approx([float(i == index % 2) for i in range(2)])
    # an odd grid: the middle column belongs to both halves
    assert cell_share(spot(0, 2, (3, 5)), 0, 2) == pytest.approx(0.5)


def test_mosaic_has_each_image_in_its_cell():
    colours = ["red", "lime", "blue", "white"]
    images = [Image.new("RGB", (9, 5), colour) for colour in colours]
    four = mosaic(images, 224)
    places = [(50, 50), (170, 50), (50, 170), (170, 170)]
    assert [four.getpixel(p) for p in places] == [p.getpixel((0, 0)) for p in images]
    two = mosaic(images[:2], 224)
    assert two.getpixel((50, 170)) == (255, 0, 0)
    assert two.getpixel((170, 20)) == (0, 255, 0)


def test_groups_are_of_different_categories_and_repeatable():
    labels = [0, 0, 0, 1, 1, 2, 3]
    found = groups(labels, 4, 20, seed=3)
    assert len(found) == 20
    assert all(len({labels[i] for i in group}) == 4 for group in found)
    assert found == groups(labels, 4, 20, seed=3)
    assert groups([0, 0, 1], 4, 20, seed=3) == []


def test_spread_is_even():
    assert spread(list("abcde"), 5) == spread(list("abcde"), 9) == list("abcde")
    found = spread(range(299), 200)
    assert len(found) == 200 and found[0] == 0 and found[-1] >= 297
    assert set(np.diff(found)) == {1, 2}
    assert spread([], 3) == []
