import os
from pathlib import Path

import pytest
from PIL import Image

from vitexplain.images.finding import find_images, is_one_image


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with images at several places, and what is no image."""
    monkeypatch.chdir(tmp_path)
    for name in (
        *("photos/b.jpg", "photos/a.PNG", "photos/sub/a.PNG", "photos/sub/deep/c.webp"),
        *("photos/.hidden.png", "photos/._a.png", "photos/.cache/d.png", "photos/e[1].png"),
        *("other/b.jpg", "photos/output/b.jpg_overlay.png"),
    ):
        save(Path(name))
    Path("photos/without_suffix").write_bytes(Path("photos/a.PNG").read_bytes())
    Path("photos/notes.txt").write_text("no image")
    Path("photos/film.mpg").write_bytes(b"\x00\x00\x01\xba rest")
    Path("photos/broken.jpg").write_bytes(b"")
    return tmp_path


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)


def names(*requests, recursive=False, leave_out="output"):
    images, notices = find_images(requests, recursive, Path(leave_out))
    assert not notices
    assert all(Path(image.path).exists() for image in images)
    return [image.name for image in images]


OF_PHOTOS = ["a.PNG", "b.jpg", "broken.jpg", "e[1].png", "without_suffix"]


def test_folder(here):
    assert names("photos") == OF_PHOTOS
    assert names("photos/") == OF_PHOTOS
    assert names(str(here / "photos")) == OF_PHOTOS


def test_recursive_leaves_hidden_folders_and_the_output_out(here):
    below = ["sub/a.PNG", "sub/deep/c.webp"]
    of_output = ["output/b.jpg_overlay.png"]
    assert names("photos", recursive=True) == OF_PHOTOS + of_output + below
    assert names("photos", recursive=True, leave_out="photos/output") == OF_PHOTOS + below
    (here / "link").symlink_to(here / "photos" / "output")
    assert names("photos", recursive=True, leave_out="link") == OF_PHOTOS + below


def test_several_folders_share_no_name(here):
    found = names("photos", "other", recursive=True, leave_out="photos/output")
    assert [name for name in found if "b.jpg" in name] == ["photos/b.jpg", "other/b.jpg"]
    assert len(set(found)) == len(found) == 8


def test_a_image_that_is_named_twice_is_one(here):
    again = ["photos/../photos/b.jpg", str(here / "photos/b.jpg"), "photos/*.jpg"]
    assert sorted(names("photos", *again)) == OF_PHOTOS


def test_named_files_count_whatever_they_are(here):
    found, _ = find_images(["photos/notes.txt", "photos/none.png"], False, Path("out"))
    assert [image.path for image in found] == ["photos/notes.txt", "photos/none.png"]


def test_glob(here):
    assert names("photos/*.[jp][pn]g") == ["b.jpg", "broken.jpg", "e[1].png"]
    assert names("photos/*") == OF_PHOTOS
    everywhere = names("photos/**/*.*", leave_out="photos/output")
    assert everywhere == [n for n in OF_PHOTOS if "." in n] + ["sub/a.PNG", "sub/deep/c.webp"]
    # its names follow from the pattern alone, not from what matches today
    assert names("*/sub/a.PNG") == ["photos/sub/a.PNG"]


def test_an_existing_file_may_look_like_a_glob(here):
    assert is_one_image(["photos/e[1].png"])
    assert names("photos/e[1].png") == ["e[1].png"]


def test_list(here):
    lines = ["photos/b.jpg", "", "  ", "other/b.jpg", "photos/sub", "photos/none.png"]
    Path("list.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    found, _ = find_images(["@list.txt"], False, Path("out"))
    assert [p.name for p in found] == [
        *("photos/b.jpg", "other/b.jpg", "photos/sub/a.PNG", "photos/none.png")
    ]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_no_unicode(here):
    name = os.fsencode("photos/sub/") + b"\xff.png"
    Path(os.fsdecode(name)).write_bytes(Path("photos/a.PNG").read_bytes())
    Path("list.txt").write_bytes(name + b"\n")
    assert names("@list.txt") == names("photos/sub")[1:] == ["\udcff.png"]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (["empty"], r"no image found in empty \(--recursive"),
        (["photos/*.tiff"], "no image found"),
        (["@none.txt"], "the list none.txt can't be read: No such file"),
        (["@empty.txt"], "no image found"),
    ],
)
def test_nothing_found(here, requests, message):
    Path("empty").mkdir()
    Path("empty.txt").touch()
    with pytest.raises(ValueError, match=message):
        find_images(requests, False, Path("out"))


def test_results_do_not_go_among_the_images(here):
    with pytest.raises(ValueError, match="name another --output_dir"):
        find_images(["photos"], False, Path("other/../photos"))


def test_one_image_is_told_from_many(here):
    assert is_one_image(["photos/b.jpg"])
    assert is_one_image(["photos/missing.jpg"])
    for many in (["photos"], ["photos/*"], ["@list.txt"], ["a.jpg", "b.jpg"]):
        assert not is_one_image(many)
