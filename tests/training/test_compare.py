import json

import numpy as np
import pytest
from PIL import Image

from vitexplain.training import compare, train


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for category, colour in {"0207": (200, 30, 30), "grass": (30, 180, 30)}.items():
        folder = tmp_path / "data" / category
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(rng.normal(colour, 40, (64, 64, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.slow
def test_vit_and_cnn_beside_each_other(data, tmp_path, capsys):
    for model in ("test_vit", "test_resnet"):
        arguments = f"--data {data} --output {tmp_path / model} --model {model} --img_size 96"
        arguments += " --epochs 4 --batch_size 8 --lr 3e-3 --ema 0.8"
        assert train.main(arguments.split()) == 0
    capsys.readouterr()
    folders = [str(tmp_path / "test_vit"), str(tmp_path / "test_resnet")]
    output = tmp_path / "out"
    given = ["--data", str(data), "--checkpoints", *folders, "--output", str(output)]
    assert compare.main([*given, "--pictures", "2", "--mosaics", "2", "--confidence", "0.4"]) == 0
    table = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "test_vit",
        "test_resnet",
    ]
    reports = json.loads((output / "comparison.json").read_text())
    for name, maps in {"test_vit": "grad_rollout", "test_resnet": "gradcam"}.items():
        assert reports[name]["accuracy"]["top1"]["value"] >= 0.9
        assert list(reports[name]["mosaics_2"]) == [maps]
        assert reports[name]["milliseconds_per_picture"] > 0
    with Image.open(output / "maps.png") as sheet:  # image, two rollouts, Grad-CAM
        width, height = sheet.size
    assert width == 8 + 4 * (224 + 8)
    assert height > 2 * 224


def test_missing_checkpoint_is_one_line(data, tmp_path, capsys):
    given = ["--data", str(data), "--checkpoints", "nowhere", "--output", str(tmp_path / "out")]
    assert compare.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("compare: ")
    assert error.count("\n") == 1
