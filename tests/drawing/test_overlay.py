"""Overlays of every size and format show the same."""

import numpy as np
import pytest
from PIL import Image

from helpers import texts_of
from vitexplain.drawing.heatmap import overlay_pixels
from vitexplain.drawing.overlay import Overlay, check_output, name_of
from vitexplain.errors import RequestError
from vitexplain.explainer import Map
from vitexplain.images.region import Region
from vitexplain.models.transform import InputTransform
from vitexplain.settings import Style

HALF = (0.5, 0.5, 0.5)


def overlay(crop="none", **style):
    transform = InputTransform((32, 32), HALF, HALF, crop=crop)
    return Overlay(Style(**style), transform, {"Software": "vit_explain"})


def noise(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def one_patch(row, column):
    mask = np.zeros((4, 4), np.float32)
    mask[row, column] = 1
    return Map(mask, None, {"name": "gradcam"})


@pytest.mark.parametrize(
    ("style", "size", "expected"),
    [
        ({}, (300, 200), (300, 200)),
        ({"size": "image"}, (300, 200), (300, 200)),
        ({"size": "model"}, (300, 200), (32, 32)),
        ({"size": 150}, (300, 200), (150, 100)),
        ({"size": 150}, (200, 300), (100, 150)),
        ({"size": 300}, (300, 200), (300, 200)),
        ({"size": 5000}, (300, 200), (300, 200)),
        ({"size": 1}, (300, 200), (1, 1)),
        ({"size": 100}, (20_000, 3), (100, 1)),
    ],
)
def test_size(style, size, expected):
    drawn = overlay(**style)
    assert drawn.size_of(*size) == expected
    image = noise(*size)
    canvas, _ = drawn.canvas(image, drawn.transform.seen(image))
    assert canvas.size == expected


@pytest.mark.parametrize("crop", ["none", "center", "pad"])
def test_a_small_overlay_is_the_large_one_made_small(crop):
    """Also where the model sees a part of the image, and the rest is dark."""
    grey = Image.new("RGB", (800, 600), (90, 120, 150))
    found = one_patch(1, 2)
    drawn = {}
    for size in (None, 200):
        each = overlay(crop, size=size)
        drawn[size] = each.drawn(*each.canvas(grey, each.transform.seen(grey)), found)
    small = np.asarray(drawn[None].resize((200, 150), Image.Resampling.BOX)).astype(int)
    difference = np.abs(np.asarray(drawn[200]).astype(int) - small)
    assert difference.mean() < 2
    spread = np.asarray(drawn[200]).astype(int).std()
    assert spread > 10  # so that the mean above says something


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_every_format_shows_and_says_the_same(ending, tmp_path):
    each, image = overlay(format=ending), noise(9, 7).resize((300, 200))
    canvas, region = each.canvas(image, each.transform.seen(image))
    files = each.write(tmp_path / "a", canvas, region, one_patch(0, 0))
    assert files["overlay"].name == f"a_gradcam.{ending}"
    assert texts_of(files["overlay"])["Method"] == "gradcam"
    with Image.open(files["overlay"]) as read:
        written = np.asarray(read.convert("RGB")).astype(int)
    expected = np.asarray(each.drawn(canvas, region, one_patch(0, 0))).astype(int)
    assert np.abs(written - expected).mean() < (1e-9 if ending == "png" else 5)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("region", [None, Region(-7, 3, 40, 50), Region(5, 6, 30, 20)])
def test_four_channels_hold_the_same_three(signed, region):
    mask = np.random.default_rng(1).uniform(-1, 1, (5, 6)).astype(np.float32)
    arguments = noise(47, 53), mask, region, 0.3, "jet"
    three = overlay_pixels(*arguments, signed=signed)
    four = overlay_pixels(*arguments, signed=signed, channels=4)
    np.testing.assert_array_equal(four[..., :3], three)


def test_bands_leave_no_seam(monkeypatch):
    """Whatever the number of rows that are coloured at a time."""
    arguments = noise(47, 53), one_patch(2, 1).mask, Region(5, 6, 30, 45), 0.5, "turbo"
    whole = overlay_pixels(*arguments, signed=False)
    for rows in (1, 7, 52):
        monkeypatch.setattr("vitexplain.drawing.heatmap.BAND", rows * 47)
        np.testing.assert_array_equal(overlay_pixels(*arguments, signed=False), whole)


@pytest.mark.parametrize("size", [0, -3, 65_501, "huge", 1.5, True, ""])
def test_wrong_sizes(size):
    with pytest.raises(RequestError, match="size must be image, model or pixels from 1"):
        check_output(Style(size=size))


def test_wrong_formats():
    with pytest.raises(RequestError, match="format must be one of auto, png, jpg, webp"):
        check_output(Style(format="gif"))


@pytest.mark.parametrize(
    ("ratio", "written"),
    [(0, "0.000"), (0.9, "0.900"), (0.999, "0.999"), (0.9996, "0.9996"), (0.99999, "0.99999")],
)
def test_two_discard_ratios_never_share_a_name(ratio, written):
    method = {"name": "attention_rollout", "discard_ratio": ratio, "head_fusion": "max"}
    found = Map(np.ones((2, 2), np.float32), None, method)
    assert name_of(found) == f"attention_rollout_{written}_max"
