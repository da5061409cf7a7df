"""`--evaluate`: the faithfulness measures on the user's own images, and its table."""

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vit_explain
from helpers import ROOT
from vitexplain.drawing.charts import draw_measures
from vitexplain.faithfulness.measures import MEASURES, evaluate_images
from vitexplain.faithfulness.segmentation import SEGMENTED, totals
from vitexplain.faithfulness.table import Measure, as_text
from vitexplain.images.reading import open_image
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import load_model
from vitexplain.training.localisation import map_functions
from vitexplain.training.masks import MaskedImages, on_masks

EXAMPLES = ROOT / "examples"


def run(capsys, *arguments):
    code = vit_explain.main(["--model", "bundled", "--device", "cpu", "--evaluate", *arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("cat.jpg", "dog.jpg"):
        (folder / name).write_bytes((EXAMPLES / name).read_bytes())
    (folder / "broken.jpg").write_bytes((EXAMPLES / "cat.jpg").read_bytes()[:999])
    return folder


@pytest.mark.slow
def test_figures_are_those_of_the_measures(folder, tmp_path, capsys):
    """For the category that is asked for, with the settings that are asked for."""
    code, out, err = run(
        capsys, "--image_path", str(folder), "--method", "rollout", "--head_fusion", "mean",
        "--category", "Pekinese", "--method", "rollout", "relevance", "--output_dir", str(tmp_path),
        "--json", "--img_size", "112",  # a quarter of the patches, the same arithmetic
    )  # fmt: skip
    assert code == 3 and "broken.jpg" in err  # the others were measured
    report = json.loads(out)
    assert (report["pictures"], report["failed"]) == (2, 1)
    assert set(report["methods"]) == {"attention_rollout", "relevance", "random", "centre_blob"}
    loaded = load_model("bundled", img_size=(112, 112))
    images = torch.stack(
        [loaded.transform(open_image(folder / name)) for name in ("cat.jpg", "dog.jpg")]
    )
    methods = {"relevance": METHODS["relevance"]}
    model, std = loaded.model, loaded.transform.std
    values = evaluate_images(model, images, std, methods, [154, 154]).values["relevance"]
    measured = [m for m in MEASURES if "drop" not in m.key]  # its stem sees beyond patches
    assert set(report["methods"]["relevance"]) == {measure.key for measure in measured}
    for measure in measured:
        found = report["methods"]["relevance"][measure.key]
        assert found["better"] == measure.better
        if measure.key != "time":
            assert found["mean"] == pytest.approx(values[measure.key].mean(), abs=1e-4)
    table = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert table.startswith("Means with 95 % intervals by Student's t, of n = 2 images; of ")
    assert "\n\n| method | Faithfulness ↑ | Deletion ↓ (mean) |" in table
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert [Path(path).name for path in written["images"]] == ["cat.jpg", "dog.jpg"]
    each = written["methods"]["relevance"]["deletion_blur"]["values"]
    np.testing.assert_allclose(each, values["deletion_blur"], atol=1e-4)
    assert Image.open(tmp_path / "evaluation.png").width == 1300


def test_table_for_a_terminal():
    measures = [Measure("a", "area of it", "lower"), Measure("t", "time", "higher")]
    values = {
        "one": {"a": np.array([0.25, 0.75]), "t": np.array([1.5])},
        "noise": {"a": np.array([0.1])},
        "two": {"a": np.array([0.25, 0.25]), "t": np.array([1.0])},
    }
    titles = {"one": "method one", "two": "method two", "noise": "noise"}
    lines = as_text(values, measures, titles, baselines=["noise"]).splitlines()
    *_, one, two, noise = (line.split() for line in lines)
    assert one == ["method", "one", "0.500", "1.500*"]
    assert two == ["method", "two", "0.250*", "1.000"]
    assert noise == ["noise", "0.100"]
    start, width = len("method one "), 15
    heads = [
        " ".join(line[start + n * width :][:width].strip() for line in lines[:-3]).split()
        for n in range(2)
    ]
    assert [" ".join(head) for head in heads] == [measure.title for measure in measures]


def test_figure_shows_the_best_in_green_and_baselines_in_grey():
    """Methods from above to below; the interval of equal values is a point at their mean."""
    measures = [Measure("a", "area", "lower"), Measure("b", "other area", "higher")]
    values = {
        "high": {"a": np.full(9, 0.75), "b": np.full(9, 0.75)},
        "noise": {"a": np.zeros(9), "b": np.ones(9)},
        "low": {"a": np.full(9, 0.25), "b": np.full(9, 0.25)},
    }
    titles = {name: name for name in values}
    figure = np.asarray(draw_measures(values, measures, titles, baselines=["noise"])).astype(int)
    panels = np.array_split(figure, 3, axis=1)
    rows = []
    for panel in panels:
        green = np.abs(panel - [0, 0x96, 0x3C]).sum(axis=-1) < 30
        rows.append(np.flatnonzero(green.any(axis=1)).mean() if green.any() else None)
    assert rows[2] is None  # two measures
    assert rows[0] > rows[1]  # "low" wins where lower is better, and stands below "high"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report"], "--evaluate can't be combined with --report"),
        (["--image_path", "nowhere.png"], "nowhere.png"),
        (["--method", "legrad", "--block", "1"], "--block does not apply to LeGrad"),
        (["--category", "no such thing"], "no such thing"),
        (["--masks", "nowhere"], "nowhere is neither a folder nor a zip file"),
        (["--masks", str(EXAMPLES)], "holds no index.csv"),
        (["--masks", "x.zip", "--category", "pug"], "leave out --category"),
        (["--masks", "x.zip", "--against", "auto"], "leave out --against"),
        (["--masks", "x.zip", "--similar_to", "a.png"], "leave out --similar_to"),
    ],
)
def test_wrong_requests(arguments, message, tmp_path, capsys):
    code, out, err = run(capsys, *arguments, "--output_dir", str(tmp_path / "out"))
    assert code == 2 and message in err and out == "" and err.count("\n") == 1
    assert not list(tmp_path.glob("out/evaluation*"))


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """A zip with two photographs and boxes for their objects; of the second no categories."""
    path = tmp_path_factory.mktemp("masks") / "masks.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "index.csv",
            "file,mask,imagenet_indices\nimages/cat.jpg,masks/cat.png,281-285\n"
            "images/broken.jpg,masks/cat.png,\nimages/dog.jpg,masks/dog.png,\n",
        )
        archive.writestr("images/broken.jpg", b"no image")
        for name in ("cat", "dog"):
            archive.write(EXAMPLES / f"{name}.jpg", f"images/{name}.jpg")
            with Image.open(EXAMPLES / f"{name}.jpg") as image:
                truth = np.zeros(image.size[::-1], dtype=np.uint8)
            truth[len(truth) // 4 :, truth.shape[1] // 3 :] = 1
            buffer = io.BytesIO()
            Image.fromarray(truth).save(buffer, "PNG")
            archive.writestr(f"masks/{name}.png", buffer.getvalue())
    return path


def test_masks_alone(masks, tmp_path, capsys):
    """Their columns, as the measures give them; nothing is removed from the default image."""
    code, out, err = run(
        capsys, "--masks", str(masks), "--method", "relevance", "rollout", "--output_dir",
        str(tmp_path), "--json", "--img_size", "112", "--head_fusion", "mean",
    )  # fmt: skip
    assert code == 3 and "skipped: images/broken.jpg is not an image" in err
    report = json.loads(out)
    assert (report["pictures"], report["failed"], report["images"]) == (0, 1, [])
    assert report["masks"]["data"] == str(masks)
    assert report["masks"]["images"] == ["images/cat.jpg", "images/dog.jpg"]
    assert list(report["methods"]) == ["relevance", "attention_rollout", "random", "centre_blob"]
    loaded, data = load_model("bundled", img_size=(112, 112)), MaskedImages(masks)
    fused = {"relevance": METHODS["relevance"], "mean": METHODS["attention_rollout"]}
    fused["mean"] = dataclasses.replace(fused["mean"], defaults={"head_fusion": "mean"})
    found = dict(on_masks(map_functions(fused, loaded.model), loaded, data, data.names))
    for name, ours in (("relevance", "relevance"), ("attention_rollout", "mean")):
        columns = report["methods"][name]
        assert set(columns) == {measure.key for measure in SEGMENTED}
        for key, column in columns.items():
            each = [values[ours][key] for values in found.values()]
            assert column["values"] == pytest.approx(each, abs=1e-5)
    counts = {
        key: np.array([values["mean"][key] for values in found.values()])
        for key in found["images/cat.jpg"]["mean"]
    }
    totals_of = report["masks"]["totals"]["attention_rollout"]
    assert totals_of == pytest.approx(totals(counts), abs=1e-5)
    text = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert "of n = 2 images with masks" in text and "Deletion" not in text
    assert f"| relevance | {report['masks']['totals']['relevance']['pixel_accuracy']:.3f} |" in text
    assert Image.open(tmp_path / "evaluation.png").width == 1300


@pytest.mark.slow
def test_masks_beside_images(masks, folder, tmp_path, capsys):
    """Two tables, one figure; slow methods are measured on masks only if they are named."""
    code, out, err = run(
        capsys, "--masks", str(masks), "--image_path", str(folder / "cat.jpg"), "--method",
        "rollout", "--img_size", "64", "--output_dir", str(tmp_path),
    )  # fmt: skip
    assert code == 3 and "1 images and 2 images with masks" in out
    assert "hundred passes" not in err
    report = json.loads((tmp_path / "evaluation.json").read_text())
    # tokens of the bundled model see beyond their patches: none can be left out
    measures = [m for m in (*MEASURES, *SEGMENTED) if "drop" not in m.key]
    keys = {measure.key for measure in measures}
    assert all(set(columns) == keys for columns in report["methods"].values())
    assert report["methods"]["random"]["ap"]["n"] == 2
    text = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert text.index("| method | Faithfulness") < text.index("| method | Pixel accuracy")


def test_slow_methods_are_left_out_of_masks_unless_named(masks, tmp_path, capsys):
    code, out, err = run(
        capsys, "--masks", str(masks), "--img_size", "64", "--output_dir", str(tmp_path), "--json"
    )
    assert code == 3 and "--masks: without integrated gradients and occlusion" in err
    quick = {name for name, method in METHODS.items() if not method.slow}
    assert set(json.loads(out)["methods"]) == quick | {"random", "centre_blob"}


def test_masks_are_thinned_out_evenly(masks, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vitexplain.runs.evaluation.MOST", 2)
    code, out, err = run(
        capsys, "--masks", str(masks), "--img_size", "64", "--output_dir", str(tmp_path), "--json",
        "--method", "rollout",
    )  # fmt: skip
    assert code == 3 and "measuring on 2 of 3 images with masks" in err
    assert json.loads(out)["masks"]["images"] == ["images/cat.jpg"]  # the second is broken
