import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.images.reading import open_image
from vitexplain.models import hub, loading
from vitexplain.models.bundled import ModelError
from vitexplain.models.loading import any_model, load_model, set_input_size


def test_bundled_model_knows_a_cat(examples):
    loaded = load_model("bundled")
    assert loaded.name == "bundled"
    assert not loaded.model.training
    assert len(loaded.categories) == 1000
    image = open_image(examples / "cat.jpg")
    tensor = loaded.transform(image)
    assert tensor.shape == (3, 224, 224)
    top1 = loaded.model(tensor[None])[0].topk(3).indices.tolist()
    assert set(top1) <= {281, 282, 285, 287}  # tabby, tiger cat, Egyptian cat, lynx
    assert loaded.category_index("Tiger Cat") == 282
    assert loaded.category_index(243) == 243


def test_bundled_model_is_small_and_holds_no_code():
    folder = loading.bundled_folder()
    assert (folder / "model.safetensors").stat().st_size <= 12_000_000
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert json.loads((folder / "config.json").read_text())["categories"] == "ImageNet-1k"


def test_auto_takes_the_bundled_model_where_nothing_can_be_downloaded():
    loaded = load_model()
    assert loaded.name == "bundled"
    assert "weights of deit_tiny_patch16_224.fb_in1k are not in the local cache" in loaded.notice


def test_auto_takes_deit_where_the_cache_has_it(monkeypatch, tmp_path):
    """The cache as the hub client lays it out; the network is off."""
    torch.manual_seed(0)
    weights = timm.create_model("deit_tiny_patch16_224").state_dict()
    folder = tmp_path / "models--timm--deit_tiny_patch16_224.fb_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(weights, folder / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    # bound as defaults when the client was imported
    for name in ("try_to_load_from_cache", "hf_hub_download"):
        original = getattr(hub.huggingface_hub, name)
        cached = partial(original, cache_dir=str(tmp_path))
        monkeypatch.setattr(hub.huggingface_hub, name, cached)
    original = timm.models._hub.hf_hub_download

    def from_cache(*args, **kwargs):
        return original(*args, **kwargs | {"cache_dir": str(tmp_path)})

    monkeypatch.setattr("timm.models._hub.hf_hub_download", from_cache)
    loaded = load_model()
    assert (loaded.name, loaded.notice) == ("deit_tiny_patch16_224.fb_in1k", "")
    assert torch.equal(loaded.model.head.weight, weights["head.weight"])
    assert loaded.categories[282] == "tiger cat"


def test_named_model_without_network():
    with pytest.raises(ModelError) as caught:
        load_model("vit_base_patch16_224")
    message = str(caught.value)
    assert "weights of vit_base_patch16_224 are not in the local cache" in message
    assert "--model bundled" in message
    assert "--checkpoint" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deit_tinny_patch16_224", "no model called deit_tinny_patch16_224; nearest: deit_tiny"),
        ("qqqq", "no model called qqqq"),
        ("deit_tiny_patch16_224.nonsense", "Invalid pretrained tag"),
        ("timm/deit_tiny_patch16_224", "hf-hub:"),
        ("ftp:deit", "Unknown model source"),
        ("local-dir:/nowhere/at/all", "can't be loaded"),
        ("hf-hub:nobody/nothing", "not in the local cache"),
        ("vit_small_patch16_18x2_224", "were never published"),
    ],
)
def test_models_that_cant_be_had(name, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_unsupported_models_are_refused_before_any_download():
    for name in ("resnet18", "xcit_nano_12_p16_224"):
        with pytest.raises(UnsupportedModel, match=name):
            load_model(name)


def test_input_size_is_changed_through_the_models_own_means(examples):
    """At another size the grid is another, and what is in the image still the same."""
    image = open_image(examples / "coffee.jpg")
    for size in ((288, 320), (224, 448)):
        loaded = load_model("bundled", img_size=size)
        tensor = loaded.transform(image)
        assert tensor.shape == (3, *size)
        with torch.no_grad():
            assert loaded.model(tensor[None]).argmax().item() == 967
        grid = (size[0] // 16, size[1] // 16)
        assert VITAttentionRollout(loaded.model).batch(tensor[None]).shape == (1, *grid)
        assert loaded.model.patch_embed.grid_size == grid


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("swin_tiny_patch4_window7_224", (168, 340), (170, 340)),
        ("eva02_tiny_patch14_224", (126, 224), (128, 224)),
        ("beit_base_patch16_224", (144, 256), (144, 250)),
        ("vit_relpos_small_patch16_224", (144, 256), (144, 250)),
        ("vit_tiny_r_s16_p8_224", (128, 256), (144, 256)),
    ],
)
def test_input_sizes_of_other_families(name, good, bad):
    small = {"embed_dim": 48, "num_heads": 3, "depth": 2}
    if name.startswith("swin"):
        small = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2)}
    model = timm.create_model(name, num_classes=3, **small).eval()
    with pytest.raises(ModelError, match=r"does not take \d+x\d+ images: its patches have"):
        set_input_size(model, bad)
    with pytest.raises(ModelError, match=r"would be \d{8,} patches"):
        set_input_size(model, (10_000 * good[0], 10_000 * good[1]))
    set_input_size(model, good)
    down, across = model.patch_embed.feat_ratio(as_scalar=False)
    masks = VITAttentionGradRollout(model, discard_ratio=0).batch(torch.randn(1, 3, *good))
    assert masks.shape == (1, good[0] // down, good[1] // across)


@pytest.fixture
def fine_tuned(tmp_path):
    """(path of a three-category checkpoint of timm's test_vit, the model)."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3)
    save_file(model.state_dict(), tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors", model.eval()


def test_checkpoint(fine_tuned, tmp_path):
    path, model = fine_tuned
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n")
    loaded = load_model("test_vit", path, tmp_path / "names.txt")
    assert loaded.categories == ["ant", "bee", "cow"]
    assert loaded.category_index("Bee") == 1
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(loaded.model(images), model(images))
    assert load_model("test_vit", path).categories == ["category 0", "category 1", "category 2"]


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module."])
def test_checkpoint_as_training_scripts_save_it(fine_tuned, tmp_path, wrap):
    _, model = fine_tuned
    state = model.state_dict()
    if wrap == "module.":
        state = {f"module.{key}": value for key, value in state.items()}
    torch.save({wrap: state, "epoch": 3} if wrap in ("state_dict", "model") else state,
               tmp_path / "tuned.pth")  # fmt: skip
    loaded = load_model("test_vit", tmp_path / "tuned.pth")
    images = torch.randn(1, 3, 160, 160)
    assert torch.equal(loaded.model(images), model(images))


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/vit_explain_was_here", "w"))


def test_checkpoint_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="can't be read") as caught:
        load_model("test_vit", tmp_path / "evil.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _path: None, "no checkpoint at"),
        (lambda path: path.write_text("no weights"), "can't be read"),
        (lambda path: torch.save([1, 2], path), "can't be read|holds no tensors"),
        (lambda path: torch.save({"epoch": 1}, path), "holds no tensors"),
        (lambda path: torch.save(make_vit().state_dict(), path), "does not fit test_vit"),
    ],
)
def test_wrong_checkpoints(tmp_path, make, message):
    make(tmp_path / "wrong.pth")
    with pytest.raises(ModelError, match=message) as caught:
        load_model("test_vit", tmp_path / "wrong.pth")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_checkpoint_without_a_head_has_no_categories(tmp_path):
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), tmp_path / "features.safetensors")
    loaded = load_model("test_vit", tmp_path / "features.safetensors")
    assert loaded.categories == []
    assert loaded.model.num_classes == 0


def test_checkpoint_for_the_bundled_architecture(tmp_path):
    config = json.loads((loading.bundled_folder() / "config.json").read_text())
    torch.manual_seed(0)
    network = loading.build_network(config, num_classes=2).eval()
    save_file(network.state_dict(), tmp_path / "tuned.safetensors")
    loaded = load_model("bundled", tmp_path / "tuned.safetensors")
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(loaded.model(images), network(images))
    torch.save(make_vit().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ModelError, match="does not fit bundled"):
        load_model("bundled", tmp_path / "other.pth")


def test_checkpoint_needs_an_architecture(fine_tuned):
    with pytest.raises(ModelError, match="needs one of timm's architectures"):
        load_model("hf-hub:timm/test_vit", fine_tuned[0])


def test_local_dir(tmp_path):
    """A folder as timm's own save_for_hf writes it."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=2).eval()
    timm.models.save_for_hf(
        model, tmp_path, model_config={"label_names": ["ant", "bee"]}, safe_serialization=True
    )
    loaded = load_model(f"local-dir:{tmp_path}")
    assert loaded.categories == ["ant", "bee"]
    images = torch.randn(1, 3, 160, 160)
    assert torch.equal(loaded.model(images), model(images))


def test_transform_is_the_models_own():
    """DeiT-tiny has ImageNet's mean and deviation, the bundled model 0.5."""
    grey = Image.new("RGB", (300, 200), (124, 116, 104))
    state = timm.create_model("deit_tiny_patch16_224").state_dict()
    bundled = load_model("bundled")
    np.testing.assert_allclose(bundled.transform(grey)[:, 9, 9], [-0.0275, -0.0902, -0.1843],
                               atol=1e-4)  # fmt: skip
    deit = loading._transform(
        loading.resolve_model_data_config(timm.create_model("deit_tiny_patch16_224")), "center"
    )
    np.testing.assert_allclose(deit(grey)[:, 9, 9], [0.0056, -0.0049, 0.0082], atol=1e-3)
    # short side 200 to floor(224 / 0.9) = 248, of which the middle 224: 12 * 200 / 248 = 9.68
    assert deit.region(300, 200) == pytest.approx((59.68, 9.68, 240.32, 190.32), abs=0.01)
    assert state["pos_embed"].shape[1] == 197


def test_unavailable_hub_is_asked_once_and_not_for_long(monkeypatch):
    """With the network 'on' but nobody answering, the answer comes within seconds."""
    asked = []

    def hang(*_args, **_kwargs):
        asked.append(1)
        threading_event.wait(60)

    import threading
    import time

    threading_event = threading.Event()
    monkeypatch.setattr(hub.huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub.huggingface_hub, "get_hf_file_metadata", hang)
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(hub.WeightsUnavailable, match="the hub does not answer"), \
            hub.weights_at_hand("timm/nothing", None):  # fmt: skip
        pass
    threading_event.set()
    assert asked == [1]
    assert time.monotonic() - started < 30


def test_missing_repository_is_said_to_be_missing(monkeypatch):
    def missing(*_args, **_kwargs):
        import httpx2

        response = httpx2.Response(404, request=httpx2.Request("HEAD", "http://hub"))
        raise hub.RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(hub.huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub.huggingface_hub, "get_hf_file_metadata", missing)
    with pytest.raises(hub.WeightsUnavailable, match="no public repository"), \
            hub.weights_at_hand("nobody/nothing", None):  # fmt: skip
        pass


def test_folder_that_says_itself_what_it_is(tmp_path):
    """The bundled model's own layout, with categories of one's own."""
    config = json.loads((loading.bundled_folder() / "config.json").read_text())
    config["args"]["num_classes"] = 2
    config["categories"] = ["ant", "bee"]
    torch.manual_seed(0)
    network = loading.build_network(config).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(checkpoint=tmp_path)
    assert loaded.categories == ["ant", "bee"]
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(loaded.model(images), network(images))
    with pytest.raises(ModelError, match="leave out test_vit"):
        load_model("test_vit", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="no readable config"):
        load_model(checkpoint=tmp_path)


def test_model_that_need_not_be_explained(tmp_path):
    torch.manual_seed(0)
    save_file(
        timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "cnn.safetensors"
    )
    loaded = load_model("test_resnet", tmp_path / "cnn.safetensors", check=any_model)
    assert len(loaded.categories) == 3
    with pytest.raises(UnsupportedModel):
        load_model("test_resnet", tmp_path / "cnn.safetensors")


def test_models_whose_size_is_fixed_say_so():
    model = timm.create_model("pit_ti_224").eval()
    set_input_size(model, (224, 224))
    with pytest.raises(ModelError, match="does not take 256x256 images: The size of tensor"):
        set_input_size(model, (256, 256))
    set_input_size(timm.create_model("test_resnet").eval(), (70, 90))
