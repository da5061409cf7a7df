import io
import os
import struct
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from helpers import ROOT
from vitexplain.images.reading import PictureError
from vitexplain.training.data import DataError, LabelledImages, category_of


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "ant/b.png": png("red"),
    "ant/a.png": png("blue"),
    "0007/x.png": png("lime"),
    "bee/broken.png": b"no image",
    "boxes.csv": b"file,imagenet_index,x0,y0,x1,y1\n",
}


@pytest.fixture(params=["folder", "zip"])
def data(request, tmp_path):
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
        return LabelledImages(tmp_path / "data.zip")
    for name, content in FILES.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    (tmp_path / "data" / "ant" / ".hidden").write_bytes(b"")
    return LabelledImages(tmp_path / "data")


def test_names_in_order(data):
    assert data.names == ["0007/x.png", "ant/a.png", "ant/b.png", "bee/broken.png"]
    assert category_of("ant/b.png") == "ant"


def test_read(data):
    assert data.read("ant/a.png").getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(PictureError, match=r"bee/broken\.png is not an image"):
        data.read("bee/broken.png")


def test_broken_images_are_named_and_passed_over(data, capsys):
    good = [name for name, _ in data.good(data.names)]
    assert good == ["0007/x.png", "ant/a.png", "ant/b.png"]
    assert "skipped: bee/broken.png is not an image" in capsys.readouterr().err


def test_side_file(data):
    assert data.side_file("boxes.csv").startswith("file,imagenet_index")
    assert data.side_file("nothing.csv") is None


def test_no_data(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        LabelledImages(tmp_path)
    (tmp_path / "text").write_text("x")
    for name in ("text", "missing"):
        with pytest.raises(DataError, match="neither a folder nor a zip file"):
            LabelledImages(tmp_path / name)


def damaged(path, change):
    """The archive with its bytes changed: a function of all bytes and the place of a member."""
    content = bytearray(path.read_bytes())
    change(content, content.index(b"ant/a.png"))
    path.write_bytes(content)


def zipped(path, files=None, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in (files or FILES).items():
            archive.writestr(name, content)
    return path


def wrong_sum(content, place):
    content[place + len("ant/a.png") + 20] ^= 255


def encrypted(content, place):
    content[place - 24] |= 1
    directory = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[directory + 8] |= 1


def unknown_compression(content, place):
    for start in (place - 22, content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1) + 10):
        content[start : start + 2] = struct.pack("<H", 77)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_sum, r"ant/a\.png in .*data\.zip is damaged \(Bad CRC-32"),
        (encrypted, r"ant/a\.png in .*data\.zip: .*encrypted, password required"),
        (unknown_compression, r"ant/a\.png in .*data\.zip: That compression method is not"),
    ],
)
def test_a_member_that_can_not_be_read_is_one_line(change, message, tmp_path, capsys):
    damaged(zipped(tmp_path / "data.zip"), change)
    data = LabelledImages(tmp_path / "data.zip")
    with pytest.raises(PictureError, match=message):
        data.read("ant/a.png")
    assert [name for name, _ in data.good(data.names)] == ["0007/x.png", "ant/b.png"]
    assert len(capsys.readouterr().err.splitlines()) == 2  # and bee/broken.png


def test_a_member_that_grows_without_end_is_given_up(tmp_path, monkeypatch):
    bomb = FILES | {"ant/bomb.png": bytes(5 << 20), "boxes.csv": bytes(5 << 20)}
    path = zipped(tmp_path / "data.zip", bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 50_000
    monkeypatch.setattr("vitexplain.training.data.LARGEST", 1 << 20)
    data = LabelledImages(path)
    for read, name in ((data.read, "ant/bomb.png"), (data.side_file, "boxes.csv")):
        with pytest.raises(PictureError, match=f"{name} in .* has more than 1 MiB"):
            read(name)
    assert data.read("ant/a.png").size == (4, 4)


def test_names_that_lead_out_of_the_archive_are_no_categories(tmp_path):
    others = {name: png("red") for name in ("../x.png", "/x.png", "./x.png", "__MACOSX/x.png")}
    data = LabelledImages(zipped(tmp_path / "data.zip", FILES | others))
    assert data.names == ["0007/x.png", "ant/a.png", "ant/b.png", "bee/broken.png"]
    assert data.categories() == {"0007", "ant", "bee"}


@pytest.mark.parametrize("content", [b"PK\x03\x04 and nothing more", b"", b"\x00" * 100])
def test_what_is_no_archive_is_said(content, tmp_path):
    (tmp_path / "data.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.zip is neither a folder nor a zip file that can"):
        LabelledImages(tmp_path / "data.zip")


FORKS = """
import multiprocessing, sys
from vitexplain.training.data import LabelledImages
data = LabelledImages(sys.argv[1])

def read(number):
    name = data.names[number % len(data.names)]
    return name == "%d/x.png" % data.read(name).getpixel((0, 0))[0]

with multiprocessing.get_context("fork").Pool(4) as pool:
    print(all(pool.map(read, range(400), chunksize=1)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_processes_share_no_place_in_an_archive(tmp_path):
    files = {f"{red}/x.png": png((red, 0, 0)) for red in range(100)}
    path = zipped(tmp_path / "data.zip", files)
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.stdout == "True\n", done.stderr[-500:]
