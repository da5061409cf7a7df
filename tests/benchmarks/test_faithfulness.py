"""benchmarks.faithfulness on a small random model and the example photographs."""

import json
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import evidence, faithfulness, pages
from benchmarks.evidence import Bench
from benchmarks.kept import Kept
from helpers import ROOT, make_vit
from vitexplain.faithfulness.baselines import centre_blob
from vitexplain.faithfulness.ceiling import ceiling as ceiling_of
from vitexplain.faithfulness.intervals import interval_of
from vitexplain.faithfulness.measures import ALL, REMOVED, evaluate_images
from vitexplain.faithfulness.passes import top1
from vitexplain.faithfulness.states import Answers
from vitexplain.images.reading import open_image
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import LoadedModel
from vitexplain.models.transform import InputTransform
from vitexplain.training.data import LabelledImages
from vitexplain.training.localisation import cell_share, in_box, mosaic

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


@pytest.fixture
def masks(tmp_path):
    """Two photographs whose object is the upper half, and one whose mask is of another size."""
    path = tmp_path / "masks.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in IMAGES[:3]:
            archive.write(ROOT / "examples" / f"{name}.jpg", f"images/{name}.jpg")
            size = open_image(ROOT / "examples" / f"{name}.jpg").size
            mask = np.zeros(size[::-1], np.uint8)
            mask[: size[1] // 2] = 1
            with archive.open(f"masks/{name}.png", "w") as file:
                Image.fromarray(mask[:, 1:] if name == "koala" else mask).save(file, "png")
        rows = [f"images/{name}.jpg,masks/{name}.png" for name in IMAGES[:3]]
        archive.writestr("index.csv", "\n".join(["file,mask", *rows]))
    return path


def given_for(data, masks, tmp_path):
    given = ["--data", data, "--boxes", data, "--masks", masks, "--methods", *METHOD_NAMES]
    given += ["--pictures", 8, "--few", 2, "--ceiling", 1, "--mosaics", 2, "--boxed", 2]
    return [*map(str, given), "--values", str(tmp_path / "values.jsonl")]


@pytest.fixture
def measured(loaded, monkeypatch):
    monkeypatch.setattr(pages, "load_model", lambda *_, **__: loaded)
    # a random model is right about nothing
    monkeypatch.setattr(evidence, "confident", lambda labels, *_: np.arange(len(labels)))


def test_benchmark_writes_tables_and_figures(measured, data, masks, tmp_path, capsys):
    page, figure, forest = (tmp_path / name for name in ("page.md", "s.png", "f.png"))
    begin, end = faithfulness.markers("tiny")
    other, its_end = faithfulness.markers("another")
    page.write_text(f"a\n{begin}\nold\n{end}\nb\n{other}\nits own\n{its_end}\n")
    given = [*given_for(data, masks, tmp_path), "--write", str(page)]
    assert faithfulness.main([*given, "--figure", str(figure), "--forest", str(forest)]) == 0
    printed = capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text == f"a\n{begin}\n{printed}{end}\nb\n{other}\nits own\n{its_end}\n"
    # six photographs are all there are, so that two of those with masks fill up
    assert printed.startswith("tiny: 6 of photos.zip and 2 of masks.zip; curves of 10 steps; ")
    assert f"torch {torch.__version__}" in printed
    assert (
        ". Means with 95 % intervals by Student's t, of n = 8 images; of 2 images with masks, 2 "
        "mosaics, 2 images with boxes, 5 shuffles of the weights, and 2 images for stability; "
    ) in printed
    tables = [part.split("\n\n") for part in printed.split("\n\n**")[1:]]
    assert [title for title, *_ in tables] == [f"{title}**" for title in faithfulness.TABLES]
    # in every column some method is best, and it is never a baseline
    for _, table, *_ in tables:
        cells = [row.strip("|").split(" | ") for row in table.strip().splitlines()[2:]]
        rows = ["*random map*", "*centre Gaussian*", "*greedy order*"]
        assert [row[0].strip() for row in cells][2:] == rows[: len(cells) - 2]
        for column in list(zip(*cells, strict=True))[1:]:
            assert any("**" in cell for cell in column[:2])
            assert not any("**" in cell for cell in column[2:])
    assert [text.startswith("For ") for *_, text in tables] == [True, True, False]
    for drawn in (figure, forest):
        with Image.open(drawn) as image:
            assert np.asarray(image).std() > 10


def test_the_sentence_below_a_table_says_what_to_use():
    rng = np.random.default_rng(3)
    image = rng.random(40)
    noise = rng.normal(0, 0.01, (2, 40))
    values = {
        "consensus": image + 0.1,
        "legrad": image + 0.09 + 0.05 * (-1) ** np.arange(40),
        "gradcam": image + noise[0],
        "relevance": image - 0.2 + noise[1],
        "random": image + 1,
    }
    values = {name: {"faithfulness": of} for name, of in values.items()}
    question = "Which patches change the answer"
    _, sentence = faithfulness.advice(question, values)
    difference = values["gradcam"]["faithfulness"] - values["consensus"]["faithfulness"]
    low, high = interval_of(difference)
    assert sentence == (
        "For which patches change the answer, use consensus of four methods or LeGrad; Grad-CAM "
        f"comes next, {difference.mean():+.3f} ({low:+.3f} to {high:+.3f}, n = 40) in faithfulness."
    )
    assert faithfulness.advice("Where the object is", values) == []


def test_an_interrupted_run_goes_on(measured, data, masks, tmp_path, capsys, monkeypatch):
    """It measures what is missing, and its table is that of a run that was not interrupted."""
    given = given_for(data, masks, tmp_path)
    values = tmp_path / "values.jsonl"

    def table():
        assert faithfulness.main(given) == 0
        return re.sub(r"\| [^|]+ \|$", "|", capsys.readouterr().out, flags=re.M)  # less the time

    expected, whole = table(), values.read_text().splitlines()
    values.write_text("\n".join(whole[: len(whole) // 2]) + "\n")
    assert table() == expected
    assert len(values.read_text().splitlines()) == len(whole)
    monkeypatch.setattr(evidence, "scores_of", None)  # nothing is explained any more
    monkeypatch.setattr(evidence, "map_functions", lambda methods, _: dict.fromkeys(methods))
    assert table() == expected


def test_values_are_those_of_the_measures(measured, loaded, data, tmp_path, capsys):
    """Of each image's likeliest category, by the library's own functions."""
    path = tmp_path / "values.jsonl"
    given = ["--data", str(data), "--methods", "grad_rollout", "attention_rollout", "random"]
    given += ["--pictures", "3", "--ceiling", "2", "--mosaics", "0", "--values", str(path)]
    assert faithfulness.main(given) == 0
    images = LabelledImages(data)
    names = faithfulness.sample(images.names, 3, 0)
    tensors = torch.stack([loaded.transform(images.read(name)) for name in names])
    methods = {name: ALL[name] for name in ("grad_rollout", "attention_rollout", "random")}
    expected = evaluate_images(loaded.model, tensors, loaded.transform.std, methods).values
    records = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    kept = {
        (record["part"], record["image"], method): dict(zip(record["keys"], row, strict=True))
        for record in records
        for method, row in record["values"].items()
    }
    for name, columns in expected.items():
        for place, image in enumerate(names):
            for measure in REMOVED:
                found = kept["removal", image, name][measure.key]
                assert found == pytest.approx(columns[measure.key][place], abs=1e-5)
        stable = [kept["stability", image, name]["stability"] for image in names]
        assert stable == pytest.approx(columns["stability"], abs=2e-5)
    # what knows the answer gets further than what does not
    for image in names[:2]:
        ceiling = kept["removal", image, "ceiling"]
        of_methods = [kept["removal", image, name]["faithfulness"] for name in methods]
        assert ceiling["faithfulness"] > max(of_methods)
        areas = [ceiling[f"{kind}_mean"] for kind in ("insertion", "deletion")]
        grid = (4, 4)
        answers = Answers(loaded.model, tensors, "exclusive")
        category = top1(loaded.model, tensors)[names.index(image)]
        assert areas == pytest.approx(
            [
                ceiling_of(
                    answers, names.index(image), grid, category, 10, "mean", insert=insert
                ).area
                for insert in (True, False)
            ],
            abs=1e-5,
        )


@pytest.mark.parametrize("model", ["bundled", "deit_tiny_patch16_224"])
def test_the_page_has_the_tables_that_are_made_today(model):
    """The same heads, rows and sentences; the figures are those of the latest run."""
    page = (ROOT / "docs" / "faithfulness.md").read_text(encoding="utf-8")
    begin, end = faithfulness.markers(model)
    text = page.split(begin)[1].split(end)[0]
    for question, measures in faithfulness.TABLES.items():
        heads = " | ".join(
            measure.title
            for measure in measures
            # patches of the bundled model's convolutions overlap: none can be left out
            if model != "bundled" or not measure.key.endswith("drop")
        )
        assert f"**{question}**\n\n| method | {heads} |\n" in text
    rows = re.findall(r"^\| \*?([^*|]+?)\*? \|", text, flags=re.M)
    titles = [method.title for method in ALL.values()]
    assert [row for row in rows if row not in ("method", "greedy order")] == 3 * titles


def test_share_in_the_right_cell(loaded, data):
    """Each category's map on its own cell, by the class itself; of a baseline, a quarter."""
    images = LabelledImages(data)
    groups = [[(images.names[i], i) for i in order] for order in ([3, 0, 1, 2], [5, 4, 3, 2])]
    methods = {n: ALL[n] for n in ("grad_rollout", "centre_blob")}
    bench = Bench(loaded, methods, Kept(None, {}), fewer=0)
    evidence.mosaics(bench, images, groups)
    found = bench.kept.columns("mosaics", list(map(evidence.name_of, groups)))
    explain = METHODS["grad_rollout"].make(loaded.model)
    for group, share in zip(groups, found["grad_rollout"]["cell"], strict=True):
        names = [ROOT / "examples" / f"{IMAGES[label]}.jpg" for _, label in group]
        canvas = mosaic([open_image(name) for name in names], 32)
        tensor = loaded.transform(canvas)[None]
        shares = [cell_share(explain(tensor, c), i, 4) for i, (_, c) in enumerate(group)]
        assert share == pytest.approx(np.mean(shares), rel=1e-4)
    assert found["centre_blob"]["cell"] == pytest.approx([0.25, 0.25])


def test_in_boxes(loaded, data):
    options = faithfulness.parser().parse_args(["--data", "", "--boxes", str(data), "--boxed", "5"])
    bench = Bench(loaded, {"centre_blob": ALL["centre_blob"]}, Kept(None, {}), fewer=0)
    names = faithfulness.with_boxes(bench, options)
    found = bench.kept.columns("boxes", names)["centre_blob"]
    boxes = {"0002/koala.jpg": (150, 150, 500, 700), "0003/panda.jpg": (10, 20, 200, 210)}
    assert set(names) == set(boxes)
    for number, name in enumerate(names):
        size = LabelledImages(data).read(name).size
        hit, energy = in_box(centre_blob(4, 4), boxes[name], *size)
        assert found["pointing"][number] == hit
        assert found["energy"][number] == pytest.approx(energy, abs=1e-5)


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
    monkeypatch.setattr(pages, "load_model", lambda *_, **__: loaded)
    assert faithfulness.main(["--data", str(data), "--pictures", "1", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
