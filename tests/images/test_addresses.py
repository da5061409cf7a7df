"""Images at addresses, with those of files in the place of a bucket's."""

import pytest
from PIL import Image

pytest.importorskip("pyarrow", reason="needs requirements-ray.txt")

from vitexplain.errors import RequestError
from vitexplain.images.addresses import fetched, find_addresses, is_address
from vitexplain.images.reading import PictureError


@pytest.fixture
def bucket(tmp_path):
    for name in ("a.png", "sub/b.JPG", "sub/deep/a.png", "notes.txt", ".hidden/c.png", ".d.png"):
        path = tmp_path / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "red").save(path, format="png")
    (tmp_path / "bucket" / "empty").mkdir()
    return (tmp_path / "bucket").as_uri()


def test_images_of_a_folder_by_their_place_in_it(bucket):
    flat = find_addresses([bucket], recursive=False)
    assert [(image.path, image.name) for image in flat] == [(f"{bucket}/a.png", "a.png")]
    deep = find_addresses([f"{bucket}/"], recursive=True)
    assert [image.name for image in deep] == ["a.png", "sub/b.JPG", "sub/deep/a.png"]
    for image in deep:
        with Image.open(fetched(image.path)) as opened:
            assert opened.size == (3, 2)


def test_no_two_images_share_a_name(bucket):
    found = find_addresses([f"{bucket}/a.png", f"{bucket}/sub/deep", f"{bucket}/a.png"], False)
    assert [image.path for image in found] == [f"{bucket}/a.png", f"{bucket}/sub/deep/a.png"]
    assert len({image.name for image in found}) == 2
    assert all(image.name.endswith("a.png") and image.name[0] != "/" for image in found)


def test_what_is_not_there_is_said(bucket):
    (missing,) = find_addresses([f"{bucket}/gone.png"], False)
    with pytest.raises(PictureError, match=r"no image at file:.*gone\.png: no such file"):
        fetched(missing.path)
    with pytest.raises(RequestError, match=r"no image found in .*/empty \(--recursive"):
        find_addresses([f"{bucket}/empty"], False)
    with pytest.raises(RequestError, match="nowhere://x can't be read"):
        find_addresses(["nowhere://x"], False)


def test_files_here_are_no_addresses(tmp_path):
    assert is_address("s3://bucket/a.png")
    assert not is_address(str(tmp_path))
    assert not is_address("C:/images/a.png")
