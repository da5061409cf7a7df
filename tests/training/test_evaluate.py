import io
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from vitexplain.faithfulness.segmentation import SEGMENTED
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import load_model
from vitexplain.training.evaluate import main
from vitexplain.training.localisation import map_functions
from vitexplain.training.masks import MaskedImages, on_masks

INDEX = {"cat.jpg": 285, "coffee.jpg": 967, "koala.jpg": 105, "panda.jpg": 388, "macaw.jpg": 88}


@pytest.fixture
def data(tmp_path):
    """Five example photographs by index, one of them in a wrong folder too, one broken."""
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, index in INDEX.items():
            archive.write(ROOT / "examples" / name, f"{index:04}/{name}")
        archive.write(ROOT / "examples" / "koala.jpg", "0001/koala.jpg")
        archive.writestr("0002/broken.jpg", b"no image")
        archive.writestr(
            "boxes.csv", "file,imagenet_index,x0,y0,x1,y1\n0105/koala.jpg,105,150,150,500,700\n"
        )
    return path


def test_report(data, tmp_path, capsys):
    output = tmp_path / "evaluation"
    arguments = ["--data", str(data), "--model", "bundled", "--output", str(output), "--json"]
    assert main([*arguments, "--mosaics", "2", "--confidence", "0.1"]) == 0
    captured = capsys.readouterr()
    assert "skipped: 0002/broken.jpg" in captured.err
    report = json.loads(captured.out)
    assert report == json.loads((output / "report.json").read_text())
    assert report["pictures"] == 6
    assert report["accuracy"]["top1"]["right"] == 5
    assert report["accuracy"]["top1"]["value"] == pytest.approx(5 / 6)
    assert set(report["boxes"]) == {"rollout", "grad_rollout", "centre_blob"}
    assert report["boxes"]["grad_rollout"]["energy"] > 0.5
    assert report["boxes"]["grad_rollout"]["pointing"] == 1
    for cells, chance in ((2, 0.5), (4, 0.25)):
        figures = report[f"mosaics_{cells}"]["grad_rollout"]
        assert figures["maps"] == 2 * cells
        assert figures["in_right_cell"] > 1.5 * chance
    rows = (output / "categories.csv").read_text().splitlines()
    assert rows[0] == "index,category,pictures,top1,mean_probability"
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "88", "105", "285", "388", "967"]
    shares = report["methods"]["grad_rollout"]["mosaic_4"]  # one value for each mosaic
    assert len(shares["values"]) == len(report["images"]["mosaics_4"]) == 2
    assert np.mean(shares["values"]) == pytest.approx(
        report["mosaics_4"]["grad_rollout"]["in_right_cell"]
    )
    boxed = report["methods"]["centre_blob"]["energy"]
    assert boxed["values"] == [pytest.approx(report["boxes"]["centre_blob"]["energy"])]
    energies = {name: found["energy"] for name, found in report["boxes"].items()}
    best = max(("rollout", "grad_rollout"), key=energies.get)
    behind = energies["centre_blob"] - energies[best]
    assert boxed["behind_best"]["mean"] == pytest.approx(behind)
    assert report["images"]["boxes"] == ["0105/koala.jpg"]
    assert "masks" not in report
    assert "| Pointing ↑ | Energy ↑ | Mosaic of 2 ↑ |" in (output / "maps.md").read_text("utf-8")
    text = (output / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("<img ") == 1 + 1 + 2 + 2  # confusion, the box, mosaics of two sizes
    assert "of the map in the box" in text
    assert "the brightest patch lies in the box in 100% of 1 images" in report["boxes_in_words"][1]
    with Image.open(output / "confusion.png") as image:
        assert np.asarray(image).std() > 10


def add_masks(path):
    """Add masks beside the folders: of a labelled image, and of one without a label."""
    truth = np.zeros((60, 80), dtype=np.uint8)
    truth[20:50, 10:40] = 1
    with Image.open(ROOT / "examples" / "koala.jpg") as image:
        large = Image.fromarray(truth).resize(image.size, Image.Resampling.NEAREST)
    files = {
        "masks/k.png": large,
        "masks/a.png": Image.fromarray(truth),
        "images/a.png": Image.fromarray(truth * 200),
    }
    with zipfile.ZipFile(path, "a") as archive:
        rows = ["file,mask", "0105/koala.jpg,masks/k.png", "images/a.png,masks/a.png"]
        archive.writestr("index.csv", "\n".join(rows))
        for name, image in files.items():
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            archive.writestr(name, buffer.getvalue())
    return path


def test_masks_beside_boxes(data, tmp_path, capsys):
    """They are no labelled images; maps are measured on them as on_masks does."""
    add_masks(data)
    arguments = ["--data", str(data), "--model", "bundled", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--json", "--mosaics", "0"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pictures"] == 6
    assert report["images"]["masks"] == ["0105/koala.jpg", "images/a.png"]
    loaded, images = load_model("bundled"), MaskedImages(data)
    maps = map_functions({"grad_rollout": METHODS["grad_rollout"]}, loaded.model)
    found = dict(on_masks(maps, loaded, images, images.names))
    each = [values["grad_rollout"] for values in found.values()]
    for measure in SEGMENTED:
        values = report["methods"]["grad_rollout"][measure.key]["values"]
        assert values == pytest.approx([one[measure.key] for one in each], abs=1e-5)
    pixels = sum(one["true_positive"] + one["true_negative"] for one in each) / (2 * 224 * 224)
    total = report["masks"]["totals"]["grad_rollout"]["pixel_accuracy"]
    assert total == pytest.approx(pixels, abs=1e-5)
    assert set(report["masks"]["totals"]) == {"rollout", "grad_rollout", "random", "centre_blob"}
    assert report["mosaics_2"] == {} and set(report["boxes"]["rollout"]) >= {"pointing", "energy"}


def test_masks_of_other_data(data, tmp_path, capsys):
    masks = add_masks(tmp_path / "masks.zip")
    output = tmp_path / "out"
    arguments = ["--data", str(data), "--masks", str(masks), "--model", "bundled"]
    assert main([*arguments, "--output", str(output), "--mosaics", "0"]) == 0
    captured = capsys.readouterr()
    assert "masks.zip holds no 0105/koala.jpg" in captured.err
    assert "Maps on 1 images with boxes, 1 images with masks" in captured.out
    assert json.loads((output / "report.json").read_text())["images"]["masks"] == ["images/a.png"]


def test_masks_without_labels_are_for_the_other_command(tmp_path, capsys):
    masks = add_masks(tmp_path / "masks.zip")
    assert main(["--data", str(masks), "--model", "bundled", "--output", str(tmp_path / "o")]) == 2
    assert "there is vit_explain.py --evaluate --masks" in capsys.readouterr().err


def test_held_out_keeps_index_modulo_5_equal_1(data, tmp_path, capsys):
    arguments = ["--data", str(data), "--model", "bundled", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--held_out", "--json", "--mosaics", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 1  # 0001 only


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "neither a folder nor a zip file"),
        (["--model", "resnet1"], "no model called resnet1"),
        (["--masks", "nowhere"], "nowhere is neither a folder nor a zip file"),
    ],
)
def test_errors_are_one_line(data, tmp_path, capsys, arguments, message):
    defaults = ["--data", str(data), "--model", "bundled", "--output", str(tmp_path / "out")]
    assert main([*defaults, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
