"""Rows on disk, from which a run by actors is resumed."""

import json
import os

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs requirements-ray.txt")

import pyarrow as pa
import pyarrow.parquet as pq

from vitexplain.errors import RequestError
from vitexplain.explainer import Category, ImageMaps, Map
from vitexplain.images.finding import ImageFile
from vitexplain.runs.items import Item
from vitexplain.runs.parquet import Parts, write_part
from vitexplain.runs.results import line_of

SETTINGS = {"discard_ratio": 0.9}
MASK = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
NAMES = ("a.png", "b.png", "c.png", "d.png")


@pytest.fixture
def images(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(b"picture")
    return [ImageFile(str(tmp_path / name), name) for name in NAMES]


@pytest.fixture
def output(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


def finished(output, image, maps=1):
    """An explained item and its line, its overlays written."""
    found = [Map(MASK, Category(5 + n, "name", 0.5), {"name": "legrad"}) for n in range(maps)]
    about = []
    for number, each in enumerate(found):
        overlay = f"{image.name}.{number}.png"
        (output / overlay).write_bytes(b"overlay")
        about.append({**each.about, "overlay": overlay, "grid": [2, 3], "mask": ""})
    result = {"size": [1, 1], "region_seen": [], "model": "small", "top": [], "maps": about}
    item = Item(0, image, explained=ImageMaps([], found))
    return item, line_of(output, image, result | {"milliseconds": {}}, None)


def failed(image):
    return Item(0, image, failure="broken"), {}


def write(output, *pairs, settings=SETTINGS):
    images = [item.image for item, _ in pairs]
    with parts_of(output, images, settings) as parts:
        parts.expect([images])
        write_part(parts.place, parts.settings, *zip(*pairs, strict=True))


def parts_of(output, images, settings=SETTINGS, tell=lambda _: None):
    return Parts(output, settings, images, tell)


def missing(output, images, **more):
    with parts_of(output, images, **more) as parts:
        assert parts.done == len(images) - len(parts.missing)
        return [image.name for image in parts.missing]


def rows(output):
    files = sorted((output / "parquet").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_what_is_there_is_not_done_again(output, images):
    assert missing(output, images) == list(NAMES)
    write(output, finished(output, images[0], maps=2), finished(output, images[2]))
    assert missing(output, images) == ["b.png", "d.png"]
    assert [(row["name"], row["category"]) for row in rows(output)] == [
        ("a.png", 5), ("a.png", 6), ("c.png", 5),
    ]  # fmt: skip
    for row in rows(output):
        assert row["error"] == ""
        np.testing.assert_array_equal(
            np.float32(row["mask"]).reshape(row["rows"], row["columns"]), MASK
        )
        assert json.loads(row["result"])["name"] == row["name"]


def test_rows_that_no_longer_hold_are_taken_out(output, images):
    """Each in a file with another that stays, or in one of its own."""
    write(output, finished(output, images[0]), failed(images[1]))
    write(output, finished(output, images[2]))
    write(output, finished(output, images[3], maps=2))
    (output / "d.png.1.png").unlink()
    assert missing(output, images) == ["b.png", "d.png"]
    assert sorted(row["name"] for row in rows(output)) == ["a.png", "c.png"]
    assert len(list((output / "parquet").iterdir())) == 2
    (output.parent / "a.png").write_bytes(b"another picture")
    assert missing(output, images) == ["a.png", "b.png", "d.png"]
    assert missing(output, images[2:]) == ["d.png"]
    write(output, finished(output, images[0]), finished(output, images[1]))
    assert missing(output, images) == ["d.png"]


def test_a_share_that_is_done_twice_is_there_once(output, images):
    for _ in range(2):
        with parts_of(output, images) as parts:
            pairs = [finished(output, image) for image in images[:2]]
            parts.expect([images[:2]])
            write_part(parts.place, parts.settings, *zip(*pairs, strict=True))
            write_part(parts.place, parts.settings, *zip(*pairs, strict=True))
    assert [row["name"] for row in rows(output)] == ["a.png", "b.png"]
    pairs = [finished(output, image) for image in images[1:]]  # as if two runs had overlapped
    write_part(output / "parquet", parts.settings, *zip(*pairs, strict=True))
    assert missing(output, images) == []
    assert sorted(row["name"] for row in rows(output)) == list(NAMES)


def test_what_a_killed_run_still_writes_is_not_doubled(output, images):
    """Actors may outlive the process that asked them by a share."""
    late = [[finished(output, images[0])], [finished(output, image) for image in images[2:]]]
    with parts_of(output, images[:3]) as parts:
        parts.expect([images[:2], images[2:3]])
        for pairs in late:
            write_part(parts.place, parts.settings, *zip(*pairs, strict=True))
        for share in (images[:2], images[2:3]):
            pairs = [finished(output, image) for image in share]
            write_part(parts.place, parts.settings, *zip(*pairs, strict=True))
    assert sorted(row["name"] for row in rows(output)) == list(NAMES)
    assert missing(output, images) == []


def test_other_settings_set_the_table_aside(output, images):
    write(output, finished(output, images[0]))
    told = []
    for number in (1, 2):
        with parts_of(output, images, {"discard_ratio": number / 10}, told.append) as parts:
            assert len(parts.missing) == len(images)
            parts.expect([images[1:2]])
            write_part(parts.place, parts.settings, *zip(finished(output, images[1])))
        assert f"its table is now parquet-{number}" in told[-1]
    assert [row["name"] for row in rows(output)] == ["b.png"]
    (kept,) = (output / "parquet-1").iterdir()
    assert pq.read_table(kept)["name"].to_pylist() == ["a.png"]


def test_a_table_of_another_program_is_set_aside(output, images):
    (output / "parquet").mkdir()
    pq.write_table(pa.table({"x": [1]}), output / "parquet" / "x.parquet")
    assert missing(output, images) == list(NAMES)
    assert pq.read_table(output / "parquet-1" / "x.parquet").num_rows == 1


def test_damaged_and_half_written_files(output, images):
    write(output, finished(output, images[0]))
    write(output, finished(output, images[1]))
    damaged = next(
        file
        for file in (output / "parquet").iterdir()
        if pq.read_table(file)["name"].to_pylist() == ["b.png"]
    )
    damaged.write_bytes(damaged.read_bytes()[:-9])
    half = output / "parquet" / ".vit_explain-x.part"
    half.touch()
    told = []
    assert missing(output, images, tell=told.append) == ["b.png", "c.png", "d.png"]
    assert told == [
        f"{output / 'parquet'}: 1 of its files can't be read: these images are done again"
    ]
    assert not half.exists() and not damaged.exists()


def test_only_one_run_writes_into_a_folder(output, images):
    with (
        parts_of(output, images),
        pytest.raises(RequestError, match=r"another run is writing into .*output: wait"),
    ):
        missing(output, images)


def test_a_file_in_the_way_is_named(output, images):
    (output / "parquet").touch()
    with pytest.raises(RequestError, match="parquet is in the way: remove it"):
        missing(output, images)


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_need_not_be_unicode(output, tmp_path):
    name = os.fsdecode(b"\xff.png")
    (tmp_path / name).write_bytes(b"picture")
    image = ImageFile(str(tmp_path / name), name)
    write(output, finished(output, image))
    assert missing(output, [image]) == []
    assert rows(output)[0]["name"] == "\\udcff.png"
