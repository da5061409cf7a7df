"""benchmarks.faithfulness on a small random model and the example photographs."""

import json
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import faithfulness
from helpers import ROOT, make_vit
from vitexplain.faithfulness.baselines import centre_blob
from vitexplain.faithfulness.measures import ALL
from vitexplain.images.reading import open_image
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import LoadedModel
from vitexplain.models.transform import InputTransform
from vitexplain.training.data import LabelledImages
from vitexplain.training.localisation import cell_share, in_box, map_functions, mosaic

METHOD_NAMES = ["attention_rollout", "grad_rollout", "random", "centre_blob"]
IMAGES = ["cat", "coffee", "koala", "panda", "macaw", "dog"]


@pytest.fixture
def loaded():
    transform = InputTransform((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return LoadedModel(make_vit(), "tiny", transform, [f"category {i}" for i in range(7)])


@pytest.fixture
def data(tmp_path):
    """Six photographs in six categories, two of them with a box."""
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for label, name in enumerate(IMAGES):
            archive.write(ROOT / "examples" / f"{name}.jpg", f"{label:04}/{name}.jpg")
        archive.writestr(
            "boxes.csv",
            "file,imagenet_index,x0,y0,x1,y1\n"
            "0002/koala.jpg,2,150,150,500,700\n"
            "0003/panda.jpg,3,10,20,200,210\n",
        )
    return path


def test_benchmark_writes_table_json_and_figure(loaded, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(faithfulness, "load_model", lambda *_, **__: loaded)
    # a random model is right about nothing
    monkeypatch.setattr(faithfulness, "confident", lambda labels, *_: np.arange(len(labels)))
    readme, figure, report = (tmp_path / name for name in ("README.md", "s.png", "r.json"))
    begin, end = faithfulness.markers("tiny")
    other, its_end = faithfulness.markers("another")
    readme.write_text(f"a\n{begin}\nold\n{end}\nb\n{other}\nits own\n{its_end}\n")
    given = ["--data", str(data), "--boxes", str(data), "--methods", *METHOD_NAMES]
    given += ["--pictures", "3", "--few", "2", "--mosaics", "2", "--boxed", "2"]
    given += ["--write", str(readme), "--json", str(report), "--figure", str(figure)]
    assert faithfulness.main(given) == 0
    printed = capsys.readouterr().out
    text = readme.read_text(encoding="utf-8")
    assert text == f"a\n{begin}\n{printed}{end}\nb\n{other}\nits own\n{its_end}\n"
    assert printed.startswith("tiny on 3 images of photos.zip and photos.zip, ")
    assert f"torch {torch.__version__}" in printed
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    heads = [row for row in rows if row.startswith("| method")]
    assert "| Deletion ↓ (blur) |" in heads[0]
    assert "| Mosaic ↑ | Pointing ↑ | Energy ↑ |" in heads[1]
    assert "| Randomisation abs ρ ↓ | Stability ρ ↑ | Time × forward ↓ |" in heads[1]
    assert (
        ". Means with 95 % intervals by Student's t, of n = 3 images; of 2 mosaics, 2 images with "
        "boxes, 5 shuffles of the weights, and 2 images for stability; below, the mean paired "
        "difference to the best of the column, with its interval and n. Of fewer than 10 values "
        "there is no interval. Bold are the best method of each column, and those not worse by "
        "this difference; baselines, which know nothing of the model, are in italics.\n"
    ) in printed
    # in every column some method is best, and it is never a baseline
    for table in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        cells = [row.strip("|").split(" | ") for row in table[2:]]
        assert [row[0].strip() for row in cells][2:] == ["*random map*", "*centre Gaussian*"]
        for column in list(zip(*cells, strict=True))[1:]:
            assert any("**" in cell for cell in column[:2])
            assert not any("**" in cell for cell in column[2:])
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["table"] + "\n" == printed
    assert written["methods"]["random"]["cell"]["mean"] == pytest.approx(0.25)
    assert written["methods"]["grad_rollout"]["deletion_mean"]["n"] == 3
    assert written["deletion_cost"] > 0
    with Image.open(figure) as image:
        assert np.asarray(image).std() > 10


@pytest.mark.xfail(strict=True, reason="the page's tables were made before intervals were paired")
@pytest.mark.parametrize("model", ["bundled", "deit_tiny_patch16_224"])
def test_the_page_has_the_tables_that_are_made_today(model):
    """The same heads, rows, cells and sentence; the figures are those of the latest run."""
    page = (ROOT / "docs" / "faithfulness.md").read_text(encoding="utf-8")
    begin, end = faithfulness.markers(model)
    text = page.split(begin)[1].split(end)[0]
    values = {
        name: {m.key: np.zeros(1 if m.key == "time" else 4) for m in faithfulness.COLUMNS}
        for name in ALL
    }
    report = {
        "model": model,
        "pictures": 4,
        "data": ["photos.zip", "thumbs_val.zip"],
        "rightly_classified": 4,
        "steps": 10,
        "machine": "AMD EPYC, 2 cores",
        "versions": {"torch": "2.13.0+cpu", "timm": "1.0.31"},
        "deletion_cost": 1,
        "left_out": {},
    }

    def shape(text):
        return re.sub(r"-?\d+(\.\d+)?", "0", text.replace("**", "")).strip()

    assert shape(text) == shape(faithfulness.as_text(report, values))


def test_share_in_the_right_cell(loaded, data):
    """Each category's map on its own cell, by the class itself; of a baseline, a quarter."""
    images = LabelledImages(data)
    groups = [[(images.names[i], i) for i in order] for order in ([3, 0, 1, 2], [5, 4, 3, 2])]
    maps = map_functions({n: ALL[n] for n in ("grad_rollout", "centre_blob")}, loaded.model)
    found = faithfulness.cell_shares(maps, loaded, images, groups)
    explain = METHODS["grad_rollout"].make(loaded.model)
    for group, share in zip(groups, found["grad_rollout"], strict=True):
        names = [ROOT / "examples" / f"{IMAGES[label]}.jpg" for _, label in group]
        canvas = mosaic([open_image(name) for name in names], 32)
        tensor = loaded.transform(canvas)[None]
        shares = [cell_share(explain(tensor, c), i, 4) for i, (_, c) in enumerate(group)]
        assert share == pytest.approx(np.mean(shares), rel=1e-4)
    assert found["centre_blob"] == pytest.approx([0.25, 0.25])


def test_in_boxes(loaded, data):
    maps = map_functions({"centre_blob": ALL["centre_blob"]}, loaded.model)
    found = faithfulness.pointing(maps, loaded, LabelledImages(data), 5)["centre_blob"]
    boxes = [("koala", (150, 150, 500, 700)), ("panda", (10, 20, 200, 210))]
    for number, (name, box) in enumerate(boxes):
        size = open_image(ROOT / "examples" / f"{name}.jpg").size
        hit, energy = in_box(centre_blob(4, 4), box, *size)
        assert found["pointing"][number] == hit
        assert found["energy"][number] == pytest.approx(energy)


def test_sample_is_repeatable():
    names = [str(i) for i in range(50)]
    assert faithfulness.sample(names, 5, 1) == faithfulness.sample(names, 5, 1)
    assert faithfulness.sample(names, 5, 1) != faithfulness.sample(names, 5, 2)
    assert sorted(faithfulness.sample(names, 80, 1)) == sorted(names)


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--data", "nowhere"], "neither a folder nor a zip"), (["--steps", "7"], "multiple of 10")],
)
def test_errors_are_one_line(loaded, data, monkeypatch, capsys, given, message):
    monkeypatch.setattr(faithfulness, "load_model", lambda *_, **__: loaded)
    assert faithfulness.main(["--data", str(data), "--pictures", "1", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
