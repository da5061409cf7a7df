"""Which files are opened, and what is said of those that are not."""

import os

import pytest
from PIL import Image, features

from helpers import run_here
from vitexplain.drawing.overlay import Overlay
from vitexplain.images.finding import find_images
from vitexplain.images.formats import OPENED, opened_formats
from vitexplain.images.reading import PictureError, open_image
from vitexplain.models.transform import InputTransform
from vitexplain.runs.workers import look
from vitexplain.settings import Style


def test_programs_are_not_opened(tmp_path):
    """EPS would be handed to Ghostscript."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "named.png").write_bytes((tmp_path / "a.eps").read_bytes())
    for name in ("a.eps", "named.png"):
        with pytest.raises(PictureError, match="is not an image"):
            open_image(tmp_path / name)
    assert not OPENED & {"EPS", "WMF", "PDF", "FITS", "HDF5", "GRIB", "BUFR", "MPEG", "FPX", "MIC"}
    assert {"PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"} <= set(opened_formats())


def test_what_is_passed_over_is_counted_by_ending(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("b.NEF", "c.nef", "d.dcm", "e.jxl", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    images, notices = find_images([str(tmp_path)], False, tmp_path / "out")
    assert [image.name for image in images] == ["a.png"]
    (notice,) = notices
    assert "1 .dcm (DICOM" in notice
    assert "2 .nef (raw of a camera" in notice
    assert "1 .jxl" in notice
    assert "txt" not in notice
    with pytest.raises(PictureError, match="pydicom"):
        open_image(tmp_path / "d.dcm")


def test_a_folder_of_nothing_else_says_why(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(b"x")
    done = run_here("--image_path", "in", "--model", "bundled", cwd=tmp_path)
    assert done.returncode == 2
    assert "no image found in in; passed over: 1 .dcm" in done.stderr


def test_heic(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    path = tmp_path / "a.heic"
    Image.new("RGB", (64, 48), (200, 30, 40)).save(path, quality=95)
    found = open_image(path)
    assert found.size == (64, 48)
    assert abs(found.getpixel((20, 20))[0] - 200) < 12
    images, notices = find_images([str(tmp_path)], False, tmp_path / "out")
    assert [image.name for image in images] == ["a.heic"]
    assert notices == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "c")
    images, _ = find_images([str(tmp_path)], False, tmp_path / "out")
    assert [image.name for image in images] == ["a.png"]
    transform = InputTransform((32, 32), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(PictureError, match="a pipe or a device"):
        look(Overlay(Style(), transform, {}), str(tmp_path / "b.png"))


def test_avif_where_pillow_has_it(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.new("RGB", (64, 48), (10, 200, 40)).save(tmp_path / "a.avif")
    assert abs(open_image(tmp_path / "a.avif").getpixel((9, 9))[1] - 200) < 12
