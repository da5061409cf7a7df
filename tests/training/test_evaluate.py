import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from vitexplain.training.evaluate import main

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
    text = (output / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("<img ") == 1 + 1 + 2 + 2  # confusion, the box, mosaics of two sizes
    assert "of the map in the box" in text
    assert "the brightest patch lies in the box in 100% of 1 images" in report["boxes_in_words"][1]
    with Image.open(output / "confusion.png") as image:
        assert np.asarray(image).std() > 10


def test_held_out_keeps_index_modulo_5_equal_1(data, tmp_path, capsys):
    arguments = ["--data", str(data), "--model", "bundled", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--held_out", "--json", "--mosaics", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 1  # 0001 only


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "neither a folder nor a zip file"),
        (["--model", "resnet1"], "no model called resnet1"),
    ],
)
def test_errors_are_one_line(data, tmp_path, capsys, arguments, message):
    defaults = ["--data", str(data), "--model", "bundled", "--output", str(tmp_path / "out")]
    assert main([*defaults, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
