"""Why A and not B, by the command: on `both.png`, a dog is on the left and a cat on the right."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from vit_explain import main
from vitexplain import explain
from vitexplain.drawing.heatmap import AGAINST, FOR, draw_overlay

BOTH = str(ROOT / "examples" / "both.png")
DOG, CAT = 243, 282


def run(folder, *arguments):
    given = ["--image_path", BOTH, "--model", "bundled", "--output_dir", str(folder)]
    return main([*given, *arguments])


def halves(mask):
    middle = mask.shape[1] // 2
    return mask[:, :middle].sum(), mask[:, middle:].sum()


@pytest.mark.parametrize("method", ["grad_rollout", "relevance", "gradcam", "attnlrp"])
def test_each_side_lies_on_its_animal(method, tmp_path, capsys):
    assert run(tmp_path, "--category", "bull mastiff", "--against", "tiger cat", "--method", method,
               "--save_mask", "--json") == 0  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    assert report["method"]["category"]["index"] == DOG
    assert [each["index"] for each in report["method"]["against"]] == [CAT]
    mask = np.load(report["files"]["mask"])
    left, right = halves(mask)
    assert left > 0 > right
    assert np.abs(mask).max() == 1
    with Image.open(report["files"]["overlay"]) as overlay:
        assert overlay.text["Against"] == "282 tiger cat"
        assert overlay.text["Category"].startswith("243 bull mastiff")
        drawn = np.asarray(overlay, dtype=float) - np.asarray(Image.open(BOTH).convert("RGB"))
    redder = drawn[..., 0] - drawn[..., 2]
    left, right = halves(redder)
    assert left > 0 > right


def test_it_is_the_call_in_python(tmp_path):
    assert run(tmp_path, "--category_index", str(DOG), "--against", str(CAT), "--save_mask",
               "--quiet") == 0  # fmt: skip
    found = explain(BOTH, DOG, against="tiger cat", model="bundled")
    (mask,) = tmp_path.glob("*.npy")
    assert mask.name == "both_grad_rollout_243_against_282_0.900_mean.npy"
    assert np.array_equal(np.load(mask), found.map)
    assert [each.index for each in found.rivals] == [CAT]
    overlay = np.asarray(Image.open(mask.with_suffix(".png")))
    assert np.array_equal(overlay, np.asarray(found.overlay()))


def test_colours_and_what_is_seen_through_them():
    image = Image.new("RGB", (60, 20), (100, 100, 100))
    mask = np.array([[-1.0, 0.0, 1.0]], np.float32)
    whole = np.asarray(draw_overlay(image, mask, alpha=1.0, signed=True))
    assert (whole[10, 2] == AGAINST).all() and (whole[10, 57] == FOR).all()
    middle = np.abs(whole[10, 28:32].astype(int) - 100).max()
    assert middle < 25 < np.abs(whole[10, 20].astype(int) - 100).max()  # the 0 is between pixels
    half = np.asarray(draw_overlay(image, mask, alpha=0.5, signed=True)).astype(int)
    assert np.abs(half[10, 57] - (0.25 * 100 + 0.75 * np.array(FOR))).max() <= 1
    assert np.array_equal(np.asarray(draw_overlay(image, mask, alpha=0, signed=True)), image)
    all_for = np.full((2, 2), 0.5, np.float32)  # not stretched: nothing speaks against it
    drawn = np.asarray(draw_overlay(image, all_for, alpha=1.0, signed=True)).astype(int)
    assert np.abs(drawn - (0.5 * 100 + 0.5 * np.array(FOR))).max() <= 2


@pytest.mark.slow
def test_a_folder_its_results_and_its_report(tmp_path):
    images = [str(ROOT / "examples" / f"{name}.jpg") for name in ("cat", "dog")]
    assert main(["--image_path", BOTH, *images, "--model", "bundled", "--against", "tiger cat",
                 "tabby", "--category", "top", "--report", "--quiet",
                 "--output_dir", str(tmp_path)]) == 0  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    by_name = {line["name"]: line["maps"][0] for line in lines}
    for found in by_name.values():
        others = [each["index"] for each in found["against"]]
        assert found["category"]["index"] not in others
        grey = np.frombuffer(base64.b64decode(found["mask"]), np.uint8)
        assert grey.max() == 255 or grey.min() == 1  # -1 to 1, 128 being 0
    # a tiger cat is what both.png is taken for: the rest of the two is what it is set against
    assert [each["index"] for each in by_name["both.png"]["against"]] == [281]
    assert [each["index"] for each in by_name["dog.jpg"]["against"]] == [CAT, 281]
    page = (tmp_path / "report.html").read_text()
    assert "for the others" in page and '"against":[{"index":282' in page


@pytest.mark.slow
def test_comparing_measures_the_contrast(tmp_path, capsys):
    """A rollout, which knows no sides, does not tell them apart."""
    assert run(tmp_path, "--category_index", str(DOG), "--against", str(CAT), "--compare",
               "--method", "rollout", "gradcam", "--json") == 0  # fmt: skip
    rollout, gradcam = json.loads(capsys.readouterr().out)["maps"]
    assert gradcam["faithfulness"] > 0.5 > 0.2 > rollout["faithfulness"]
    assert gradcam["most_faithful"] and "against" not in rollout
    with Image.open(tmp_path / "both_compare.png") as sheet:
        assert sheet.width > 3 * 224


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--category_index", "5", "--against", "5"], "can't be set against itself"),
        (["--against", "zebrax"], "no category is called 'zebrax'"),
        (["--against", "1000"], "category 1000 is out of range"),
        (["--against", "auto", "282"], "--against auto stands alone"),
        (["--method", "rollout", "--against", "auto"], "leave --against out"),
        (["--against", "auto", "--as_published"], "does not apply to --as_published"),
        (["--anatomy", "--against", "auto"], "--anatomy can't be combined with --against"),
    ],
)
def test_wrong_requests(arguments, message, tmp_path, capsys):
    assert run(tmp_path / "out", *arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("out/*.png"))


def test_methods_are_evaluated_on_the_contrast(tmp_path, capsys):
    """The share of the two categories' probabilities takes the place of the probability."""
    measured = {}
    for against in ([], ["--against", "tiger cat"]):
        assert run(tmp_path, "--evaluate", "--category", "bull mastiff", "--method", "gradcam",
                   "--json", *against) == 0  # fmt: skip
        report = json.loads(capsys.readouterr().out)
        measured[len(against)] = report["methods"]["gradcam"]
        assert report["against"] == against[1:]
    alone, contrast = (measured[n]["insertion_mean"]["mean"] for n in (0, 2))
    assert contrast > 2 * alone  # a share of two is above that of a thousand
