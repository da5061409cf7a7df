"""Folders with a config.json of timm's form, or the bundled model's, whole and damaged."""

import copy
import json
import random
import shutil
import socket

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers import make_vit
from vitexplain.errors import RequestError
from vitexplain.models.bundled import bundled_folder
from vitexplain.models.loading import load_model

GREY = {
    "architecture": "test_vit",
    "num_classes": 2,
    "model_args": {"in_chans": 1},
    "label_names": ["healthy", "ill"],
    "pretrained_cfg": {"mean": [0.5], "std": [0.25], "input_size": [1, 160, 160]},
}
WRONG = (None, -1, 0, 10**9, "x", [], {}, [1, 2, 3, 4], True, 1.5, "hf-hub:a/b", float("nan"))


def damaged(config, seed):
    """One entry removed or replaced."""
    config, chance = copy.deepcopy(config), random.Random(seed)
    paths = []

    def walk(part, path):
        for key in part:
            paths.append([*path, key])
            if isinstance(part[key], dict):
                walk(part[key], [*path, key])

    walk(config, [])
    *path, last = chance.choice(paths)
    part = config
    for key in path:
        part = part[key]
    if chance.random() < 0.2:
        del part[last]
    else:
        part[last] = chance.choice(WRONG)
    return config


def test_a_grey_model_of_ones_own(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=2, in_chans=1).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(GREY))
    loaded = load_model(checkpoint=tmp_path)
    assert loaded.categories == ["healthy", "ill"]
    tensor = loaded.transform(Image.new("RGB", (160, 160), (90, 90, 90)))
    torch.testing.assert_close(tensor, torch.full((1, 160, 160), (90 / 255 - 0.5) / 0.25))
    with torch.no_grad():
        assert torch.equal(loaded.model(tensor[None]), model(tensor[None]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["timm's", "the bundled model's"])
def test_damaged_configurations_are_one_line_and_ask_no_network(kind, tmp_path, monkeypatch):
    def no_network(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    config = GREY
    if kind == "timm's":
        state = timm.create_model("test_vit", num_classes=2, in_chans=1).state_dict()
        save_file(state, tmp_path / "model.safetensors")
    else:
        config = json.loads((bundled_folder() / "config.json").read_text())
        shutil.copy(bundled_folder() / "model.safetensors", tmp_path)
    refused = 0
    for seed in range(10):
        (tmp_path / "config.json").write_text(json.dumps(damaged(config, seed)))
        try:
            loaded = load_model(checkpoint=tmp_path)
            loaded.model(loaded.transform(Image.new("RGB", (50, 50)))[None])
        except RequestError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 4


def test_a_model_in_memory_takes_no_checkpoint():
    with pytest.raises(RequestError, match="pass it alone"):
        load_model(make_vit(), checkpoint="a.pth")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=2, in_chans=1).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"pretrained": True}, "that would load weights from elsewhere"),
        ({"checkpoint_path": "/etc/passwd"}, "that would load weights from elsewhere"),
        ({"pretrained_cfg": {"hf_hub_id": "a/b"}}, "that would load weights from elsewhere"),
        ({"embed_layer": {"backbone": {"name": "hf-hub:a/b"}}}, "weights from elsewhere"),
        ({"depth": 10**9}, "depth=1000000000: it is too large"),
    ],
)
def test_arguments_that_lead_elsewhere_or_nowhere(args, reason, folder, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    (folder / "config.json").write_text(json.dumps({**GREY, "model_args": args}))
    with pytest.raises(RequestError, match=reason):
        load_model(checkpoint=folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps({**GREY, "interpolation": "cubic"}), "interpolation must be one of nearest"),
        ('{"architecture":' + "[" * 100_000, "no readable config"),
        ("[]", "holds no settings by name"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(text, reason, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(RequestError, match=reason) as caught:
        load_model(checkpoint=folder)
    assert len(str(caught.value)) < 400
