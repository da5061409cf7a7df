"""Why two images are alike: `both.png` holds, on its right, the cat of `cat.jpg`."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from helpers import ROOT
from vit_explain import main
from vitexplain import explain, load_model
from vitexplain.errors import RequestError
from vitexplain.faithfulness.removal import Removal
from vitexplain.faithfulness.score import faithfulness
from vitexplain.images.reading import open_image
from vitexplain.methods.registry import METHODS

EXAMPLES = ROOT / "examples"
BOTH, CAT, DOG = (str(EXAMPLES / name) for name in ("both.png", "cat.jpg", "dog.jpg"))


def run(folder, *arguments):
    return main(["--model", "bundled", "--output_dir", str(folder), *arguments])


def embedding(image):
    """Before the classifier, which the bundled model reads from its class token."""
    loaded = load_model("bundled")
    with torch.no_grad():
        tensor = loaded.transform(open_image(image))[None]
        features = loaded.model.forward_features(tensor)
        return F.normalize(loaded.model.forward_head(features, pre_logits=True), dim=1)[0]


@pytest.mark.parametrize(("other", "on_the_right"), [(CAT, True), (DOG, False)])
def test_what_two_images_share_is_where_it_is(other, on_the_right, tmp_path, capsys):
    assert run(tmp_path, "--image_path", BOTH, "--similar_to", other, "--method", "gradcam",
               "--save_mask", "--json") == 0  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    mask = np.load(report["files"]["mask"])
    left, right = mask[:, :7].sum(), mask[:, 7:].sum()
    assert (right > 2 * left) if on_the_right else (left > 2 * right)
    category = report["method"]["category"]
    assert (category["index"], category["name"], category["probability"]) == (1, "similar", None)
    cosine = float(embedding(BOTH) @ embedding(other))
    assert category["output"] == pytest.approx(cosine, abs=1e-4)
    with Image.open(report["files"]["sheet"]) as sheet:
        assert sheet.width > 2 * 280 and sheet.height > 2 * 140


def test_a_folder_is_compared_by_its_mean(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate((CAT, DOG)):
        shutil.copy(name, folder / f"{number}.jpg")
    assert run(tmp_path / "out", "--image_path", BOTH, "--similar_to", str(folder), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    mean = F.normalize(embedding(CAT) + embedding(DOG), dim=0)
    assert report["method"]["category"]["output"] == pytest.approx(
        float(embedding(BOTH) @ mean), abs=1e-4
    )
    assert "sheet" not in report["files"]


def test_maps_of_a_similarity_are_measured_by_the_cosine(tmp_path, capsys):
    """By hand: the cosine with the cat's embedding as patches are taken from the whole image."""
    methods = ["--method", "gradcam", "rollout"]
    assert run(tmp_path, "--image_path", BOTH, "--similar_to", CAT, "--compare", "--json",
               *methods) == 0  # fmt: skip
    maps = json.loads(capsys.readouterr().out)["maps"]
    loaded = load_model("bundled", similar_to=CAT)
    tensor = loaded.transform(open_image(BOTH))
    (mask,) = METHODS["gradcam"].make(loaded.model).explain(tensor[None], [1]).scores  # signed
    removal = Removal(loaded.model, tensor[None], [1], "mean", 10, labels="cosine")
    curve = removal.deletion(mask[None])
    with torch.no_grad():
        expected = loaded.model(tensor[None])[0, 0]
    assert curve.probabilities[0, 0] == pytest.approx(float(expected), abs=1e-5)
    found = faithfulness(loaded.model, tensor, mask, 1, "cosine")
    assert maps[0]["faithfulness"] == pytest.approx(found, abs=1e-4)


def test_an_image_is_like_itself(tmp_path):
    model = load_model("bundled", similar_to=CAT)
    found = explain(CAT, category="similar", model=model, method="gradcam")
    assert found.category.output == pytest.approx(1, abs=1e-5)
    assert found.top[1].output == pytest.approx(-1, abs=1e-5)


@pytest.mark.slow
def test_a_folder_of_images_with_a_report(tmp_path):
    assert run(tmp_path, "--image_path", CAT, DOG, "--similar_to", BOTH, "--report", "--quiet") == 0
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    for line, name in zip(lines, (CAT, DOG), strict=True):
        expected = float(embedding(BOTH) @ embedding(name))
        assert line["maps"][0]["category"]["output"] == pytest.approx(expected, abs=1e-4)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_a_rollout_is_the_same_for_every_question(tmp_path):
    assert run(tmp_path, "--image_path", BOTH, "--similar_to", CAT, "--method", "rollout",
               "--save_mask", "--quiet") == 0  # fmt: skip
    (mask,) = tmp_path.glob("*.npy")
    plain = explain(BOTH, model="bundled", method="rollout", head_fusion="max")
    np.testing.assert_allclose(np.load(mask), plain.map, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--similar_to", "nowhere.png"], "no image at nowhere.png"),
        (["--similar_to", CAT, "--labels", "none"], "similar_to explains one number"),
        (["--similar_to", CAT, "--against", "auto"], "--against does not apply to --similar_to"),
        (["--logit_scale", "3"], "logit_scale is of class_embeddings: there are none"),
    ],
)
def test_wrong_requests(arguments, message, tmp_path, capsys):
    assert run(tmp_path, "--image_path", BOTH, *arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_model_that_is_given_can_not_be_changed():
    model = load_model("bundled").model
    with pytest.raises(RequestError, match="are for a model that is named"):
        load_model(model, similar_to=CAT)
