"""`from vitexplain import explain`: one call, and what comes back."""

import io
import re
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import vitexplain
from helpers import make_vit, texts_of
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain import METHODS, Explanation, RequestError, explain, load_model
from vitexplain.cli.main import main
from vitexplain.faithfulness.score import faithfulness
from vitexplain.images.reading import open_image


@pytest.fixture(scope="module")
def both(examples):
    return examples / "both.png"


@pytest.fixture(scope="module")
def tensor(bundled, both):
    return bundled.transform(open_image(both))[None]


def test_without_a_category_it_is_attention_rollout(bundled, both, tensor):
    found = explain(both, model=bundled)
    expected = VITAttentionRollout(bundled.model, head_fusion="max")(tensor)
    assert isinstance(found, Explanation)
    np.testing.assert_array_equal(found.map, expected)
    assert found.map.dtype == np.float32 and found.map.max() == 1
    assert found.category is None
    assert found.method == {
        "name": "attention_rollout", "head_fusion": "max", "discard_ratio": 0.9, "start_block": 0,
        "as_published": False,
    }  # fmt: skip
    shares = bundled.model(tensor).softmax(dim=1)[0]
    best = shares.topk(5)
    assert [each.index for each in found.top] == best.indices.tolist()
    np.testing.assert_allclose(
        [each.probability for each in found.top], best.values.detach(), rtol=1e-4
    )
    assert found.top[0].name == bundled.categories[best.indices[0]]


@pytest.mark.parametrize("category", [282, "tiger cat", "282"])
def test_with_a_category_it_is_gradient_rollout(bundled, both, tensor, category):
    found = explain(both, category, model=bundled, discard_ratio=0.5)
    expected = VITAttentionGradRollout(bundled.model, discard_ratio=0.5)(tensor, 282)
    np.testing.assert_array_equal(found.map, expected)
    assert (found.category.index, found.category.short_name) == (282, "tiger cat")
    share = bundled.model(tensor).softmax(dim=1)[0, 282].detach()
    assert found.category.probability == pytest.approx(float(share), rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method(bundled, both, tensor, name, few_steps):
    found = explain(both, model=bundled, method=name)
    made = METHODS[name].make(bundled.model)
    np.testing.assert_array_equal(found.map, made.explain(tensor).masks[0])
    assert (found.category == found.top[0]) is METHODS[name].of_category
    positive = found.scores.clip(min=0)
    np.testing.assert_allclose(found.map, positive / positive.max(), atol=1e-6)
    signed = name in ("gradcam", "attnlrp", "consensus", "integrated_gradients", "occlusion")
    assert bool(found.scores.min() < 0) is signed


def test_methods_have_the_commands_names(bundled, both):
    short = explain(both, model=bundled, method="rollout")
    np.testing.assert_array_equal(short.map, explain(both, model=bundled).map)


def test_whatever_stands_for_an_image_gives_the_same_map(bundled, both):
    image = Image.open(both).convert("RGB")
    array = np.asarray(image)
    kinds = [
        both,
        str(both),
        image,
        array,
        np.float64(array) / 255,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        torch.from_numpy(np.float32(array) / 255).permute(2, 0, 1),
    ]
    maps = [explain(each, model=bundled).map for each in kinds]
    for other in maps[1:]:
        np.testing.assert_array_equal(maps[0], other)
    for batch in (np.stack([array, array]), torch.stack([kinds[-1]] * 2)):
        for found in explain(batch, model=bundled):
            np.testing.assert_allclose(found.map, maps[0], atol=1e-5)


def test_a_turned_photograph_is_upright(bundled, both, tmp_path):
    image = Image.open(both).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert turned.size == image.size[::-1]
        found = explain(turned, model=bundled)
    assert found.image.tobytes() == image.tobytes()


def test_a_list_gives_a_list_in_its_order(bundled, examples, monkeypatch):
    paths = sorted(examples.glob("*.jpg"))[:5]
    monkeypatch.setattr("vitexplain.attention.batches.CPU_BATCH", 2)
    found = explain(paths, "top", model=bundled)
    assert len(found) == 5
    for path, each in zip(paths, found, strict=True):
        alone = explain(path, "top", model=bundled)
        np.testing.assert_allclose(each.map, alone.map, atol=1e-4)
        assert each.category.index == alone.category.index
        assert each.image.tobytes() == open_image(path).tobytes()
    assert explain([], model=bundled) == []


def test_a_model_of_ones_own_stays_as_it_was():
    model = make_vit().train()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = explain(image, category=3, model=model)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    expected = VITAttentionGradRollout(model)((pixels - mean) / std, 3)
    np.testing.assert_allclose(found.map, expected, atol=1e-6)
    assert found.category[:2] == (3, "category 3")
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value)


def test_overlay_and_files_are_the_commands(bundled, both, tmp_path):
    given = ["--model", "bundled", "--category", "tiger cat", "--output_dir", str(tmp_path)]
    assert main(["--image_path", str(both), *given, "--save_mask", "--quiet"]) == 0
    stem = "both_grad_rollout_282_0.900_mean"
    found = explain(both, "tiger cat", model="bundled")
    commands = Image.open(tmp_path / f"{stem}.png")
    assert found.overlay().tobytes() == commands.convert("RGB").tobytes()
    np.testing.assert_array_equal(found.map, np.load(tmp_path / f"{stem}.npy"))
    saved = Image.open(found.save(tmp_path / "saved.png"))
    assert saved.tobytes() == commands.tobytes()
    assert saved.text.keys() == commands.text.keys()
    for key in ("Software", "Model", "Versions", "Method", "Category"):
        assert saved.text[key] == commands.text[key]
    assert saved.text["Command"] == "explain(image, category='tiger cat')"
    np.testing.assert_array_equal(np.load(found.save(tmp_path / "map.npy")), found.map)
    for suffix in ("jpg", "webp"):
        drawn = np.asarray(Image.open(found.save(tmp_path / f"a.{suffix}")).convert("RGB"), int)
        assert np.abs(drawn - np.asarray(found.overlay(), int)).mean() < 6
        assert texts_of(tmp_path / f"a.{suffix}") == saved.text
    small = Image.open(found.save(tmp_path / "small.JPG", size=100))
    assert max(small.size) == 100 == max(found.overlay(size=100).size)
    assert found.overlay(alpha=0).tobytes() == found.image.tobytes()
    assert found.overlay(colormap="jet").tobytes() != found.overlay().tobytes()


@pytest.mark.slow
def test_probabilities_are_not_taken_for_logits():
    """A softmax of a softmax would make nearly equal shares of them."""
    model = nn.Sequential(make_vit(), nn.Softmax(dim=-1)).eval()
    image = np.random.default_rng(0).random((32, 32, 3))
    with pytest.raises(RequestError, match="its outputs are probabilities already: pass it with"):
        explain(image, category="top", model=model)
    log = nn.Sequential(make_vit(), nn.LogSoftmax(dim=-1)).eval()
    found, plain = (explain(image, category="top", model=m) for m in (log, make_vit()))
    assert found.top[0].probability == pytest.approx(plain.top[0].probability, abs=1e-6)


def test_stretching_is_asked_for_by_call_or_by_model(bundled):
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 4096, (64, 64)).astype(np.uint16)
    given = explain(dark, category="top", model=bundled, stretch=True)
    low, high = np.percentile(dark, (0.1, 99.9))
    seen = np.uint8(np.round(((dark - low) / (high - low)).clip(0, 1) * 255))
    by_hand = explain(seen, category="top", model=bundled)
    assert np.array_equal(given.map, by_hand.map)
    with pytest.warns(UserWarning, match="of 65535: the model sees it dark"):
        explain(dark, model=bundled)


def test_faithfulness_is_measured_on_the_category(bundled, both, tensor):
    found = explain(both, "bull mastiff", model=bundled)
    assert found.faithfulness() == faithfulness(bundled.model, tensor[0], found.map, 243)
    rollout = explain(both, model=bundled)
    expected = faithfulness(bundled.model, tensor[0], rollout.map, rollout.top[0].index)
    assert rollout.faithfulness() == expected


def test_a_notebook_displays_it(bundled, both, monkeypatch):
    found = explain(both, "top", model=bundled)
    shown = Image.open(io.BytesIO(found._repr_png_()))
    assert shown.size == (480, 240)
    page = found._repr_html_()
    assert page.count("<img ") == 2 and page.count("<tr>") == 5
    for each in found.top:
        assert each.name.split(",")[0] in page and f"{each.probability:.1%}" in page
    displayed = []
    module = types.ModuleType("IPython.display")
    module.display = displayed.append
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr("builtins.get_ipython", lambda: shell, raising=False)
    found.show()
    assert displayed == [found]


def test_names_in_a_notebook_are_escaped(both):
    loaded = load_model("bundled")
    loaded.categories = [f"<script>{name}" for name in loaded.categories]
    page = explain(both, "top", model=loaded)._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_show_says_where_no_window_can_be_opened(bundled, both, monkeypatch):
    monkeypatch.setattr("vitexplain.drawing.window.show", lambda _path: "no display")
    with pytest.warns(UserWarning, match=r"no window can be opened here \(no display\)"):
        explain(both, model=bundled).show()


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        ("missing.png", {}, "no image at missing.png"),
        (np.zeros((5, 5, 5), np.uint8), {}, r"must be \(H, W, 3\)"),
        (np.zeros(5, np.uint8), {}, r"must be \(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), {}, r"must be \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.int32), {}, "uint8 or floats from 0 to 1, not int32"),
        (np.full((4, 4, 3), np.nan), {}, "floats must be from 0 to 1"),
        (torch.randn(3, 4, 4), {}, "floats must be from 0 to 1"),
        (torch.zeros(4, 4, 3), {}, r"must be \(3, H, W\)"),
        (7, {}, "not int"),
        (None, {"method": "rolout"}, "unknown method 'rolout'; choose from attention_rollout"),
        (None, {"method": "legrad", "head": 3}, "legrad has no option 'head'; its options: start"),
        (None, {"alpha": 0.3}, "attention_rollout has no option 'alpha'"),
        (None, {"discard_ratio": 1.5}, "discard_ratio must be"),
        (None, {"category": "no such thing"}, "no such thing"),
        (None, {"category": 5000}, "5000"),
        (None, {"category": 3, "method": "attention"}, "the same for every category"),
        (None, {"device": "cpu"}, "device is for a model that is named"),
        (None, {"model": "no_such_model"}, "no model called no_such_model"),
        (None, {"model": torch.nn.Linear(2, 2)}, "can't be explained"),
    ],
)
def test_wrong_requests_say_why(bundled, both, image, arguments, message):
    arguments = {"model": bundled} | arguments
    with pytest.raises(RequestError, match=message):
        explain(both if image is None else image, **arguments)


def test_wrong_files_and_styles_say_why(bundled, both, tmp_path):
    found = explain(both, model=bundled)
    with pytest.raises(RequestError, match=re.escape("must end in one of .png")):
        found.save(tmp_path / "a.docx")
    with pytest.raises(RequestError, match="alpha must be from 0 to 1"):
        found.overlay(alpha=2)
    with pytest.raises(RequestError, match="colormap must be one of"):
        found.save(tmp_path / "a.png", colormap="rainbows")
    with pytest.raises(RequestError, match="size must be image, model or pixels from 1"):
        found.save(tmp_path / "a.png", size=0)
    wide = explain(Image.new("RGB", (16_384, 2)), model=bundled)
    with pytest.raises(RequestError, match="WebP holds at most 16383 pixels a side"):
        wide.save(tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


def test_the_package_has_what_it_lists():
    assert {*vitexplain.__all__} <= {*dir(vitexplain)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vitexplain.nothing  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from vit_explain import explain as of_the_command

    assert of_the_command is explain
