"""True categories: where they come from, and what is told of mistakes."""

import base64
import json
import shutil
from functools import partial

import numpy as np
import pytest

from helpers import ROOT
from vitexplain import explain
from vitexplain.drawing.heatmap import levels_of
from vitexplain.errors import RequestError
from vitexplain.images.reading import open_image
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import load_model
from vitexplain.runs.folder import explain_folder
from vitexplain.settings import Settings

BUNDLED = partial(Settings.of, model="bundled", device="cpu", quiet=True, report=True)
# what the bundled model takes for a koala and an Egyptian cat
TRUTHS = {"koala.jpg": "koala", "cat.jpg": "tabby"}
KOALA, TABBY, EGYPTIAN_CAT = 105, 281, 285


@pytest.fixture
def photos(tmp_path):
    for name, category in TRUTHS.items():
        folder = tmp_path / "photos" / category
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "examples" / name, folder)
    return tmp_path / "photos"


def run(photos, output, **options):
    told = []
    settings = BUNDLED(image_path=(str(photos),), recursive=True, output_dir=str(output), **options)
    report = explain_folder(settings, told.append)
    lines = (output / "results.jsonl").read_text().splitlines()
    return report, {line["name"]: line for line in map(json.loads, lines)}, told


def test_a_mistake_has_the_maps_of_truth_prediction_and_difference(photos, tmp_path):
    report, found, _ = run(photos, tmp_path / "out", truth="folders")
    right, wrong = found["koala/koala.jpg"], found["tabby/cat.jpg"]
    assert (right["correct"], right["truth"]["index"]) == (True, KOALA)
    assert [each["category"]["index"] for each in right["maps"]] == [KOALA]
    assert (wrong["correct"], wrong["truth"]["index"]) == (False, TABBY)
    targets = [
        (each["category"]["index"], [rival["index"] for rival in each.get("against", [])])
        for each in wrong["maps"]
    ]
    assert targets == [(EGYPTIAN_CAT, []), (TABBY, []), (TABBY, [EGYPTIAN_CAT])]
    assert report["accuracy"] == {
        "right": 1, "of": 2, "value": 0.5, "interval": [0.0945, 0.9055],  # Wilson's, by hand
    }  # fmt: skip

    loaded = load_model("bundled")
    method = METHODS["grad_rollout"].make(loaded.model, discard_ratio=0.9)
    tensor = loaded.transform(open_image(photos / "tabby" / "cat.jpg"))[None]
    expected = method.explain(tensor, [TABBY], against=[EGYPTIAN_CAT]).masks[0]
    levels = np.frombuffer(base64.b64decode(wrong["maps"][2]["mask"]), np.uint8)
    assert np.abs(levels - levels_of(expected, signed=True).ravel().astype(int)).max() <= 1
    for each in wrong["maps"]:
        assert (tmp_path / "out" / each["overlay"]).is_file()


@pytest.mark.parametrize(
    "text",
    [
        "file,category\nkoala/koala.jpg,koala\ntabby/cat.jpg,281\n",
        "tabby/cat.jpg;tabby\nkoala/koala.jpg;koala\nnot/there.jpg;koala\n",
        "\ufeffimage\tlabel\ncat.jpg\ttabby\n\nkoala.jpg\tkoala\n",
    ],
)
def test_a_table_of_files_and_categories(photos, tmp_path, text):
    table = photos / "truth.csv"
    table.write_text(text, encoding="utf-8")
    _, found, told = run(photos, tmp_path / "out", truth=str(table), method=("attention_rollout",))
    assert {name: line["truth"]["index"] for name, line in found.items()} == {
        "koala/koala.jpg": KOALA, "tabby/cat.jpg": TABBY,
    }  # fmt: skip
    assert [len(line["maps"]) for line in found.values()] == [1, 1]  # the same for any category
    assert not [notice for notice in told if "true category" in notice]


def test_images_without_a_true_category_are_explained_all_the_same(photos, tmp_path):
    table = photos / "truth.csv"
    table.write_text("cat.jpg,tabby\n", encoding="utf-8")
    report, found, told = run(photos, tmp_path / "out", truth=str(table))
    assert "truth" not in found["koala/koala.jpg"]
    assert report["accuracy"]["of"] == 1
    assert told == ["1 of 2 images have no true category"]


def test_a_changed_table_starts_afresh_and_the_same_one_resumes(photos, tmp_path):
    table = photos / "truth.csv"
    table.write_text("cat.jpg,tabby\n", encoding="utf-8")
    run(photos, tmp_path / "out", truth=str(table))
    report, _, _ = run(photos, tmp_path / "out", truth=str(table))
    assert (report["explained"], report["explained_before"]) == (0, 2)
    assert report["accuracy"]["of"] == 1
    table.write_text("cat.jpg,Egyptian cat\n", encoding="utf-8")
    report, found, _ = run(photos, tmp_path / "out", truth=str(table))
    assert report["explained"] == 2
    assert found["tabby/cat.jpg"]["correct"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat.jpg,tiger kat\n", r"truth.csv, line 1: .*tiger kat"),
        ("cat.jpg,tabby,1\n", r"line 1: a file and its category were due, not 3 cells"),
        ("cat.jpg,tabby\ntabby/cat.jpg,koala\n", "line 2: tabby/cat.jpg has two categories"),
        ("other.jpg,tabby\n", "names none of the 2 images"),
        ("", "names none of the 2 images"),
        (b"cat.jpg,\xff\xfe\n", "no text in UTF-8"),
        (None, "can't be read: No such file or directory; for the names of folders"),
    ],
)
def test_tables_that_cant_be_used(photos, tmp_path, text, reason):
    table = photos / "truth.csv"
    if text is not None:
        table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RequestError, match=reason):
        run(photos, tmp_path / "out", truth=str(table))
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_folders_that_are_no_categories(photos, tmp_path):
    (photos / "tabby").rename(photos / "my cats")
    with pytest.raises(RequestError, match=r"the folder of my cats/cat\.jpg"):
        run(photos, tmp_path / "out", truth="folders")


def test_values_have_no_right_answer(photos, tmp_path):
    with pytest.raises(RequestError, match="no categories to be right in"):
        run(photos, tmp_path / "out", truth="folders", labels="none")


def test_the_call_judges_too(photos):
    paths = [
        photos / "koala" / "koala.jpg",
        photos / "tabby" / "cat.jpg",
        photos / "tabby" / "cat.jpg",
    ]
    found = explain(paths, model="bundled", truth=["koala", TABBY, None])
    assert [each.correct for each in found] == [True, False, None]
    assert [len(each.mistake) for each in found] == [0, 2, 0]
    assert found[1].category.index == EGYPTIAN_CAT
    assert found[1].truth.name.startswith("tabby")
    true, contrast = found[1].mistake
    assert (true.category.index, true.rivals) == (TABBY, ())
    assert [rival.index for rival in contrast.rivals] == [EGYPTIAN_CAT]
    alone = explain(paths[1], TABBY, model="bundled", against=EGYPTIAN_CAT)
    np.testing.assert_allclose(contrast.map, alone.map, atol=1e-5)
    assert not explain(paths[1], model="bundled", truth="tabby").correct
    for wrong in ({"truth": ["koala"]}, {"truth": "no such thing"}):
        with pytest.raises(RequestError):
            explain(paths, model="bundled", **wrong)
    with pytest.raises(RequestError, match="leave category and against out"):
        explain(paths[0], "koala", model="bundled", truth="koala")
