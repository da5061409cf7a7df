"""Other tools do the same work: their maps are ours where they should be."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import peer_folders, peer_maps, peers
from benchmarks.peer_folders import CATEGORY, LOOPS, SIDE, TRANSFORM, patches_as_image
from benchmarks.peer_maps import OLDER, OURS, WORKS
from helpers import ROOT, make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.drawing.overlay import draw_published
from vitexplain.methods.registry import METHODS


def network(_weights=None):
    return make_vit(img_size=SIDE, patch_size=16, depth=2, num_classes=300)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("cat", "koala"):
        image = Image.open(ROOT / "examples" / f"{name}.jpg").convert("RGB")
        image.resize((90, 60)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


@pytest.mark.slow
@pytest.mark.parametrize("work", peers.installed(WORKS), ids=lambda work: work.title)
def test_maps_agree(work):
    images = peers.photographs(1)
    runs = {name: tool.make(network()) for name, tool in work.tools.items()}
    (first, *others) = peers.agreement(work.tools, runs, images, [5]).items()
    assert first[1] is None
    for name, (difference, correlation) in others:
        # our own rollouts are of another arithmetic than the script's
        if name in ("rollout", "grad_rollout"):
            assert difference > 0.01
        else:
            assert difference < 1e-3
            assert correlation > 0.999


def test_agreement_is_that_of_scaled_maps():
    """Of maps in forms of their own, both divided by their largest values."""
    pixels = np.zeros((1, 3, SIDE, SIDE), dtype=np.float32)
    pixels[:, :, :16, :16], pixels[:, :, :16, 16:32] = 2, 1
    maps = np.zeros((1, 14, 14), dtype=np.float32)
    maps[0, 0, 0], maps[0, 0, 1] = 10, 4
    tools = {
        "theirs": peer_maps.Tool("captum", None, own=peer_maps.of_patches),
        "ours": peer_maps.Tool(OURS, None),
    }
    runs = {"theirs": lambda *_: pixels, "ours": lambda *_: maps}
    found = peers.agreement(tools, runs, torch.zeros(1), [0])
    assert found["theirs"] is None
    assert found["ours"] == pytest.approx((0.1, 1))


def test_missing_tools_are_named(monkeypatch, capsys):
    monkeypatch.setattr(peers, "find_spec", lambda module: module == "vitexplain")
    found = peers.installed(WORKS)
    assert {tool.by for work in found for tool in work.tools.values()} == {OURS, OLDER}
    assert "Grad-CAM: without torchcam, which is not installed" in capsys.readouterr().err


def published_rollout(model, image):
    return VITAttentionRollout(model, head_fusion="max", as_published=True)(image)


def published_grad_rollout(model, image):
    return VITAttentionGradRollout(model, as_published=True)(image, CATEGORY)


@pytest.mark.parametrize(
    ("name", "ours"),
    [("older_rollout", published_rollout), ("older_grad_rollout", published_grad_rollout)],
)
def test_loops_of_the_older_script(name, ours, folder, tmp_path, monkeypatch, capsys):
    """Overlays are those of `--as_published`."""
    monkeypatch.setattr(peer_folders, "network", network)
    assert peer_folders.main([name, str(folder), str(tmp_path / "out"), "none"]) == 0
    assert json.loads(capsys.readouterr().out) == {"explained": 2}
    for path in folder.iterdir():
        image = Image.open(path).convert("RGB").resize((SIDE, SIDE))
        mask = ours(network(), TRANSFORM(image)[None])
        expected = draw_published(np.array(image), mask).astype(int)
        drawn = cv2.imread(str(tmp_path / "out" / path.name))[:, :, ::-1]
        assert np.abs(drawn - expected).max() <= 2


def test_loop_of_grad_cam_draws_our_map(folder, tmp_path):
    """The overlay is that of our own Grad-CAM of the most likely category."""
    image_tools = pytest.importorskip("pytorch_grad_cam.utils.image")
    LOOPS["grad_cam"](network(), sorted(folder.iterdir()), tmp_path)
    image = cv2.resize(cv2.imread(str(folder / "cat.png"))[:, :, ::-1], (SIDE, SIDE))
    image = np.float32(image) / 255
    seen = torch.from_numpy((image - 0.5) / 0.5).permute(2, 0, 1)[None]
    scores = METHODS["gradcam"].make(network()).explain(seen).scores
    (mask,) = peer_maps.as_grad_cam(scores)
    expected = image_tools.show_cam_on_image(image, mask).astype(int)
    assert np.abs(cv2.imread(str(tmp_path / "cat.png")) - expected).max() <= 2


def test_tokens_become_an_image():
    tokens = torch.arange(2 * 5 * 3).reshape(2, 5, 3)
    image = patches_as_image(tokens)
    assert image.shape == (2, 3, 2, 2)
    assert torch.equal(image[1, :, 1, 0], tokens[1, 3])


def test_the_table_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "network", network)
    monkeypatch.setattr(peers, "WORKS", WORKS[:1])
    monkeypatch.setattr(peers, "fresh_memory", lambda *_: 12.0)
    threads = torch.get_num_threads()
    page = tmp_path / "page.md"
    page.write_text(f"a\n{peers.BEGIN}\nold\n{peers.END}\nb\n")
    try:
        given = ["--folder", "0", "--rounds", "1", "--seconds", "0", "--write", str(page)]
        assert peers.main(given) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert page.read_text() == f"a\n{peers.BEGIN}\n{printed}{peers.END}\nb\n"
    rows = [line.split(" | ") for line in printed.splitlines() if " rollout | " in line]
    assert [row[1] for row in rows] == [OLDER, f"{OURS}, `--as_published`", OURS]
    assert all(float(row[3]) > 0 and row[5] == "12 MiB" for row in rows)
    assert float(rows[1][6]) < 1e-4 < float(rows[2][6])


def test_weights_come_from_the_file(tmp_path):
    model = peer_folders.network(None)
    changed = {name: value + 1 for name, value in model.state_dict().items()}
    save_file(changed, tmp_path / "model.safetensors")
    loaded = peer_folders.network(tmp_path / "model.safetensors")
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[name], changed[name]) for name in changed)
