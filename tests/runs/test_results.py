import csv
import json
import re
import shutil

import pytest

from vitexplain.errors import RequestError
from vitexplain.images.finding import ImageFile
from vitexplain.images.reading import state_of
from vitexplain.runs.results import Results, read_results

SETTINGS = {"discard_ratio": 0.9}


@pytest.fixture
def images(tmp_path):
    found = []
    for name in ("a.png", "b,c.png", "d.png"):
        (tmp_path / name).write_bytes(b"picture")
        found.append(ImageFile(str(tmp_path / name), name))
    return found


@pytest.fixture
def output(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


def result_of(output, image):
    (output / f"{image.name}.map.png").write_bytes(b"map")
    found = {"overlay": f"{image.name}.map.png", "grid": [2, 2], "mask": "AAAAAA=="}
    return {
        "size": [4, 4],
        "region_seen": [0, 0, 4, 4],
        "model": "small",
        "top": [],
        "maps": [{"method": {"name": "attention_rollout"}, "category": None, **found}],
        "milliseconds": {},
    }


def go_on(output, images, settings=SETTINGS, tell=lambda _: None):
    return Results(output, settings, images, tell)


def finish(output, images, *which):
    with go_on(output, images) as results:
        for number in which:
            results.add(images[number], result_of(output, images[number]))


def lines(output):
    return [line["name"] for line in read_results(output / "results.jsonl")]


def missing(output, images, settings=SETTINGS):
    with go_on(output, images, settings) as results:
        assert results.done == len(images) - len(results.missing)
        return [image.name for image in results.missing]


def test_what_is_finished_is_not_done_again(output, images):
    assert missing(output, images) == ["a.png", "b,c.png", "d.png"]
    finish(output, images, 0, 2)
    assert missing(output, images) == ["b,c.png"]
    assert lines(output) == ["a.png", "d.png"]
    assert missing(output, images[1:2]) == ["b,c.png"]  # another request, the same folder
    assert lines(output) == ["a.png", "d.png"]


@pytest.mark.parametrize("rest", ['{"path": "x', '{"path": "x", "name": "a.png"', "\x00" * 50])
def test_half_a_line_at_the_end_is_taken_out(output, images, rest):
    finish(output, images, 0)
    with (output / "results.jsonl").open("a") as file:
        file.write(rest)
    finish(output, images, 1)
    text = (output / "results.jsonl").read_text()
    assert [json.loads(line)["name"] for line in text.splitlines()] == ["a.png", "b,c.png"]


def test_changed_images_and_lost_files_are_done_again(output, images):
    finish(output, images, 0, 1, 2)
    (output.parent / "a.png").write_bytes(b"another image")
    (output / "d.png.map.png").unlink()
    assert missing(output, images) == ["a.png", "d.png"]
    assert lines(output) == ["b,c.png"]
    finish(output, images, 0, 2)
    (output / "a.png.map.png").write_bytes(b"")  # as after a power cut
    assert missing(output, images) == ["a.png"]


def test_a_image_that_has_gone_stays_finished(output, images):
    finish(output, images, 0, 1)
    (output.parent / "a.png").unlink()
    assert missing(output, images[1:]) == ["d.png"]
    assert lines(output) == ["a.png", "b,c.png"]


def test_changed_settings_start_afresh_and_lose_nothing(output, images):
    finish(output, images, 0)
    told = []
    for number, ratio in ((1, 0.5), (2, 0.7)):
        with go_on(output, images, {"discard_ratio": ratio}, told.append) as results:
            assert len(results.missing) == 3
            results.add(images[number], result_of(output, images[number]))
        assert f"its list is now results-{number}.jsonl" in told[-1]
    assert lines(output) == ["d.png"]
    kept = [next(read_results(output / f"results-{n}.jsonl"))["name"] for n in (1, 2)]
    assert kept == ["a.png", "b,c.png"]


def test_errors_are_listed_and_tried_again(output, images):
    with go_on(output, images) as results:
        results.fail(images[1], 'broken, "really"')
        assert results.failed == 1
    with (output / "errors.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["path", "reason"], [images[1].path, 'broken, "really"']]
    assert missing(output, images) == ["a.png", "b,c.png", "d.png"]
    assert (output / "errors.csv").read_text().count("\n") == 1


def test_only_one_run_writes_into_a_folder(output, images):
    with go_on(output, images), pytest.raises(ValueError, match="another run is writing"):
        go_on(output, images).__enter__()
    assert missing(output, images)


def test_half_files_of_a_killed_run_are_removed(output):
    part = output / "sub" / ".vit_explain-x.part"
    part.parent.mkdir()
    part.touch()
    (output / "sub" / "mine.part").touch()
    missing(output, [ImageFile("none.png", "sub/none.png")])
    assert sorted(path.name for path in part.parent.iterdir()) == ["mine.part"]


DAMAGED = [
    "5",
    "null",
    "[]",
    "{}",
    '{"name": "x"}',
    '{"name": ["x"], "maps": [], "file": null}',
    '{"name": "x", "maps": 3, "file": null}',
    '{"name": "x", "maps": [{"overlay": 3}], "file": null}',
    "[" * 100_000,
    "nonsense",
]


def test_lines_that_are_no_results_are_passed_over_and_counted(output, images):
    finish(output, images, 0, 2)
    file = output / "results.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b"\xff\xfe broken\n" + "\n".join(DAMAGED).encode() + b"\n" + whole)
    told = []
    with go_on(output, images, tell=told.append) as results:
        assert [image.name for image in results.missing] == ["b,c.png"]
    assert told == [
        f"{file}: {len(DAMAGED) + 1} of its lines can't be used: these images are done again"
    ]
    assert file.read_bytes() == whole


def test_a_file_that_was_cut_short_is_done_again(output, images):
    finish(output, images, 0, 1, 2)
    (output / "a.png.map.png").write_bytes(b"m")
    assert missing(output, images) == ["a.png"]


def test_an_image_that_changed_while_it_was_explained_is_done_again(output, images):
    """Its state is that of its opening, not of its writing."""
    before = state_of(images[0].path)
    with go_on(output, images) as results:
        (output.parent / "a.png").write_bytes(b"another picture")
        results.add(images[0], result_of(output, images[0]), before)
    assert missing(output, images) == ["a.png", "b,c.png", "d.png"]


def test_a_folder_that_is_deleted_meanwhile_is_said(output, images):
    with go_on(output, images) as results:
        results.add(images[0], result_of(output, images[0]))
        results.check_folder()
        shutil.rmtree(output)
        with pytest.raises(RequestError, match="was deleted or replaced during the run"):
            results.check_folder()
        output.mkdir()
        (output / "results.jsonl").touch()
        with pytest.raises(RequestError, match="was deleted or replaced during the run"):
            results.check_folder()


@pytest.mark.parametrize("name", ["results.jsonl", "errors.csv", "run.json", ".lock"])
def test_folders_in_the_way_are_named(name, output, images):
    (output / name).mkdir()
    with pytest.raises(RequestError, match=rf"{re.escape(name)} is a folder, .*: remove it"):
        missing(output, images)
