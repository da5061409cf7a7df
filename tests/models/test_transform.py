import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from vitexplain.models.transform import InputTransform

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def noise(width, height):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_crop_is_timms_own_evaluation_transform(size, mode):
    ours = InputTransform(size, **IMAGENET, crop="center", crop_pct=0.9, crop_mode=mode)
    timms = create_transform((3, *size), interpolation="bicubic", crop_pct=0.9, crop_mode=mode,
                             **IMAGENET)  # fmt: skip
    assert torch.equal(ours(noise(300, 200)), timms(noise(300, 200)))


def test_without_crop_the_whole_image_is_resized():
    transform = InputTransform((224, 224), **IMAGENET, crop="none", crop_pct=0.9)
    image = noise(301, 207)
    resized = image.resize((224, 224), Image.Resampling.BICUBIC)
    assert transform.seen(image).tobytes() == resized.tobytes()
    values = (np.asarray(resized) / 255 - IMAGENET["mean"]) / IMAGENET["std"]
    np.testing.assert_allclose(transform(image), values.transpose(2, 0, 1), atol=1e-6)
    assert transform.region(301, 207) == (0, 0, 301, 207)


@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize("mode", ["center", "squash"])
@settings(max_examples=25, deadline=None)
@given(width=st.integers(30, 700), height=st.integers(30, 700))
def test_region_is_where_the_model_looks(size, mode, width, height):
    """The colours of the image are its coordinates: they tell where each pixel comes from."""
    across = np.linspace(0, 1, width)[None].repeat(height, 0)
    down = np.linspace(0, 1, height)[:, None].repeat(width, 1)
    transform = InputTransform(size, **IMAGENET, crop="center", crop_pct=0.875, crop_mode=mode)
    left, top, right, bottom = transform.region(width, height)
    for values, low, high, full in [(across, left, right, width), (down, top, bottom, height)]:
        seen = transform.seen(Image.fromarray(np.uint8(np.round(255 * values))).convert("RGB"))
        seen = np.asarray(seen)[:, :, 0] / 255
        span = seen.mean(0) if values is across else seen.mean(1)
        middle, expected = span[len(span) // 2], (low + high) / 2 / full
        assert abs(middle - expected) < 0.5 / full + 0.02
        # a quarter and three quarters in, away from the edges' interpolation
        for part in (0.25, 0.75):
            expected = (low + part * (high - low)) / full
            assert abs(span[int(part * len(span))] - expected) < 1.0 / full + 0.02


def test_region_of_a_centre_crop_by_hand():
    """600 x 400 to short side 256 is 384 x 256; of that the middle 224 x 224."""
    transform = InputTransform((224, 224), **IMAGENET, crop="center", crop_pct=0.875)
    scale = 400 / 256
    expected = (80 * scale, 16 * scale, 304 * scale, 240 * scale)
    assert transform.region(600, 400) == pytest.approx(expected)


def test_padding_keeps_proportions_and_all_of_the_image():
    """600 x 300 becomes 224 x 112 in the middle, 56 rows of the mean colour above and below."""
    transform = InputTransform((224, 224), **IMAGENET, crop="pad", crop_pct=0.875)
    seen = np.asarray(transform.seen(Image.new("RGB", (600, 300), "blue")))
    blue = (seen == (0, 0, 255)).all(axis=2)
    assert blue[57:167].all()
    assert not blue[:55].any() and not blue[169:].any()
    assert transform(Image.new("RGB", (600, 300)))[:, 5, 5].abs().max() < 0.01
    assert transform.region(600, 300) == pytest.approx((0, -150, 600, 450))


@pytest.mark.parametrize("crop", ["none", "center", "pad"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 900), (2000, 1)])
def test_any_proportions_will_do(crop, width, height):
    transform = InputTransform((224, 224), **IMAGENET, crop=crop)
    assert transform(noise(width, height)).shape == (3, 224, 224)
    left, top, right, bottom = transform.region(width, height)
    assert left < right and top < bottom


def test_unknown_crop():
    with pytest.raises(ValueError, match="crop must be one of none, center, pad, not 'left'"):
        InputTransform((224, 224), **IMAGENET, crop="left")
