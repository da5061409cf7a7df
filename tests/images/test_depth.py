"""Grey of more than 8 bits: which value is white is what the file says, else a notice says it."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from helpers import ROOT, run_here
from vitexplain.api import explain
from vitexplain.images.reading import open_image
from vitexplain.models.loading import load_model

RAMP = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)  # 12 bits


def png16(path, values, chunks=()):
    """A 16-bit grey PNG written out by hand, with further chunks."""
    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def tiff16(path, values, **tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
    Image.fromarray(values).save(path, tiffinfo=info)
    return path


def grey(image):
    values = np.asarray(image)
    assert (values[..., 0] == values[..., 1]).all()
    return values[..., 0]


def test_png_says_its_bits(tmp_path):
    image = open_image(png16(tmp_path / "a.png", RAMP, [(b"sBIT", b"\x0c")]))
    np.testing.assert_array_equal(grey(image), np.round(RAMP * (255 / 4095)))
    assert image.info["notice"] == ""


def test_png_by_the_book_fills_the_range(tmp_path):
    """Then its bits say nothing of the white point."""
    full = (RAMP.astype(np.uint32) * 65535 // 4095).astype(np.uint16)
    image = open_image(png16(tmp_path / "a.png", full, [(b"sBIT", b"\x0c")]))
    np.testing.assert_array_equal(grey(image), np.round(full / 257))


def test_tiff_says_its_largest_value(tmp_path):
    image = open_image(tiff16(tmp_path / "a.tif", RAMP, t281=4095))
    np.testing.assert_array_equal(grey(image), np.round(RAMP * (255 / 4095)))
    assert image.info["notice"] == ""


def test_white_is_zero(tmp_path):
    values = (RAMP.astype(np.uint32) * 16).astype(np.uint16)
    image = open_image(tiff16(tmp_path / "a.tif", values, t262=0))
    np.testing.assert_array_equal(grey(image), np.round((65535.0 - values) / 257))


def test_unsaid_depth_is_told_and_stretched_on_request(tmp_path):
    path = png16(tmp_path / "a.png", RAMP)
    image = open_image(path)
    np.testing.assert_array_equal(grey(image), np.round(RAMP / 257))
    assert "brightest value is 4095 of 65535" in image.info["notice"]
    assert "--stretch" in image.info["notice"]
    stretched = open_image(path, stretch=True)
    low, high = np.percentile(RAMP, (0.1, 99.9))
    expected = ((RAMP - low) / (high - low) * 255).clip(0, 255)
    np.testing.assert_array_equal(grey(stretched), np.round(expected))
    assert stretched.info["notice"] == ""


def test_the_transparent_value_of_16_bits_is_white(tmp_path):
    values = np.full((4, 4), 9000, np.uint16)
    values[1, 2] = 300
    path = png16(tmp_path / "a.png", values, [(b"tRNS", struct.pack(">H", 300))])
    image = grey(open_image(path))
    assert image[1, 2] == 255
    assert image[0, 0] == 35


def test_stretching_colours_keeps_their_hue(tmp_path):
    """All channels alike: grey stays grey, and the order of values stays."""
    values = np.random.default_rng(0).integers(60, 90, (20, 20, 3)).astype(np.uint8)
    values[:2] = 75
    Image.fromarray(values).save(tmp_path / "a.png")
    found = np.asarray(open_image(tmp_path / "a.png", stretch=True))
    assert (found.min(), found.max()) == (0, 255)
    assert len(np.unique(found[:2])) == 1
    order = np.argsort(values.ravel(), kind="stable")
    assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()


@pytest.mark.parametrize("mode", ["1", "L"])
def test_white_is_zero_in_few_bits(mode, tmp_path):
    Image.new("L", (8, 8), 0).convert(mode).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert open_image(tmp_path / "a.tif").getpixel((1, 1)) in ((0, 0, 0), (255, 255, 255))


@pytest.mark.slow
def test_the_command_tells_of_dark_images_and_counts_them(tmp_path):
    """Of one image by its path, of a folder once with the number."""
    photo = np.asarray(Image.open(ROOT / "examples" / "cat.jpg").convert("L").resize((96, 96)))
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        png16(folder / f"{name}.png", photo.astype(np.uint16) * 16)
    options = ("--model", "bundled", "--output_dir", "out")
    done = run_here("--image_path", "in/a.png", *options, cwd=tmp_path)
    assert "in/a.png: its brightest value is" in done.stderr
    done = run_here("--image_path", "in", *options, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("the model sees it dark") == 1
    assert "3 images" in done.stderr
    done = run_here("--image_path", "in", *options, "--stretch", "--workers", "1", cwd=tmp_path)
    assert "dark" not in done.stderr


def test_the_api_warns_and_stretches(bundled, tmp_path):
    path = png16(tmp_path / "a.png", np.tile(RAMP, (8, 8)))
    with pytest.warns(UserWarning, match="brightest value"):
        dark = explain(path, model=bundled)
    model = load_model("bundled", stretch=True)
    light = explain(path, model=model)
    assert np.asarray(dark.image).max() == 16
    assert np.asarray(light.image).max() == 255
