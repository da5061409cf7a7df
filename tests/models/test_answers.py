"""Single outputs, independent labels, values and embeddings."""

import json

import numpy as np
import pytest
import timm
import torch
from torch import nn

from helpers import ROOT, make_vit, run_here
from vitexplain.api import explain
from vitexplain.errors import RequestError
from vitexplain.explainer import Explainer, Map, most_faithful
from vitexplain.faithfulness.removal import Removal
from vitexplain.methods.registry import METHODS
from vitexplain.models.answers import count_outputs, is_embedding
from vitexplain.models.categories import CategoryError
from vitexplain.models.loading import load_model
from vitexplain.settings import MapOptions


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def two_logits(model):
    """The same answers as two logits, -y and y."""
    twin = make_vit(num_classes=2)
    state = model.state_dict()
    for name in ("head.weight", "head.bias"):
        state[name] = torch.cat([-state[name], state[name]])
    twin.load_state_dict(state)
    return twin


def found(model, tensors, labels=None, **options):
    return Explainer(MapOptions(**options), load_model(model, labels=labels))(tensors)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].of_category])
def test_a_single_output_has_two_sides(name, images):
    """The map against is that of the negated output."""
    model = make_vit(num_classes=1)
    made, twin = METHODS[name].make(model), METHODS[name].make(two_logits(model))
    for side in (0, 1):
        result = made.explain(images, [side, side])
        np.testing.assert_allclose(result.masks, twin.batch(images, [side, side]), atol=1e-5)
        assert result.logits.shape == (2, 1)
    with pytest.raises(RequestError, match="from 0 to 1"):
        made.explain(images, [2, 2])
    with torch.no_grad():
        likelier = [int(y > 0) for y in model(images)[:, 0]]
    assert made.explain(images).categories == likelier


def test_the_probability_of_a_single_output_is_its_sigmoid(images):
    model = make_vit(num_classes=1)
    with torch.no_grad():
        expected = model(images)[:, 0].sigmoid().tolist()
    for each, p in zip(found(model, images), expected, strict=True):
        shares = {category.name: category.probability for category in each.top}
        assert shares == {
            "positive": pytest.approx(p, abs=1e-6),
            "negative": pytest.approx(1 - p, abs=1e-6),
        }


def test_independent_labels_have_sigmoids(images):
    model = make_vit(num_classes=4)
    with torch.no_grad():
        expected = model(images).sigmoid()
    for each, shares in zip(found(model, images, "independent"), expected, strict=True):
        assert [c.probability for c in each.top] == pytest.approx(
            sorted(shares.tolist(), reverse=True), abs=1e-6
        )


def test_values_have_no_probability(images):
    model = make_vit(num_classes=1)
    with torch.no_grad():
        value = float(model(images)[0, 0])
    (first, _) = found(model, images, "none", category="top")
    assert {c.name: c.output for c in first.top} == {
        "higher": pytest.approx(value, abs=1e-5),
        "lower": pytest.approx(-value, abs=1e-5),
    }
    assert first.maps[0].about["category"]["probability"] is None
    assert first.maps[0].category.share.startswith("output ")
    with pytest.raises(RequestError, match="values"):
        found(model, images, "none", compare=True)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["healthy", "ill"], ["healthy", "ill"]),
        (["ill"], ["not ill", "ill"]),
    ],
)
def test_names_of_a_single_output(given, names, tmp_path):
    model = make_vit(num_classes=1)
    assert load_model(model, class_names=given).categories == names
    file = tmp_path / "names.txt"
    file.write_text("\n".join(given))
    assert load_model(model, class_names=file).categories == names
    with pytest.raises(CategoryError, match="two names"):
        load_model(model, class_names=["a", "b", "c"])


def test_faithfulness_is_measured_by_the_same_probability(images):
    """Of the whole image, the curve's end is the sigmoid, not a softmax of one."""
    model = make_vit(num_classes=1)
    ranks = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    for side, sign in ((0, -1), (1, 1)):
        curves = Removal(model, images[:1], [side], "mean", 4).insertion(ranks)
        with torch.no_grad():
            expected = (sign * model(images[:1])[0, 0]).sigmoid()
        assert curves.probabilities[0, -1] == pytest.approx(float(expected), abs=1e-6)
    several = make_vit(num_classes=3)
    curves = Removal(several, images[:1], [2], "mean", 4, labels="independent").insertion(ranks)
    with torch.no_grad():
        expected = several(images[:1])[0, 2].sigmoid()
    assert curves.probabilities[0, -1] == pytest.approx(float(expected), abs=1e-6)


def test_ties_crown_nobody():
    def maps(*values):
        return [Map(np.ones((2, 2)), None, {}, value) for value in values]

    assert most_faithful(maps(0.1, 0.3, 0.2)) == {1}
    assert most_faithful(maps(0.3, 0.3, 0.2)) == set()
    assert most_faithful(maps(0.0)) == {0}


def test_outputs_are_counted_where_they_are():
    model = make_vit(num_classes=0)
    model.head = nn.Linear(24, 5)
    assert count_outputs(model) == 5
    assert load_model(model).categories == [f"category {number}" for number in range(5)]
    model.head = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))
    assert count_outputs(model) == 3
    assert METHODS["grad_rollout"].make(model).batch(torch.randn(1, 3, 32, 32)).max() == 1


@pytest.mark.parametrize(
    ("name", "classes", "embeds"),
    [
        ("vit_base_patch16_clip_224.openai", 512, True),
        ("vit_pe_core_tiny_patch16_384.fb", 512, True),
        ("vit_base_patch16_clip_224.openai_ft_in1k", 1000, False),
        ("vit_base_patch16_clip_224.openai", 10, False),
        ("deit_tiny_patch16_224", 512, False),
    ],
)
def test_towers_end_in_an_embedding(name, classes, embeds):
    model = timm.create_model(name, depth=1, num_classes=classes)
    assert is_embedding(model, model.pretrained_cfg) is embeds
    if embeds:
        nn.init.normal_(model.head.bias)  # as of a classifier
        assert not is_embedding(model, model.pretrained_cfg)


@pytest.mark.slow
def test_an_embedding_has_maps_but_no_categories():
    model = timm.create_model(
        "vit_base_patch32_clip_224", num_classes=512, embed_dim=48, num_heads=3, depth=2
    )
    loaded = load_model(model)
    assert loaded.categories == []
    assert "embedding of 512 numbers" in loaded.notice
    picture = np.full((40, 40, 3), 99, np.uint8)
    assert explain(picture, model=loaded).top == ()
    with pytest.raises(RequestError, match="no categories"):
        explain(picture, "top", model=loaded)


@pytest.mark.slow
def test_the_command_says_sigmoids(tmp_path):
    """One output, from a checkpoint, with names of its sides."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1)
    nn.init.constant_(model.head.bias, -3.0)
    torch.save(model.state_dict(), tmp_path / "one.pth")
    (tmp_path / "names.txt").write_text("healthy\nill\n")
    picture = ROOT / "examples" / "cat.jpg"
    options = ("--model", "vit_tiny_patch16_224", "--checkpoint", "one.pth")
    done = run_here(
        "--image_path", picture, *options, "--class_names", "names.txt", "--category", "ill",
        "--output_dir", "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = load_model("vit_tiny_patch16_224", tmp_path / "one.pth", tmp_path / "names.txt")
    probability = next(c for c in explain(picture, model=loaded).top if c.name == "ill")
    assert f"category 1 (ill, {probability.probability:.1%})" in done.stdout
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(picture.read_bytes())
    done = run_here(
        "--image_path", folder, *options, "--labels", "none", "--category", "top",
        "--output_dir", "values", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, (tmp_path / "values" / "results.jsonl").read_text().splitlines())
    assert record["top"][0]["probability"] is None
    assert record["top"][0]["name"] in ("lower", "higher")
