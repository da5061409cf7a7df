import io
import zipfile

import pytest
from PIL import Image

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
