"""Texts as categories, a module that counts letters in the place of open_clip."""

import sys
import types

import pytest
import torch
from torch.nn import functional as F

from helpers import ROOT
from vit_explain import main
from vitexplain.errors import MissingPackage, ModelError
from vitexplain.models import texts as module
from vitexplain.models.texts import PAIRS, text_embeddings

NAME = "vit_base_patch32_clip_224.laion2b"


@pytest.fixture
def open_clip(monkeypatch):
    """What text_embeddings asks of open_clip; its tower counts letters."""
    fake, asked = types.ModuleType("open_clip"), []

    class Tower(torch.nn.Module):
        def encode_text(self, tokens):
            return tokens

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        return Tower()

    def letters(texts):
        return torch.tensor([[float(text.count(c)) for c in "abcdefgh"] for text in texts])

    fake.create_model = create_model
    fake.get_tokenizer = lambda _name: letters
    fake.get_pretrained_cfg = lambda _name, _tag: {"hf_hub": "owner/clip/"}
    fake.asked = asked
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    monkeypatch.setattr(module, "weights_at_hand", lambda *where: _Here(asked, where))
    return fake


class _Here:
    def __init__(self, asked, where):
        asked.append(where)

    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


def test_embeddings_are_those_of_the_matching_tower(open_clip):
    found = text_embeddings(NAME, ["a bad cab", "egg"])
    assert open_clip.asked == [("owner/clip", None), PAIRS[NAME]]
    expected = torch.tensor([[3.0, 2, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 2, 0]])
    torch.testing.assert_close(found, F.normalize(expected, dim=1))


def test_without_open_clip_it_says_what_to_install_or_pass(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingPackage, match="pip install open_clip_torch, or pass embeddings"):
        text_embeddings(NAME, ["a cat"])
    command = ["--image_path", str(ROOT / "examples" / "cat.jpg"), "--model", NAME]
    assert main([*command, "--text", "a cat", "a dog", "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--text needs open_clip: pip install open_clip_torch" in error


def test_models_without_a_known_text_tower(open_clip):
    with pytest.raises(ModelError, match="no text tower is known for resnet50; --text works with"):
        text_embeddings("resnet50", ["a cat"])


def test_what_open_clip_raises_becomes_one_line(open_clip):
    def fails(*_args, **_options):
        raise OSError("no route\nto host")

    open_clip.create_model = fails
    with pytest.raises(ModelError, match="can't load ViT-B-32 laion2b_s34b_b79k: no route to host"):
        text_embeddings(NAME, ["a cat"])


def test_the_categories_are_the_texts(open_clip, monkeypatch):
    """The image tower, which has no weights here, is one of random weights."""
    import timm

    from vitexplain.models import loading

    def tower(name, *_args, **_options):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=0)
        return loading._from_timm(model, name)

    monkeypatch.setattr(loading, "_pretrained", tower)
    monkeypatch.setattr(loading, "text_embeddings", lambda _n, texts: torch.randn(len(texts), 64))
    loaded = loading.load_model(NAME, texts=["a cat", "a dog", "a car"])
    assert loaded.categories == ["a cat", "a dog", "a car"]
    assert loaded.model(torch.zeros(1, 3, 160, 160)).shape == (1, 3)
    assert loaded.labels == "exclusive"
    with pytest.raises(ModelError, match="texts are the categories"):
        loading.load_model(NAME, texts=["a cat"], class_names=["cat"])
