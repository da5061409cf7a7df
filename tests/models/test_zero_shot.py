"""Embeddings of categories as a classifier: logits, maps, and what is refused."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F

from helpers import ROOT
from vit_explain import main
from vitexplain.errors import RequestError
from vitexplain.explainer import Explainer
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import load_model, wrap_model
from vitexplain.settings import MapOptions

CATEGORIES, WIDTH = 5, 64
OF_CATEGORY = [name for name, method in METHODS.items() if method.of_category]


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=7).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.15)
    return model


@pytest.fixture(scope="module")
def checkpoint(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(classifier.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def embeddings():
    return np.random.default_rng(0).normal(size=(CATEGORIES, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(2))


def cosines(classifier, embeddings, images):
    """By hand: the class token after the norm, and the angles."""
    tokens = classifier.forward_features(images)[:, 0]
    return F.normalize(tokens, dim=1) @ F.normalize(torch.from_numpy(embeddings), dim=1).T


@pytest.mark.parametrize("form", ["array", "npy", "safetensors", "list"])
def test_logits_are_scaled_cosines(form, classifier, checkpoint, embeddings, images, tmp_path):
    given = {"array": embeddings, "list": embeddings.tolist()}.get(form)
    if form == "npy":
        given = tmp_path / "a.npy"
        np.save(given, 3 * embeddings)  # lengths don't matter
    if form == "safetensors":
        given = tmp_path / "a.safetensors"
        save_file({"text": embeddings}, given)
    loaded = load_model("test_vit", checkpoint, class_embeddings=given, logit_scale=20)
    with torch.no_grad():
        expected = 20 * cosines(classifier, embeddings, images)
        np.testing.assert_allclose(loaded.model(images), expected, atol=1e-4)
    assert loaded.categories == [f"category {n}" for n in range(CATEGORIES)]


class ByHand(nn.Module):
    """The same as a module of one's own: another way to the same maps."""

    def __init__(self, vit, embeddings):
        super().__init__()
        self.vit = vit
        self.texts = nn.Parameter(F.normalize(torch.from_numpy(embeddings), dim=1))

    def forward(self, images):
        return 100 * F.normalize(self.vit(images), dim=1) @ self.texts.T


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_explains_it(name, classifier, checkpoint, embeddings, images, few_steps):
    loaded = load_model("test_vit", checkpoint, class_embeddings=embeddings)
    method = METHODS[name].make(loaded.model)
    found = method.explain(images, [3, 1]) if METHODS[name].of_category else method.explain(images)
    twin = timm.create_model("test_vit", num_classes=0).eval()
    state = {k: v for k, v in classifier.state_dict().items() if not k.startswith("head")}
    twin.load_state_dict(state)
    other = METHODS[name].make(wrap_model(ByHand(twin, embeddings).eval()).model)
    wanted = other.explain(images, [3, 1]) if METHODS[name].of_category else other.explain(images)
    np.testing.assert_allclose(found.masks, wanted.masks, atol=2e-4)
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-3)


def test_the_gradient_is_that_of_the_cosine(classifier, checkpoint, embeddings, images):
    """Grad-CAM by hand, from dy/da of the last block's attention's input."""
    loaded = load_model("test_vit", checkpoint, class_embeddings=embeddings, logit_scale=1)
    found = METHODS["gradcam"].make(loaded.model).explain(images[:1], [2])
    seen = []

    def begin(_module, inputs):
        seen.append(inputs[0].detach().requires_grad_())
        return (seen[0],)

    hook = classifier.blocks[-1].attn.register_forward_pre_hook(begin)
    try:
        score = cosines(classifier, embeddings, images[:1])[0, 2]
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(score, seen)
    weights = gradient[0, 1:].mean(dim=0)
    expected = (seen[0][0, 1:] @ weights).detach().numpy().reshape(10, 10)
    np.testing.assert_allclose(found.scores[0], expected, atol=1e-6)


def test_one_embedding_is_a_similarity(checkpoint, embeddings, images):
    """A cosine alone is no probability: a value, with a map for more and one for less of it."""
    loaded = load_model("test_vit", checkpoint, class_embeddings=embeddings[:1], logit_scale=1)
    assert loaded.labels == "none" and len(loaded.categories) == 2
    (first, _) = Explainer(MapOptions(category=1), loaded)(images)
    assert first.maps[0].category.probability is None
    assert -1 <= first.maps[0].category.output <= 1


def test_the_command_names_and_compares_them(checkpoint, embeddings, tmp_path, capsys):
    np.save(tmp_path / "texts.npy", embeddings)
    (tmp_path / "names.txt").write_text("a red car\na dog\na cat\na house\nthe sea\n")
    code = main(["--image_path", str(ROOT / "examples" / "dog.jpg"), "--model", "test_vit",
                 "--checkpoint", str(checkpoint), "--class_embeddings", str(tmp_path / "texts.npy"),
                 "--class_names", str(tmp_path / "names.txt"), "--category", "a dog", "--against",
                 "a cat", "--output_dir", str(tmp_path / "out"), "--json"])  # fmt: skip
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"]["category"]["name"] == "a dog"
    assert sum(each["probability"] for each in report["top"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.ones((5, 32)), "have 32 numbers each, the model's embedding of an image 64"),
        (np.ones(64), r"is \(64,\), not \(categories, numbers\); save an array"),
        (np.zeros((2, 64)), "rows without a direction"),
        (np.full((2, 64), np.nan), "rows without a direction"),
        (np.ones((0, 64)), r"not \(categories, numbers\)"),
        ("nowhere.npy", "nowhere.npy can't be read"),
        ("a.txt", "must be a .npy or .safetensors file"),
        ([["a", "b"]], "can't be read"),
    ],
)
def test_what_is_no_set_of_embeddings(given, reason, checkpoint):
    with pytest.raises(RequestError, match=reason):
        load_model("test_vit", checkpoint, class_embeddings=given)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_in_a_npy_file_is_not_run(checkpoint, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    capsys.readouterr()
    with pytest.raises(RequestError, match="can't be read"):
        load_model("test_vit", checkpoint, class_embeddings=tmp_path / "a.npy")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_is_above_0(scale, checkpoint, embeddings):
    with pytest.raises(RequestError, match="logit_scale must be above 0"):
        load_model("test_vit", checkpoint, class_embeddings=embeddings, logit_scale=scale)
