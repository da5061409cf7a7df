"""What is written as JPEG and WebP is read back, by Pillow and as XML."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, JpegImagePlugin

from helpers import texts_of
from vitexplain.errors import RequestError
from vitexplain.images.encoding import LIMITS, check_fits, ending_of, save_image
from vitexplain.images.metadata import ROOM, xmp
from vitexplain.images.writing import write_image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def waves(width, height, channels=3):
    """Smooth colours, which no lossy format changes much."""
    across = np.arange(width)[None, :, None] / 20
    down = np.arange(height)[:, None, None] / 15
    return np.uint8(127 + 120 * np.sin(across + down + np.arange(channels)))


@pytest.mark.parametrize("ending", ENDINGS)
def test_texts_and_pixels_are_read_back(ending, tmp_path):
    texts = {
        "Software": "vit_explain",
        "Command": "vit_explain.py --category '<b>&amp;\"' {} line\nfeed\ttab",
        "Category": "1 poisson doré, 金魚 🐟",
    }
    pixels = waves(90, 70)
    write_image(tmp_path / f"a{ending}", pixels, texts)
    assert texts_of(tmp_path / f"a{ending}") == texts
    with Image.open(tmp_path / f"a{ending}") as read:
        difference = np.abs(np.asarray(read.convert("RGB")).astype(int) - pixels)
    assert difference.mean() < (1e-9 if ending == ".png" else 4)


@pytest.mark.parametrize("ending", (".jpg", ".webp"))
def test_what_no_text_may_hold_is_spelled_out(ending, tmp_path):
    """Names of files hold any byte but 0 and a slash; XML does not."""
    texts = {"Software": "vit_explain", "Command": "\x1b[31m \udcff \ufffe \r end"}
    write_image(tmp_path / f"a{ending}", waves(9, 9), texts)
    assert texts_of(tmp_path / f"a{ending}")["Command"] == r"\x1b[31m \udcff \ufffe " + "\r end"


@pytest.mark.parametrize("letter", ["a", "&", "é", "🐟"])
def test_a_command_of_ten_thousand_files_is_cut(letter, tmp_path):
    """A segment of a JPEG holds 65,533 bytes; what is short stays whole."""
    texts = {"Software": "vit_explain", "Command": 300_000 * letter, "Model": "bundled"}
    assert ROOM - 200 < len(xmp(texts)) < 65_500
    write_image(tmp_path / "a.jpg", waves(9, 9), texts)
    read = texts_of(tmp_path / "a.jpg")
    assert read["Model"] == "bundled"
    assert read["Command"] == letter * (len(read["Command"]) - 1) + "…"


def test_exif_says_what_everybody_should_see(tmp_path):
    texts = {"Software": "vit_explain", "Model": "m", "Method": "legrad", "Category": "3 é"}
    for ending in (".jpg", ".webp"):
        write_image(tmp_path / f"a{ending}", waves(9, 9), texts)
        exif = Image.open(tmp_path / f"a{ending}").getexif()
        described = r"Model: m; Method: legrad; Category: 3 \xe9"
        assert exif[ExifTags.Base.ImageDescription] == described


@pytest.mark.parametrize("ending", (".jpg", ".webp"))
def test_a_fourth_channel_is_left_out(ending):
    pixels = waves(33, 21, 4)
    files = [io.BytesIO(), io.BytesIO()]
    for file, given in zip(files, (pixels, np.ascontiguousarray(pixels[..., :3])), strict=True):
        save_image(file, given, ending, {"Software": "vit_explain"})
    assert Image.open(files[0]).convert("RGB").tobytes() == Image.open(files[1]).tobytes()


def test_a_jpeg_is_of_ordinary_size():
    file = io.BytesIO()
    save_image(file, waves(64, 64), ".jpg", {})
    read = Image.open(file)
    assert JpegImagePlugin.get_sampling(read) == 2  # 4:2:0
    expected = io.BytesIO()
    Image.fromarray(waves(64, 64)).save(expected, "JPEG", quality=92)
    assert read.quantization == Image.open(expected).quantization


@pytest.mark.parametrize("ending", ENDINGS)
def test_same_bytes_each_time(ending):
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        save_image(file, waves(40, 30), ending, {"Software": "vit_explain", "Model": "m"})
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.parametrize(
    ("given", "size", "ending"),
    [
        ("auto", (2000, 2000), ".png"),
        ("auto", (2001, 2000), ".jpg"),
        ("auto", (70_000, 100), ".png"),
        ("png", (9000, 9000), ".png"),
        ("jpg", (1, 1), ".jpg"),
        ("jpg", (65_500, 1), ".jpg"),
        ("jpg", (1, 65_501), ".png"),
        ("webp", (16_383, 16_383), ".webp"),
        ("webp", (16_384, 1), ".jpg"),
        ("webp", (70_000, 1), ".png"),
    ],
)
def test_which_file(given, size, ending):
    found, notice = ending_of(given, *size)
    assert found == ending
    assert bool(notice) == (given != "auto" and ending != f".{given}")
    if notice:
        assert str(LIMITS[f".{given}"]) in notice


@pytest.mark.parametrize(("ending", "side"), [(".jpg", 65_500), (".webp", 16_383)])
def test_limits_are_the_formats_own(ending, side):
    """One pixel more is what Pillow can't write."""
    save_image(io.BytesIO(), np.zeros((1, side, 3), np.uint8), ending, {})
    with pytest.raises((OSError, ValueError)):
        save_image(io.BytesIO(), np.zeros((1, side + 1, 3), np.uint8), ending, {})
    check_fits(ending, 1, side)
    with pytest.raises(RequestError, match=f"at most {side} pixels a side"):
        check_fits(ending, side + 1, 1)
