import cv2
import numpy as np
import pytest
from PIL import Image

from vitexplain.drawing.heatmap import COLORMAPS, check_style, draw_overlay, stretch


def grey(width=80, height=40):
    return Image.new("RGB", (width, height), (128, 128, 128))


def redness(overlay):
    pixels = np.asarray(overlay).astype(int)
    return pixels[:, :, 0] - pixels[:, :, 2]


def test_the_bright_patch_is_where_it_belongs():
    """Row 0, column 6 of a 4 x 8 grid over 80 x 40 pixels: x 60 to 70, y 0 to 10; red on top."""
    mask = np.zeros((4, 8), dtype=np.float32)
    mask[0, 6] = 1
    red = redness(draw_overlay(grey(), mask, alpha=1, colormap="jet"))
    assert np.unravel_index(red.argmax(), red.shape)[1] in range(60, 70)
    assert red[2, 65] > 100
    assert red[30, 20] < -100


def test_blend_is_exact():
    mask = np.array([[0.0, 1.0]], dtype=np.float32).repeat(40, 1).repeat(40, 0)
    overlay = np.asarray(draw_overlay(grey(), mask, alpha=0.25, colormap="viridis"))
    ends = cv2.applyColorMap(np.uint8([[0, 255]]), cv2.COLORMAP_VIRIDIS)[0, :, ::-1]
    for x, end in [(2, ends[0]), (77, ends[1])]:
        assert np.abs(overlay[20, x] - (0.75 * 128 + 0.25 * end)).max() <= 1


def test_alpha_0_is_the_image_and_1_hides_it():
    mask = np.random.default_rng(0).random((4, 4), dtype=np.float32)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (9, 9, 3), dtype=np.uint8))
    assert draw_overlay(noise, mask, alpha=0).tobytes() == noise.tobytes()
    black = Image.new("RGB", (9, 9))
    one, other = (draw_overlay(p, mask, alpha=1).tobytes() for p in (noise, black))
    assert one == other


def test_colours_are_stretched_but_not_by_the_caller():
    """0.979 to 1.0 looks like 0 to 1."""
    mask = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    narrow = 0.979 + 0.021 * mask
    difference = np.subtract(
        np.asarray(draw_overlay(grey(), narrow), int), np.asarray(draw_overlay(grey(), mask), int)
    )
    assert np.abs(difference).max() <= 3
    assert stretch(narrow).min() == 0
    assert stretch(narrow).max() == 1


def test_a_constant_mask_stands_out_nowhere():
    assert not stretch(np.ones((3, 3))).any()


def test_region_is_heated_and_the_rest_darkened():
    mask = np.ones((2, 2), dtype=np.float32)
    mask[0, 0] = 0
    overlay = np.asarray(draw_overlay(grey(), mask, region=(20, 10, 60, 40), alpha=1))
    assert (overlay[:10] == overlay[0, 0]).all()
    assert overlay[0, 0].tolist() == [45, 45, 45]
    assert overlay[10, 30].tolist() == [255, 255, 255]
    inside = draw_overlay(Image.new("RGB", (40, 30), (128, 128, 128)), mask, alpha=1)
    assert np.array_equal(overlay[11:39, 21:59], np.asarray(inside)[1:29, 1:39])


@pytest.mark.parametrize("region", [(-20, -10, 100, 50), (79.6, 0, 80, 40), (10.2, 5, 10.3, 5.1)])
def test_odd_regions_still_draw(region):
    assert draw_overlay(grey(), np.eye(3, dtype=np.float32), region).size == (80, 40)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (500, 2)])
def test_any_size(size):
    assert draw_overlay(grey(*size), np.eye(3, dtype=np.float32)).size == size


def test_every_colormap_draws():
    assert {"jet", "turbo", "viridis", "inferno"} <= set(COLORMAPS)
    drawn = {draw_overlay(grey(), np.eye(3), colormap=name).tobytes() for name in COLORMAPS}
    assert len(drawn) > 15


def test_wrong_style():
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha must be from 0 to 1"):
            check_style(alpha, "jet")
    with pytest.raises(ValueError, match="colormap must be one of autumn"):
        check_style(0.5, "rainbows")


def test_what_lies_on_padding_is_left_out():
    """A 4 x 4 grid over a 40 x 20 image padded to 40 x 40: its rows 1 and 2 are the image."""
    mask = np.zeros((4, 4), dtype=np.float32)
    mask[0] = 9  # on padding
    mask[2, 3] = 1
    overlay = draw_overlay(grey(40, 20), mask, (0, -10, 40, 30), alpha=1, colormap="jet")
    red = redness(overlay)
    assert overlay.size == (40, 20)
    assert red[15, 35] > 100  # as bright as can be, whatever is on the padding
    assert red[15, 5] < -100
    assert red[3, 35] < -100


def test_regions_beyond_an_oblong_image_need_little_memory():
    mask = np.random.default_rng(0).random((14, 14), dtype=np.float32)
    overlay = draw_overlay(grey(9000, 3), mask, (0, -4498.5, 9000, 4501.5))
    assert overlay.size == (9000, 3)
