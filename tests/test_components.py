"""Principal components of features: against NumPy's own, and on images whose content is known."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vit_explain
from helpers import ROOT, make_vit
from vitexplain import features
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.components import Features, FinalFeatures
from vitexplain.errors import RequestError

BOTH, PANDA = (ROOT / "examples" / name for name in ("both.png", "panda.jpg"))


def given(*shapes, seed=0):
    random = np.random.default_rng(seed)
    mix = random.normal(size=(6, 6)) * [5, 3, 2, 1, 0.5, 0.1]
    return [np.float32(random.normal(size=(*shape, 6)) @ mix.T) for shape in shapes]


def test_axes_are_those_of_a_singular_value_decomposition():
    images = given((4, 5), (3, 3), (6, 2))
    found = Features(images).palette
    rows = np.concatenate([each.reshape(-1, 6) for each in images]).astype(float)
    _, sizes, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(np.abs((found.axes * axes[:3]).sum(axis=1)), 1, atol=1e-6)
    np.testing.assert_allclose(found.shares, (sizes**2 / (sizes**2).sum())[:3], atol=1e-6)


def test_colours_are_components_between_percentiles():
    images = given((14, 14), (14, 14))
    found = Features(images)
    components = [(each - found.palette.mean) @ found.palette.axes.T for each in images]
    every = np.concatenate(components).reshape(-1, 3)
    low, high = np.percentile(every, 1, axis=0), np.percentile(every, 99, axis=0)
    for colours, each in zip(found.colours, components, strict=True):
        np.testing.assert_allclose(colours, ((each - low) / (high - low)).clip(0, 1), atol=1e-5)


def test_signs_do_not_depend_on_those_of_the_features():
    images = given((8, 8))
    for other in ([-images[0]], [images[0][..., ::-1].copy()]):
        np.testing.assert_array_equal(Features(images).foreground[0], Features(other).foreground[0])


def test_the_foreground_is_what_the_border_is_not():
    image = np.random.default_rng(0).normal(size=(12, 12, 8)).astype(np.float32)
    image[3:9, 3:9] += 6
    foreground = Features([image]).foreground[0]
    assert foreground[3:9, 3:9].all()
    assert foreground.sum() == 36


def test_features_that_are_all_the_same_have_no_colours():
    with pytest.raises(RequestError, match="there is nothing to show"):
        Features([np.ones((4, 4, 8), np.float32)])
    with pytest.raises(RequestError, match="at least one image"):
        features([], model="bundled")


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reg_tokens": 4},
        {"class_token": False, "global_pool": "avg", "fc_norm": True},
        {"num_classes": 0},
        {"global_pool": "max", "fc_norm": False},
    ],
)
def test_a_vits_features_are_its_tokens_after_the_final_norm(changes):
    model = make_vit(**changes)
    images = torch.randn(2, 3, 32, 32)
    tokens = model._pos_embed(model.patch_embed(images))
    for block in model.blocks:
        tokens = block(tokens)
    norm = model.fc_norm if isinstance(model.norm, torch.nn.Identity) else model.norm
    expected = norm(tokens)[:, model.num_prefix_tokens :].reshape(2, 4, 4, -1)
    torch.testing.assert_close(FinalFeatures(model)(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_mambaout"])
@pytest.mark.parametrize("categories", [5, 0])
def test_other_models_have_their_last_grid(name, categories):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=categories).eval()
    images = torch.randn(2, 3, 96, 128)
    expected = model.forward_features(images)
    expected = expected if name == "test_mambaout" else expected.permute(0, 2, 3, 1)
    torch.testing.assert_close(FinalFeatures(model)(images), expected)


def test_what_is_not_finite_or_no_model_of_timm_is_refused():
    model = make_vit()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(UnsupportedModel, match="not finite"):
        FinalFeatures(model)(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UnsupportedModel, match="not timm's"):
        FinalFeatures(torch.nn.Conv2d(3, 4, 3))


def test_the_panda_is_the_foreground():
    """What is known of the photograph: the panda fills its middle; wood and trees are above."""
    (foreground,) = features(PANDA, model="bundled").foreground
    assert foreground[4:10, 5:9].mean() > 0.9
    assert foreground[0].mean() < 0.2


def test_colours_agree_within_a_run(tmp_path, monkeypatch, capsys):
    """The same image twice has the same colours, which another one beside it changes."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(PANDA, folder / "a.jpg")
    shutil.copy(PANDA, folder / "sub" / "b.jpg")
    shutil.copy(BOTH, folder / "c.png")
    (folder / "broken.png").write_bytes(b"no image")
    output = tmp_path / "out"
    command = ["--model", "bundled", "--features", "--recursive", "--json", "--save_features"]
    command += ["--output_dir", str(output), "--image_path", str(folder)]
    assert vit_explain.main(command) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["pictures"], report["failed"]) == (4, 1)
    sheets = [Image.open(output / f"{name}_features.png") for name in ("a.jpg", "sub/b.jpg")]
    assert np.array_equal(*map(np.asarray, sheets))
    saved = np.load(output / "a.jpg_features.npz")
    together = features([PANDA, PANDA, BOTH], model="bundled")
    np.testing.assert_allclose(saved["features"], together.features[0], atol=1e-5)
    assert (saved["foreground"] == together.foreground[0]).mean() > 0.98
    alone = features(PANDA, model="bundled")
    assert np.abs(together.colours[0] - alone.colours[0]).max() > 0.05
    assert together.palette.shares == pytest.approx(report["variance"], abs=1e-4)
