"""Several methods beside each other: which maps, which of them is marked, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import vit_explain
from helpers import ROOT
from vitexplain.drawing.comparison import draw_compare
from vitexplain.explainer import TIE, Category, Map, most_faithful, unbeaten, with_faithfulness
from vitexplain.methods.registry import METHODS
from vitexplain.words import UNBEATEN

DOG = Category(1, "dog, canis", 0.5)
CAT = Category(2, "cat", 0.25)
BOTH = str(ROOT / "examples" / "both.png")


def a_map(method, category=None, faithfulness=None, mask=None):
    mask = np.eye(4, dtype=np.float32) if mask is None else mask
    return Map(mask, category, {"name": method}, faithfulness)


def test_the_most_faithful_of_each_category():
    maps = [
        a_map("attention_rollout", None, 0.3),
        a_map("legrad", DOG, 0.2),
        a_map("legrad", CAT, 0.1),
        a_map("gradcam", DOG, -0.2),
        a_map("gradcam", CAT, 0.4),
    ]
    assert most_faithful(maps) == {0, 4}  # rollout stands in the first category's row


def test_a_lead_within_the_noise_of_one_image_is_none():
    maps = [a_map("legrad", DOG, value) for value in (0.2, 0.3, 0.309)]
    assert most_faithful(maps) == set()
    assert most_faithful(maps[:2]) == {1}


def test_maps_of_no_category_are_held_to_the_first():
    asked = []

    def measure(maps):
        asked.extend(target for _, target in maps)
        return [float(mask.sum()) for mask, _ in maps]

    maps = [a_map("attention_rollout"), a_map("legrad", CAT)]
    assert [m.faithfulness for m in with_faithfulness(maps, measure, top1=7)] == [4.0, 4.0]
    with_faithfulness(maps[:1], measure, top1=7)
    assert asked == [2, 2, 7]


def test_patches_are_ranked_by_signed_scores_where_the_mask_is_clamped():
    scores = np.array([[0.5, -0.1], [-0.4, 1.0]], np.float32)
    clamped = replace(a_map("gradcam", DOG, mask=scores.clip(min=0)), scores=scores)
    asked = []

    def measure(maps):
        asked.extend(mask for mask, _ in maps)
        return [0.0] * len(maps)

    with_faithfulness([clamped, a_map("legrad", DOG)], measure, top1=1)
    assert np.array_equal(asked[0], scores) and np.array_equal(asked[1], np.eye(4))


def test_baselines_are_measured_once_for_each_target():
    asked = []

    def measure(maps):
        asked.extend((float(mask.sum()), target) for mask, target in maps)
        return [mask.sum() / 100 * target for mask, target in maps]

    maps = [a_map("attention_rollout"), a_map("legrad", DOG), a_map("legrad", CAT)]
    baselines = [np.full((4, 4), 0.5), np.full((4, 4), 0.25)]
    found = with_faithfulness(maps, measure, 7, baselines)
    assert asked[3:] == [(8.0, 1), (4.0, 1), (8.0, 2), (4.0, 2)]
    assert [each.faithfulness for each in found] == pytest.approx([0.04, 0.04, 0.08])
    assert [each.baseline for each in found] == pytest.approx([0.08, 0.08, 0.16])


def test_who_does_not_beat_the_baselines_is_not_marked():
    below, tied, above = (
        replace(a_map("legrad", DOG, value), baseline=0.2) for value in (0.1, 0.2 + TIE / 2, 0.3)
    )
    assert [each.beats_baselines for each in (below, tied, above)] == [False, False, True]
    assert most_faithful([below, above]) == {1} and not unbeaten([below, above])
    assert most_faithful([below, tied]) == most_faithful([tied]) == set()
    assert unbeaten([below, tied]) and not unbeaten([a_map("legrad", DOG, -0.5)])


def test_sheet_says_that_no_map_beats_the_baselines(monkeypatch):
    said = []
    monkeypatch.setattr(
        "vitexplain.drawing.comparison.draw_sheet",
        lambda cells, *_: (
            said.extend(caption for row in cells for caption, _ in row)
            or Image.new("RGB", (300, 300))
        ),
    )
    image = Image.new("RGB", (100, 100))
    for value, expected in ((0.1, 1), (0.9, 0)):
        said.clear()
        maps = [replace(a_map("legrad", DOG, value), baseline=0.2)]
        draw_compare(image, maps, lambda _: image.copy())
        assert sum(UNBEATEN in caption for caption in said) == expected


def test_sheet_has_a_row_for_each_category_and_marks_the_best():
    image = Image.new("RGB", (100, 100))
    white, grey = np.ones((4, 4), np.float32), np.full((4, 4), 0.5, np.float32)

    def draw(found):
        return Image.new("RGB", (100, 100), (int(255 * found.mask[0, 0]),) * 3)

    maps = [
        a_map("attention_rollout", None, 0.3, white),
        a_map("legrad", DOG, 0.2, grey),
        a_map("legrad", CAT, 0.1, grey),
    ]
    sheet = np.asarray(draw_compare(image, maps, draw))
    height, width = sheet.shape[:2]
    cells = [
        [np.s_[y * height // 2 : (y + 1) * height // 2, x * width // 3 : (x + 1) * width // 3]
         for x in range(3)] for y in range(2)
    ]  # fmt: skip

    def has(row, column, color):
        return bool((sheet[cells[row][column]] == color).all(axis=-1).sum() > 500)

    green = (0, 150, 60)
    assert has(0, 1, green) and not has(0, 2, green) and has(1, 2, green)
    assert has(0, 2, (127,) * 3) and has(1, 2, (127,) * 3)
    assert not has(1, 1, green) and not has(1, 1, (127,) * 3)  # rollout: only in the first row


def run(capsys, *arguments):
    code = vit_explain.main(["--model", "bundled", *arguments])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_compare_draws_every_method(tmp_path, capsys):
    code, out, err = run(capsys, "--image_path", BOTH, "--compare", "--output_dir", str(tmp_path),
                         "--json")  # fmt: skip
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [found["method"]["name"] for found in report["maps"]] == list(METHODS)
    best = [found["faithfulness"] for found in report["maps"] if found["most_faithful"]]
    second, first = sorted(found["faithfulness"] for found in report["maps"])[-2:]
    assert best == ([first] if first - second > TIE else [])
    assert {f["category"]["index"] for f in report["maps"] if f["category"]} == {
        report["top"][0]["index"]
    }
    with Image.open(tmp_path / "both_compare.png") as sheet:
        cells = 1 + len(METHODS)  # of 224 x 112 pixels, and their captions
        assert sheet.width * sheet.height > cells * 224 * 112


@pytest.mark.slow
def test_several_methods_of_a_folder_are_marked_in_its_results(tmp_path, capsys):
    small = tmp_path / "in"
    small.mkdir()
    Image.open(BOTH).crop((0, 0, 200, 200)).save(small / "dog.png")
    methods = ["relevance", "rollout", "gradcam"]
    output = tmp_path / "out"
    code, _, err = run(capsys, "--image_path", str(small), "--compare", "--method", *methods,
                       "--top_k", "2", "--output_dir", str(output))  # fmt: skip
    assert (code, err) == (0, "")
    (line,) = (output / "results.jsonl").read_text().splitlines()
    maps = json.loads(line)["maps"]
    assert len(maps) == 5 and len({found["overlay"] for found in maps}) == 5
    first = [m for m in maps if m["category"] in (None, json.loads(line)["top"][0])]
    second = [m for m in maps if m not in first]
    for several in (first, second):
        second, best = sorted([-1] + [found["faithfulness"] for found in several])[-2:]
        assert [found["most_faithful"] for found in several] == [
            found["faithfulness"] == best > second + TIE for found in several
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "rollup"], "unknown method 'rollup'; choose from attention_rollout"),
        (["--method", "rollout", "--category", "pug"], "the same for every category"),
        (["--method", "legrad", "--head", "1"], "--head does not apply to LeGrad"),
        (["--method", "attention", "--block", "99"], "block must be from 0 to"),
        (["--compare", "--sweep", "discard_ratio=0"], "--sweep can't be combined with --compare"),
        (["--compare", "--head", "44"], "head must be from 0 to 3, not 44"),
    ],
)
def test_wrong_requests(arguments, message, tmp_path, capsys):
    try:
        code, out, err = run(capsys, *arguments, "--output_dir", str(tmp_path / "out"))
    except SystemExit as error:
        code, (out, err) = error.code, capsys.readouterr()
    assert code == 2 and message in err and out == "" and err.count("\n") == 1
    assert not list(tmp_path.glob("out/*.png"))
