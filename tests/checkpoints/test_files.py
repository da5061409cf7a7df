"""Files of other people's weights: each gives the logits of the model that they were saved from."""

import argparse
import collections
import io
import os
import pathlib
import re
import sys
import types
import zipfile

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vitexplain.errors import ModelError
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import load_model

NAME, SIZE, WIDTH = "test_vit", 160, 64


def randomised(model):
    """Weights in which nothing is hidden behind zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def made(name=NAME, **changes):
    torch.manual_seed(0)
    return randomised(timm.create_model(name, **{"num_classes": 7} | changes))


def outputs(model, size=SIZE, channels=3):
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images)


@pytest.fixture(scope="module")
def vit():
    return made()


@pytest.fixture
def save(tmp_path):
    def save(obj, name="weights.pth"):
        torch.save(obj, tmp_path / name)
        return tmp_path / name

    return save


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def without_head(state):
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def head_as(name, state):
    head = {f"{name}.{kind}": state[f"head.{kind}"] for kind in ("weight", "bias")}
    return without_head(state) | head


class Settings:
    """A class of the training script, which is not here when the file is read."""

    def __init__(self):
        self.rate = 0.1


class AttributeDict(dict):
    """As Lightning keeps hyper-parameters in."""


AttributeDict.__module__ = "lightning_there.parsing"
AttributeDict.__qualname__ = "AttributeDict"


@pytest.fixture
def elsewhere(monkeypatch):
    """Modules that exist while a file is written, and not when it is read."""
    package, module = (
        types.ModuleType("lightning_there"),
        types.ModuleType(AttributeDict.__module__),
    )
    module.AttributeDict = AttributeDict
    monkeypatch.setitem(sys.modules, "lightning_there", package)
    monkeypatch.setitem(sys.modules, AttributeDict.__module__, module)


LAYOUTS = {
    "bare": lambda s: s,
    "DataParallel": lambda s: prefixed("module.", s),
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "parallel and compiled": lambda s: {"state_dict": prefixed("module._orig_mod.", s)},
    "compiled and parallel": lambda s: prefixed("_orig_mod.module.", s),
    **{f"prefix {p}": (lambda s, p=p: prefixed(p, s))
       for p in ("model.", "net.", "vit.", "backbone.", "encoder.", "timm_model.", "module.model.",
                 "base_model.model.", "my.own.wrapper.")},
    **{f"under {k}": (lambda s, k=k: {k: s, "epoch": 3, "optimizer": {"state": {}}})
       for k in ("model", "state_dict", "model_state_dict", "net", "weights", "encoder", "ema",
                 "whatever")},
    "Lightning": lambda s: {
        "epoch": 1,
        "pytorch-lightning_version": "2.4",
        "state_dict": {**prefixed("model.", s), "criterion.weight": torch.ones(7)},
        "hyper_parameters": {"lr": 1e-3},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    },
    "data beside": lambda s: {
        "model": s,
        "best": np.float64(0.5),
        "history": np.arange(4.0),
        "args": argparse.Namespace(lr=1, path=pathlib.Path("/x")),
        "counts": collections.defaultdict(list, {"a": [1]}),
    },
    "classes beside": lambda s: {
        "state_dict": s, "settings": Settings(), "hparams": AttributeDict(lr=1)
    },
    "teacher and student": lambda s: {
        "student": prefixed("module.backbone.", {k: torch.zeros_like(v) for k, v in s.items()}),
        "teacher": prefixed("backbone.", s),
    },
    **{f"head {h}": (lambda s, h=h: head_as(h, s))
       for h in ("classifier", "fc", "heads.head", "head.1", "classifier.0", "linear")},
    "classifier beside the trunk": lambda s: {
        **prefixed("backbone.", without_head(s)),
        "classifier.weight": s["head.weight"],
        "classifier.bias": s["head.bias"],
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wherever_weights_are_in_a_file(layout, vit, save, elsewhere):
    loaded = load_model(NAME, save(LAYOUTS[layout](vit.state_dict())))
    assert torch.equal(outputs(loaded.model), outputs(vit))
    assert len(loaded.categories) == 7


def test_maps_are_those_of_the_same_weights_in_timm(vit, save):
    loaded = load_model(NAME, save({"state_dict": prefixed("backbone.", vit.state_dict())}))
    images = torch.randn(1, 3, SIZE, SIZE)
    for name in ("attention_rollout", "grad_rollout"):
        found, expected = (METHODS[name].make(m).batch(images) for m in (loaded.model, vit))
        np.testing.assert_array_equal(found, expected)


def test_what_was_found_and_passed_over_is_said(vit, save):
    decoder = {"decoder_embed.weight": torch.zeros(8, WIDTH), "decoder_pred.bias": torch.zeros(8)}
    mae = without_head(vit.state_dict()) | {"mask_token": torch.zeros(1, 1, WIDTH)} | decoder
    loaded = load_model(NAME, save({"model": mae}))
    assert loaded.categories == []
    assert "passed over: decoder_embed (1), decoder_pred (1)" in loaded.notice
    student = {"student": vit.state_dict(), "teacher": prefixed("backbone.", vit.state_dict())}
    notice = load_model(NAME, save(student)).notice
    assert "weights under 'teacher'" in notice
    assert "behind the prefix 'backbone.'" in notice
    assert "student (80)" in notice


def test_a_norm_before_the_classifier(save):
    model = made(num_classes=0)
    model.head = randomised(
        nn.Sequential(nn.LayerNorm(WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, 5))
    )
    loaded = load_model(NAME, save(model.state_dict()))
    assert torch.equal(outputs(loaded.model), outputs(model))
    model.head = randomised(nn.Sequential(nn.BatchNorm1d(WIDTH, affine=False), nn.Linear(WIDTH, 5)))
    loaded = load_model(NAME, save(model.state_dict()))
    assert torch.equal(outputs(loaded.model), outputs(model))
    assert len(loaded.categories) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 3},
        {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1},
        {"qk_norm": True, "qkv_bias": False},
        {"pre_norm": True},
        {"in_chans": 1},
        {"class_token": False, "global_pool": "map"},
    ],
)
def test_layers_that_names_and_shapes_tell(changes, save):
    model = made(**changes)
    loaded = load_model(NAME, save(model.state_dict()))
    channels = changes.get("in_chans", 3)
    assert torch.equal(outputs(loaded.model, SIZE, channels), outputs(model, SIZE, channels))


def test_the_files_own_size_is_kept(save):
    model = made(img_size=320)
    path = save(model.state_dict())
    for size in (None, (320, 320)):
        loaded = load_model(NAME, path, img_size=size)
        assert loaded.transform.size == (320, 320)
        assert torch.equal(outputs(loaded.model, 320), outputs(model, 320))
        assert "320x320" in loaded.notice
    smaller = load_model(NAME, path, img_size=(SIZE, SIZE))
    model.set_input_size(img_size=(SIZE, SIZE))
    assert torch.equal(outputs(smaller.model), outputs(model))


def test_patches_in_no_square_need_their_size(save):
    path = save(made(img_size=(160, 320)).state_dict())
    with pytest.raises(ModelError, match="no square of patches; say their height and width"):
        load_model(NAME, path)
    assert load_model(NAME, path, img_size=(160, 320)).transform.size == (160, 320)


def old_swin(state):
    """Before timm moved merging to the start of a stage."""
    return {
        re.sub(r"layers.(\d+).downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        .replace("head.fc.", "head."): value
        for key, value in state.items()
    }  # fmt: skip


def clip_names(state, prefix="visual."):
    """As OpenAI named them."""
    swaps = [
        ("blocks.", "transformer.resblocks."), ("patch_embed.proj", "conv1"),
        ("norm_pre", "ln_pre"), (".norm1", ".ln_1"), (".norm2", ".ln_2"),
        ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ]  # fmt: skip
    new = {}
    for key, value in state.items():
        for old, name in swaps:
            key = key.replace(old, name)
        key = re.sub(r"^norm\.", "ln_post.", key)
        if key == "head.bias":
            continue
        changes = {"cls_token": ("class_embedding", lambda v: v[0, 0]),
                   "pos_embed": ("positional_embedding", lambda v: v[0]),
                   "head.weight": ("proj", lambda v: v.T)}  # fmt: skip
        key, change = changes.get(key, (key, lambda v: v))
        new[prefix + key] = change(value)
    return new


TEXT = {
    "text_projection": torch.zeros(512, 512),
    "logit_scale": torch.tensor(4.6),
    "positional_embedding": torch.zeros(77, 512),
    "transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(2048, 768),
}


def clip(**changes):
    model = made("vit_base_patch32_clip_quickgelu_224", num_classes=512, **changes)
    nn.init.zeros_(model.head.bias)
    return model


def chunked(state):
    """DINOv2's own names: blocks in chunks, registers without positions."""
    new = {re.sub(r"^blocks\.", "blocks.0.", key): value for key, value in state.items()}
    new["register_tokens"] = new.pop("reg_token")
    new["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), new["pos_embed"]], dim=1)
    return {**new, "mask_token": torch.zeros(1, 384)}


FOREIGN = {
    "Swin before timm's change": (
        "swin_tiny_patch4_window7_224", {}, 224, lambda s: {"model": {
            **old_swin(s), "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}}),
    "Swin with other windows": (
        "swin_tiny_patch4_window7_224", {"window_size": 12, "img_size": 384}, 384, lambda s: s),
    "SwinV2 before timm's change": (
        "swinv2_tiny_window8_256", {}, 256, lambda s: {"model": old_swin(s)}),
    "OpenAI's CLIP": (
        "vit_base_patch32_clip_quickgelu_224", clip, 224, lambda s: {**clip_names(s), **TEXT}),
    "a CLIP tower alone": (
        "vit_base_patch32_clip_quickgelu_224", clip, 224, lambda s: clip_names(s, "")),
    "open_clip with a tower of timm's": (
        "vit_base_patch16_siglip_224", {"num_classes": 0}, 224,
        lambda s: {**prefixed("visual.trunk.", s), "text.a": torch.zeros(2)}),
    "EVA-CLIP": (
        "eva02_base_patch16_clip_224", {"num_classes": 512}, 224,
        lambda s: {**prefixed("visual.", s), "text.a": torch.zeros(2)}),
    "BEiT": ("beit_base_patch16_224", {}, 224, lambda s: {"module": s}),
    "BEiT at 384": ("beit_base_patch16_224", {"img_size": 384}, 384, lambda s: s),
    "DINOv2 in chunks, with registers": (
        "vit_small_patch14_reg4_dinov2", {"num_classes": 0, "img_size": 224}, 224,
        lambda s: {"teacher": prefixed("backbone.", chunked(s))}),
    "DeiT with distillation": ("deit_tiny_distilled_patch16_224", {}, 224, lambda s: {"model": s}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", FOREIGN)
def test_names_of_other_code(layout, save):
    name, changes, size, rename = FOREIGN[layout]
    shallow = {"depths": (1, 1, 2, 1)} if name.startswith("swin") else {"depth": 2}
    model = changes(**shallow) if callable(changes) else made(name, **changes, **shallow)
    loaded = load_model(name, save(rename(model.state_dict())), model_args=shallow)
    torch.testing.assert_close(
        outputs(loaded.model, size), outputs(model, size), atol=1e-5, rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["auto", "vit_base_patch32_224"])
def test_torchvisions_vit(name, save):
    theirs = randomised(torchvision.models.vit_b_32(num_classes=5))
    loaded = load_model(name, save(theirs.state_dict()))
    expected = outputs(theirs, 224)
    torch.testing.assert_close(outputs(loaded.model, 224), expected, atol=1e-5, rtol=1e-5)
    assert loaded.transform.mean == pytest.approx((0.485, 0.456, 0.406))
    in_memory = load_model(theirs)
    torch.testing.assert_close(outputs(in_memory.model, 224), expected, atol=1e-5, rtol=1e-5)


def test_ijepa_has_no_class_token(vit, save):
    encoder = prefixed("module.", without_head(vit.state_dict()))
    del encoder["module.cls_token"]
    encoder["module.pos_embed"] = encoder["module.pos_embed"][:, 1:]
    loaded = load_model(NAME, save({"encoder": encoder, "predictor": {"a": torch.zeros(2)}}))
    with torch.no_grad():
        images = torch.randn(1, 3, SIZE, SIZE)
        tokens = loaded.model.forward_features(images)
        assert tokens.shape == (1, 100, WIDTH)
        torch.testing.assert_close(loaded.model(images), tokens.mean(dim=1))


RECOGNISED = {
    "vit_tiny_patch16_224": "deit_tiny_patch16_224",
    "deit_small_distilled_patch16_224": "deit_small_distilled_patch16_224",
    "vit_small_patch14_dinov2": "vit_small_patch14_dinov2",
    "vit_small_patch32_224": "vit_small_patch32_224",
    "swin_tiny_patch4_window7_224": "swin_tiny_patch4_window7_224",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOGNISED)
def test_architectures_are_told_from_shapes(name, save):
    loaded = load_model("auto", save(made(name).state_dict()))
    assert loaded.name == RECOGNISED[name]
    assert f"taken for {loaded.name}" in loaded.notice


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (lambda s: {k: v for k, v in s.items() if "blocks.5" not in k},
         "it has 5 blocks of 64 channels, not 6 of 64"),
        (lambda _: made("deit_small_patch16_224").state_dict(),
         "try --model deit_small_patch16_224"),
        (lambda _: made("vit_tiny_r_s16_p8_224").state_dict(), "does not fit test_vit"),
        (lambda _: made(patch_size=32).state_dict(), "patches of 32x32 pixels, not 16x16"),
        (lambda s: {k: v for k, v in s.items() if k != "blocks.3.mlp.fc2.bias"},
         "lacks 1 of its weights, first blocks.3.mlp.fc2.bias"),
        (lambda s: {**s, "blocks.3.adapter.weight": torch.zeros(2, 2)},
         "which has no blocks.3.adapter.weight"),
        (lambda s: {**without_head(s), "head.0.weight": torch.zeros(64, WIDTH),
                    "head.0.bias": torch.zeros(64), "head.2.weight": torch.zeros(7, 64)},
         "several layers, and what is between them is not in the file"),
        (lambda s: {**without_head(s), "head_a.weight": torch.zeros(2, WIDTH),
                    "head_b.weight": torch.zeros(3, WIDTH)}, "several classifiers"),
        (lambda s: {**without_head(s), "head.weight": torch.zeros(7, 2 * WIDTH)},
         "does not fit the model's 64 features"),
        (lambda _: {"base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.zeros(2, WIDTH),
                    "base_model.model.blocks.0.attn.qkv.lora_B.weight": torch.zeros(2, WIDTH)},
         r"adapters alone, 2 tensors of them: merge them into their model with model\.merge_and"),
        (lambda _: {"epoch": 3}, "holds no tensors by name"),
        (lambda _: nn.Linear(2, 2), "holds a whole model, which is code: save model.state_dict"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(weights, reason, vit, save):
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(NAME, save(weights(vit.state_dict())))
    assert len(str(caught.value)) < 400


class Evil:
    """What a malicious pickle asks for."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.ckpt", "pytorch_model.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(name, zipped, tmp_path, vit):
    trace = tmp_path / "ran"
    for evil in ({"state_dict": vit.state_dict(), "x": Evil(trace)}, [Evil(trace)]):
        torch.save(evil, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ModelError, match=r"mkdir|no tensors"):
            load_model(NAME, tmp_path / name)
        assert not trace.exists()


def test_code_in_a_zip_in_a_zip_is_never_run(tmp_path):
    trace, inner = tmp_path / "ran", io.BytesIO()
    torch.save({"x": Evil(trace)}, inner)
    with zipfile.ZipFile(tmp_path / "outer.pth", "w") as archive:
        archive.writestr("archive/data.pkl", inner.getvalue())
        archive.writestr("archive/version", "3")
    with pytest.raises(ModelError):
        load_model(NAME, tmp_path / "outer.pth")
    assert not trace.exists()


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pt")
    with pytest.raises(ModelError, match="TorchScript archive, which is code"):
        load_model(NAME, tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04nonsense",
        b"\xff" * 64,
        (2**40).to_bytes(8, "little") + b"{}",
        (30).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9',
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files_are_one_line(content, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"can't be read|holds no tensors") as caught:
        load_model(NAME, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pth", b"", "it is empty"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.safetensors", b"\n<!DOCTYPE html><html>", "it is a web page: download the file"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "of Keras or HDF5"),
        ("a.onnx", b"\x08\x07\x12\x07pytorch", "of ONNX"),
        ("a.npz", b"PK\x03\x04" + bytes(99), r"load_pretrained\(path\)"),
    ],
)
def test_files_of_other_kinds_are_named(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"checkpoint .*{name} can't be read: .*{reason}"):
        load_model(NAME, tmp_path / name)


def quantised(vit):
    return torch.ao.quantization.quantize_dynamic(vit, {nn.Linear}).state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v.to(torch.complex64), r"head\.bias holds complex numbers"),
        (lambda v: v.to_sparse(), r"head\.bias holds a sparse tensor"),
        (lambda v: v.to("meta"), r"head\.bias holds no values, but a shape alone"),
    ],
)
def test_weights_that_are_no_ordinary_numbers(change, reason, vit, save):
    state = vit.state_dict()
    with pytest.raises(ModelError, match=reason):
        load_model(NAME, save({**state, "head.bias": change(state["head.bias"])}))


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_refused(vit, save, recwarn):
    path = save(quantised(vit))
    recwarn.clear()
    with pytest.raises(ModelError, match="holds quantised weights, which have no gradients"):
        load_model(NAME, path)
    assert not recwarn.list


def test_safetensors_with_offsets_beyond_the_file(tmp_path, vit):
    path = tmp_path / "a.safetensors"
    save_file(vit.state_dict(), path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length]
    for end in (b"999999999999", b"-4"):
        damaged = re.sub(
            rb'"data_offsets":\[(\d+),\d+\]', rb'"data_offsets":[\1,' + end + b"]", header
        )
        path.write_bytes(len(damaged).to_bytes(8, "little") + damaged + whole[8 + length :])
        with pytest.raises(ModelError, match="can't be read"):
            load_model(NAME, path)


@pytest.mark.parametrize(
    "beside",
    [
        {"class_to_idx": {name: index for index, name in enumerate("abcdefg")}},
        {"hyper_parameters": {"class_names": list("abcdefg")}},
        {"config": {"id2label": {str(index): name for index, name in enumerate("abcdefg")}}},
    ],
)
def test_names_in_the_file_are_the_categories(beside, vit, save):
    assert load_model(NAME, save({"model": vit.state_dict(), **beside})).categories == list(
        "abcdefg"
    )
    fewer = {"model": vit.state_dict(), "classes": ["a", "b"]}
    loaded = load_model(NAME, save(fewer))
    assert loaded.categories[0] == "category 0"
    assert "its classes names 2 categories, not 7: passed over" in loaded.notice


def test_arguments_of_the_model(vit, save):
    """Two models of the same weights, which only an argument tells apart."""
    path = save(vit.state_dict())
    averaged = load_model(NAME, path, model_args={"global_pool": "avg", "fc_norm": False})
    expected = timm.create_model(NAME, num_classes=7, global_pool="avg", fc_norm=False).eval()
    expected.load_state_dict(vit.state_dict())
    assert torch.equal(outputs(averaged.model), outputs(expected))
    with pytest.raises(ModelError, match=r"can't be made with .*nonsense=1"):
        load_model(NAME, path, model_args={"nonsense": 1})


def test_a_grey_model_sees_grey(save):
    path = save(made(in_chans=1).state_dict())
    loaded = load_model(NAME, path, mean=(0.25,), std=(0.5,))
    picture = Image.new("RGB", (SIZE, SIZE), (200, 40, 90))
    grey = round(0.299 * 200 + 0.587 * 40 + 0.114 * 90)
    tensor = loaded.transform(picture)
    assert tensor.shape == (1, SIZE, SIZE)
    assert float(tensor[0, 5, 5]) == pytest.approx((grey / 255 - 0.25) / 0.5, abs=1e-5)
    assert METHODS["grad_rollout"].make(loaded.model).batch(tensor[None]).shape == (1, 10, 10)
    with pytest.raises(ModelError, match="of 4 channels"):
        load_model(NAME, save(made(in_chans=4).state_dict()))
