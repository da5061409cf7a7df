"""benchmarks.candidates on a small random model and the example photographs."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import candidates, pages
from helpers import ROOT, make_vit
from vitexplain.faithfulness.measures import evaluate_images
from vitexplain.images.reading import open_image
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import LoadedModel
from vitexplain.models.transform import InputTransform
from vitexplain.training.localisation import map_functions
from vitexplain.training.masks import MaskedImages, on_masks

IMAGES = ["cat", "coffee", "koala", "panda"]
FIVE = candidates.FIVE


@pytest.fixture
def loaded(monkeypatch):
    half = (0.5, 0.5, 0.5)
    transform = InputTransform((32, 32), half, half)
    loaded = LoadedModel(make_vit(), "tiny", transform, [f"category {i}" for i in range(7)])
    monkeypatch.setattr(pages, "load_model", lambda *_, **__: loaded)
    return loaded


@pytest.fixture
def data(tmp_path):
    """Photographs by category, and two of them with a mask."""
    photos, masks = tmp_path / "photos.zip", tmp_path / "masks.zip"
    with zipfile.ZipFile(photos, "w") as archive:
        for label, name in enumerate(IMAGES):
            archive.write(ROOT / "examples" / f"{name}.jpg", f"{label:04}/{name}.jpg")
    with zipfile.ZipFile(masks, "w") as archive:
        archive.writestr(
            "index.csv", "file,mask\n" + "".join(f"{name}.jpg,{name}.png\n" for name in IMAGES[:2])
        )
        for name in IMAGES[:2]:
            archive.write(ROOT / "examples" / f"{name}.jpg", f"{name}.jpg")
            width, height = open_image(ROOT / "examples" / f"{name}.jpg").size
            truth = np.zeros((height, width), dtype=np.uint8)
            truth[: height // 2, width // 3 :] = 1
            buffer = io.BytesIO()
            Image.fromarray(truth).save(buffer, "PNG")
            archive.writestr(f"{name}.png", buffer.getvalue())
    return photos, masks


def test_the_table_is_that_of_maps_by_hand(loaded, data, tmp_path, capsys):
    photos, masks = data
    page, values = tmp_path / "page.md", tmp_path / "values.jsonl"
    begin, end = candidates.markers("tiny")
    page.write_text(f"a\n{begin}\nold\n{end}\nb\n")
    given = ["--data", str(photos), "--masks", str(masks), "--candidates", "relevance_later"]
    given += ["--pictures", "4", "--masked", "2", "--values", str(values), "--write", str(page)]
    assert candidates.main(given) == 0
    table = capsys.readouterr().out.strip()
    assert page.read_text(encoding="utf-8") == f"a\n{begin}\n{table}\n{end}\nb\n"
    (row,) = [line for line in table.splitlines() if line.startswith("| relevance of the later")]
    _, other, *cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert other == "relevance"
    names = [json.loads(line)["image"] for line in values.read_text().splitlines()[1:]]
    images = np.random.default_rng(0).permutation(4)
    assert names[:4] == [f"{i:04}/{IMAGES[i]}.jpg" for i in images]
    tensors = [loaded.transform(open_image(ROOT / "examples" / f"{IMAGES[i]}.jpg")) for i in images]
    methods = {
        "later": candidates.ALL["relevance_later"],
        "relevance": METHODS["relevance"],
    }
    found = evaluate_images(
        loaded.model, torch.stack(tensors), (0.5, 0.5, 0.5), methods, few=1, fills=("mean", "blur")
    ).values
    gain = found["later"]["faithfulness"] - found["relevance"]["faithfulness"]
    pairs = on_masks(map_functions(methods, loaded.model), loaded, MaskedImages(masks), names[4:])
    ious = [of["later"]["foreground_iou"] - of["relevance"]["foreground_iou"] for _, of in pairs]
    expected = [gain[[0, 2]].mean(), gain[[1, 3]].mean(), *ious]
    assert [float(cell) for cell in cells] == pytest.approx(expected, abs=1e-3)
    assert len(set(cells)) > 1


def test_the_table_has_all_that_is_kept(loaded, data, tmp_path, capsys):
    """A candidate that is measured on fewer images says so."""
    given = ["--data", str(data[0]), "--values", str(tmp_path / "values.jsonl")]
    candidates.main([*given, "--candidates", "cdam", "--pictures", "2"])
    own = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| CDAM")]
    candidates.main([*given, "--candidates", "relevance_later", "--pictures", "4"])
    text = capsys.readouterr().out
    assert "explored, n = 2 | Faithfulness, confirmed, n = 2 |" in text
    assert "| relevance of the later blocks | relevance |" in text
    assert own[0].replace(" |", ", n = 1 |").split(" | ")[2:] == [
        cell
        for line in text.splitlines()
        if line.startswith("| CDAM")
        for cell in line.split(" | ")[2:]
    ]


def test_what_is_kept_is_not_measured_again(loaded, data, tmp_path, capsys, monkeypatch):
    given = ["--data", str(data[0]), "--candidates", "relevance_later", "--pictures", "2"]
    given += ["--values", str(tmp_path / "values.jsonl")]
    assert candidates.main(given) == 0
    first = capsys.readouterr().out

    def fails(*_):
        raise AssertionError

    monkeypatch.setattr(candidates.evidence, "_remove", fails)
    assert candidates.main(given) == 0
    assert capsys.readouterr().out == first


def answers_of(gain, name="cdam"):
    """Grad-CAM, the best of the five, at random, and a candidate that is better by `gain`."""
    rng = np.random.default_rng(0)
    values = {each: rng.normal(size=len(gain)) for each in FIVE}
    values["gradcam"] = values["gradcam"] + 5
    return {"faithfulness": values | {name: values["gradcam"] + gain}}


def rows_of(answers):
    lines = candidates.as_text("Tiny.", answers, {}).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]


def test_halves_are_every_other_image_and_bold_is_better():
    """In the confirming half it is surely better; in the exploring one it is not."""
    gain = np.empty(24)
    gain[0::2] = np.tile([-0.2, 0.1], 6)
    gain[1::2] = np.tile([0.2, 0.4], 6)
    head, _, own, best = rows_of(answers_of(gain))
    assert head[2:] == ["Faithfulness, explored, n = 12", "Faithfulness, confirmed, n = 12"]
    assert own[:2] == ["CDAM", "Grad-CAM"]
    assert best[:2] == ["", "the best single method"]
    assert own[2:] == best[2:]  # Grad-CAM is the best single one
    half = 2.2010 * 0.15 * np.sqrt(12 / 11) / np.sqrt(12)  # Student's, of 11 degrees of freedom
    assert own[2] == f"-0.050 [{-0.05 - half:+.3f}, {-0.05 + half:+.3f}]"
    half *= 0.1 / 0.15
    assert own[3] == f"**+0.300 [{0.3 - half:+.3f}, {0.3 + half:+.3f}]**"


def test_images_that_were_not_measured_do_not_count():
    gain = np.full(24, 0.1)
    gain[5::2] = np.nan
    _, _, own, _ = rows_of(answers_of(gain))
    assert own[2].startswith("**+0.100 [")
    assert own[3] == "+0.100, n = 2"  # too few for an interval


def test_the_best_single_method_is_that_of_the_explored_images():
    values = {name: np.zeros(4) for name in FIVE}
    values["legrad"] = np.array([1.0, 0, 1, 0])
    values["relevance"] = np.array([0.0, 9, 0, 9])
    assert candidates.best_single(values) == "legrad"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data", "nowhere"], "neither a folder nor a zip"),
        (["--steps", "7"], "--steps must be a multiple of 10, not 7"),
        (["--pictures", "0"], "nothing to compare: no image for faithfulness was measured"),
    ],
)
def test_errors_are_one_line(loaded, data, capsys, given, message):
    assert candidates.main(["--data", str(data[0]), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(re.findall("\n", error)) == 1
