"""Models of Hugging Face transformers: the logits are those of its own classes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers import ROOT, run_here
from vitexplain.attention.tokens import token_layout
from vitexplain.checkpoints.transformers_folders import read_folder
from vitexplain.errors import ModelError
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import load_model

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TOWERS = {"vision_config": SMALL, "text_config": TEXT}
STAGES = {"image_size": 64, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4],
          "window_size": 8}  # fmt: skip
# name: (class, configuration, its settings)
CLASSES = {
    "ViT": ("ViTForImageClassification", "ViTConfig", SMALL),
    "ViT without biases": ("ViTForImageClassification", "ViTConfig", SMALL | {"qkv_bias": False}),
    "DeiT": ("DeiTForImageClassification", "DeiTConfig", SMALL),
    "DeiT with a teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", SMALL),
    "BEiT": ("BeitForImageClassification", "BeitConfig",
             SMALL | {"use_relative_position_bias": True}),
    "BEiT, one bias": ("BeitForImageClassification", "BeitConfig",
                       SMALL | {"use_shared_relative_position_bias": True,
                                "use_absolute_position_embeddings": True}),
    "BEiT, class token": ("BeitForImageClassification", "BeitConfig",
                          SMALL | {"use_relative_position_bias": True,
                                   "use_mean_pooling": False}),
    "Swin": ("SwinForImageClassification", "SwinConfig", STAGES),
    "SwinV2": ("Swinv2ForImageClassification", "Swinv2Config", STAGES),
    "DINOv2": ("Dinov2ForImageClassification", "Dinov2Config", SMALL),
    "DINOv2, gated": ("Dinov2ForImageClassification", "Dinov2Config",
                      SMALL | {"use_swiglu_ffn": True}),
    "DINOv2 with registers": ("Dinov2WithRegistersForImageClassification",
                              "Dinov2WithRegistersConfig", SMALL),
    "SigLIP": ("SiglipForImageClassification", "SiglipConfig", TOWERS),
    "CLIP": ("CLIPForImageClassification", "CLIPConfig", TOWERS),
    "CLIP with GELU": ("CLIPForImageClassification", "CLIPConfig",
                       {**TOWERS, "vision_config": SMALL | {"hidden_act": "gelu"}}),
}  # fmt: skip
TRUNKS = {
    "ViT": ("ViTModel", "ViTConfig", SMALL, lambda o: o.last_hidden_state[:, 0]),
    "DINOv2": ("Dinov2Model", "Dinov2Config", SMALL, lambda o: o.pooler_output),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", SMALL | {"num_register_tokens": 4},
               lambda o: o.pooler_output),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", SMALL, lambda o: o.pooler_output),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", SMALL, lambda o: o.pooler_output),
    "CLIP with projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", SMALL,
                             lambda o: o.image_embeds),
}  # fmt: skip
READOUTS = {
    "ViT": "class token",
    "DeiT": "class token",
    "DeiT with a teacher": "mean of the class and distillation tokens",
    "BEiT": "mean over 16 patches",
    "DINOv2": "class token and mean over 16 patches",
    "DINOv2 with registers": "class token and mean over 16 patches",
    "SigLIP": "mean over 16 patches",
    "CLIP": "mean over 16 patches",
}


def built(cls, configuration, settings, **more):
    torch.manual_seed(0)
    config = getattr(transformers, configuration)(**settings, **more)
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def images_for(name):
    side = 64 if name.startswith("Swin") else 32
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def saved(model, folder, layout):
    """As save_pretrained writes it, or the state dict as it is in memory, or in shards."""
    if layout == "state dict":
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="40KB" if layout == "shards" else "5GB")
    return folder


@pytest.mark.parametrize("layout", ["save_pretrained", "state dict", "shards", "memory"])
@pytest.mark.parametrize("name", CLASSES)
def test_logits_are_those_of_transformers(name, layout, tmp_path):
    theirs = built(*CLASSES[name], num_labels=3)
    images = images_for(name)
    with torch.no_grad():
        expected = theirs(images).logits
        if layout == "memory":
            found = load_model(theirs).model(images)
        else:
            found = read_folder(saved(theirs, tmp_path, layout)).model.eval()(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TRUNKS)
def test_features_of_models_without_a_classifier(name, tmp_path):
    *model, pooled = TRUNKS[name]
    theirs = built(*model)
    images = images_for(name)
    with torch.no_grad():
        found = read_folder(saved(theirs, tmp_path, "save_pretrained")).model.eval()(images)
        torch.testing.assert_close(found, pooled(theirs(images)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", READOUTS)
def test_what_each_class_reads(name):
    loaded = load_model(built(*CLASSES[name], num_labels=3))
    assert token_layout(loaded.model, 32, 32).readout == READOUTS[name]
    for method in ("attention_rollout", "grad_rollout", "gradcam"):
        found = METHODS[method].make(loaded.model).explain(images_for(name))
        with torch.no_grad():
            expected = loaded.model.eval()(images_for(name))
        torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)


def test_attention_is_theirs_too():
    """Rollout from the attention matrices that transformers itself returns."""
    from vit_rollout import rollout

    theirs = built(*CLASSES["ViT"], num_labels=3)
    theirs.set_attn_implementation("eager")
    images = images_for("ViT")
    with torch.no_grad():
        attentions = theirs(images, output_attentions=True).attentions
    expected = rollout(attentions, 0.5, "max")
    model = load_model(theirs).model
    found = METHODS["attention_rollout"].make(model, head_fusion="max", discard_ratio=0.5)
    np.testing.assert_allclose(found.batch(images), expected, atol=1e-5)


def test_names_problem_and_images_are_the_folders(tmp_path):
    labels = {0: "cat", 1: "dog", 2: "owl"}
    theirs = built(*CLASSES["ViT"], id2label=labels, problem_type="multi_label_classification")
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6],
        resample=2,
    )  # fmt: skip
    processor.save_pretrained(saved(theirs, tmp_path, "save_pretrained"))
    loaded = load_model(checkpoint=tmp_path)
    assert loaded.categories == ["cat", "dog", "owl"]
    assert loaded.labels == "independent"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(loaded.transform(picture), expected, atol=1e-5, rtol=1e-5)


def test_regression_and_placeholder_names(tmp_path):
    theirs = built(*CLASSES["ViT"], num_labels=1, problem_type="regression")
    loaded = load_model(checkpoint=saved(theirs, tmp_path, "save_pretrained"))
    assert (loaded.labels, loaded.categories) == ("none", ["lower", "higher"])
    theirs = built(*CLASSES["ViT"], num_labels=3)
    assert load_model(theirs).categories == ["category 0", "category 1", "category 2"]


@pytest.mark.parametrize("registers", [False, True])
def test_positions_of_another_size_are_interpolated_as_there(registers, tmp_path):
    name = "DINOv2 with registers" if registers else "DINOv2"
    theirs = built(*CLASSES[name], num_labels=3)
    saved(theirs, tmp_path, "save_pretrained")
    crop = {"height": 48, "width": 48}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 64}, "crop_size": crop, "do_center_crop": True})
    )
    loaded = load_model(checkpoint=tmp_path)
    assert loaded.transform.size == (48, 48)
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(images), theirs(images).logits, atol=1e-4, rtol=1e-4
        )


def test_a_timm_model_inside_transformers(tmp_path):
    import timm

    model = timm.create_model("test_vit", num_classes=3).eval()
    save_file({f"timm_model.{k}": v for k, v in model.state_dict().items()},
              tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({
        "architecture": "test_vit", "architectures": ["TimmWrapperForImageClassification"],
        "model_type": "timm_wrapper", "label_names": ["a", "b", "c"], "num_classes": 3,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }))  # fmt: skip
    loaded = load_model(checkpoint=tmp_path)
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), model(images))
    assert loaded.categories == ["a", "b", "c"]
    assert loaded.transform.mean == (0.1, 0.2, 0.3)


def test_a_file_beside_its_configuration(tmp_path):
    theirs = built(*CLASSES["DINOv2"], num_labels=3)
    saved(theirs, tmp_path, "save_pretrained")
    loaded = load_model(checkpoint=tmp_path / "model.safetensors")
    with torch.no_grad():
        images = images_for("DINOv2")
        torch.testing.assert_close(loaded.model(images), theirs(images).logits, atol=1e-5, rtol=0)


def test_a_file_alone_with_its_architecture(tmp_path):
    """The state dict of a fine-tuned ViT, by both layouts' names."""
    import timm

    size = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3,
            "intermediate_size": 768}  # fmt: skip
    theirs = built("ViTForImageClassification", "ViTConfig", size, num_labels=3)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    (tmp_path / "folder").mkdir()
    saved(theirs, tmp_path / "folder", "save_pretrained")
    (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "b.safetensors")
    images = torch.randn(1, 3, 224, 224)
    for name in ("a.pth", "b.safetensors"):
        loaded = load_model("vit_tiny_patch16_224", tmp_path / name)
        with torch.no_grad():
            found = loaded.model(images)
            torch.testing.assert_close(found, theirs(images).logits, atol=1e-4, rtol=1e-4)
    assert isinstance(loaded.model, timm.models.VisionTransformer)


@pytest.mark.slow
def test_the_hubs_cache_goes_through_the_same_code(tmp_path, monkeypatch):
    """A snapshot as the hub client keeps it."""
    theirs = built(*CLASSES["ViT"], num_labels=3)
    repository = tmp_path / "models--someone--finetuned"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    saved(theirs, snapshot, "save_pretrained")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded = load_model("hf-hub:someone/finetuned")
    with torch.no_grad():
        images = images_for("ViT")
        torch.testing.assert_close(loaded.model(images), theirs(images).logits, atol=1e-5, rtol=0)


def change(folder, name, **values):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **values}))


def drop_a_weight(folder):
    state = load_file(folder / "model.safetensors")
    del state["vit.encoder.layer.1.output.dense.bias"]
    save_file(state, folder / "model.safetensors")


DAMAGED = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds none of"),
    "cut short": (lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:5000]), "can't be read"),
    "a weight less": (drop_a_weight, "lacks 1 of its weights, first blocks.1.mlp.fc2.bias"),
    "another width": (lambda f: change(f, "config.json", hidden_size=96), r"by its configuration"),
    "another type": (lambda f: change(f, "config.json", model_type="mobilevit"),
                     "models of type mobilevit are none of those"),
    "no type": (lambda f: change(f, "config.json", model_type=None), "models of type none"),
    "no patch size": (lambda f: (f / "config.json").write_text('{"model_type": "vit"}'),
                      "is missing"),
    "nonsense": (lambda f: change(f, "config.json", num_attention_heads="three"), "can't be read"),
    "unknown activation": (lambda f: change(f, "config.json", hidden_act="golu"),
                           "the activation golu is none of"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_folders_are_one_line(damage, tmp_path):
    do, reason = DAMAGED[damage]
    do(saved(built(*CLASSES["ViT"], num_labels=3), tmp_path, "save_pretrained"))
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(checkpoint=tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450


def test_an_index_can_not_leave_its_folder(tmp_path):
    saved(built(*CLASSES["ViT"], num_labels=3), tmp_path, "shards")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ModelError, match="does not name files beside it"):
        load_model(checkpoint=tmp_path)


@pytest.mark.slow
def test_the_command_needs_the_folder_alone(tmp_path):
    theirs = built(*CLASSES["ViT"], id2label={0: "cat", 1: "dog", 2: "owl"})
    saved(theirs, tmp_path, "save_pretrained")
    done = run_here(
        "--image_path", ROOT / "examples" / "cat.jpg", "--checkpoint", tmp_path,
        "--category", "owl", "--output_dir", tmp_path / "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "category 2 (owl, " in done.stdout
    assert "pooling: class token" in done.stdout
