import stat
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from vitexplain.images import png
from vitexplain.images.writing import writable_folder, write_array, write_png, write_whole


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (9, 1), (1, 9), (300, 400)])
@pytest.mark.parametrize("deflate", [png.compress, zlib.compress])
def test_png_with_texts(shape, deflate, tmp_path, monkeypatch):
    """Pillow and OpenCV read back what was written, whichever library deflates."""
    monkeypatch.setattr(png, "compress", deflate)
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    texts = {"Category": "282 tiger cat", "Command": "é \udcff"}
    write_png(tmp_path / "a.png", Image.fromarray(pixels), texts)
    with Image.open(tmp_path / "a.png") as read:
        assert read.mode == "RGB"
        assert np.array_equal(np.asarray(read), pixels)
        assert read.text == {"Category": "282 tiger cat", "Command": "é \\udcff"}
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1], pixels)


def test_same_bytes_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, Image.new("RGB", (9, 9), "red"), {"k": "v"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_array(tmp_path):
    mask = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    write_array(tmp_path / "mask.npy", mask)
    read = np.load(tmp_path / "mask.npy", allow_pickle=False)
    assert read.dtype == np.float32
    assert np.array_equal(read, mask)


def test_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_array(tmp_path / "mask.npy", np.zeros(1))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "mask.npy")]
    assert modes[0] == modes[1]


def test_interrupted_writing_leaves_the_old_file_and_no_other(tmp_path):
    def interrupted(file):
        file.write(b"half an image")
        raise KeyboardInterrupt

    (tmp_path / "a.png").write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.png", interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"earlier"


def test_folder_is_made_and_tried(tmp_path):
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    assert not any((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        writable_folder(tmp_path / "file")
