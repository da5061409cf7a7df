"""benchmarks.contrast on a small random model and the example photographs."""

import re
import zipfile

import numpy as np
import pytest

from benchmarks import contrast, evidence, pages
from helpers import ROOT, make_vit
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import LoadedModel
from vitexplain.models.transform import InputTransform
from vitexplain.training.data import LabelledImages
from vitexplain.training.localisation import cell_share, groups, mosaic

IMAGES = ["cat", "coffee", "koala", "panda", "macaw", "dog"]


@pytest.fixture
def loaded(monkeypatch):
    half = (0.5, 0.5, 0.5)
    transform = InputTransform((32, 32), half, half)
    loaded = LoadedModel(make_vit(), "tiny", transform, [f"category {i}" for i in range(7)])
    monkeypatch.setattr(pages, "load_model", lambda *_, **__: loaded)
    # a random model is right about nothing
    monkeypatch.setattr(evidence, "confident", lambda labels, *_: np.arange(len(labels)))
    return loaded


@pytest.fixture
def data(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for label, name in enumerate(IMAGES):
            archive.write(ROOT / "examples" / f"{name}.jpg", f"{label:04}/{name}.jpg")
    return tmp_path / "photos.zip"


def test_the_table_is_that_of_maps_by_hand(loaded, data, tmp_path, capsys):
    page = tmp_path / "page.md"
    begin, end = contrast.markers("tiny")
    page.write_text(f"a\n{begin}\nold\n{end}\nb\n")
    given = ["--data", str(data), "--methods", "gradcam", "--mosaics", "3", "--write", str(page)]
    assert contrast.main(given) == 0
    table = capsys.readouterr().out.strip()
    assert page.read_text() == f"a\n{begin}\n{table}\n{end}\nb\n"
    images = LabelledImages(data)
    names = sorted(images.names)
    expected = []
    for group in groups(range(6), 4, 3, 0):
        tensor = loaded.transform(mosaic([images.read(names[i]) for i in group], 32))[None]
        made = METHODS["gradcam"].make(loaded.model)
        expected.append([
            np.mean([
                cell_share(made.explain(tensor, [i], against).scores[0].clip(min=0), cell, 4)
                for cell, i in enumerate(group)
            ])
            for against in (None, "auto")
        ])  # fmt: skip
    plain, contrasted = np.mean(expected, axis=0)
    numbers = [float(n) for n in re.findall(r"[+-]?\d\.\d{3}", table)]
    assert numbers[:3] == pytest.approx([plain, contrasted, contrasted - plain], abs=1e-3)
    assert numbers[3] < numbers[2] < numbers[4]


def test_too_few_categories(loaded, data, capsys, monkeypatch):
    monkeypatch.setattr(evidence, "confident", lambda *_: np.arange(2))
    assert contrast.main(["--data", str(data)]) == 2
    assert "too few categories are recognised" in capsys.readouterr().err
