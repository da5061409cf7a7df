"""Folders of Hugging Face transformers: config.json, preprocessor_config.json, weights.

The package itself is not needed, and none of its code is run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import timm
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    resolve_model_data_config,
)
from torch import Tensor, nn

from vitexplain.checkpoints.reading import CheckpointError, read_file
from vitexplain.checkpoints.transformers_keys import is_transformers, renamed, trunk_of
from vitexplain.checkpoints.transformers_models import adapted, network
from vitexplain.errors import ModelError, one_line

State = dict[str, Tensor]

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDICES = tuple(f"{name}.index.json" for name in WEIGHTS)
VISION = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
HALF = (0.5, 0.5, 0.5)
# the classes' own, where preprocessor_config.json is missing
STATISTICS = {
    "clip_vision_model": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    **dict.fromkeys(("vit", "beit", "siglip_vision_model", "data2vec-vision"), (HALF, HALF)),
}
PROBLEMS = {"multi_label_classification": "independent", "regression": "none"}


@dataclass
class Converted:
    """A model of transformers as one of timm's.

    Attributes:
        data: how its images are prepared, as in timm's data config.
        names: of the categories; [] where they have none but numbers.
        labels: how outputs become probabilities, one of choices.LABELS.
    """

    model: nn.Module
    data: dict
    names: list[str] = field(default_factory=list)
    labels: str = "exclusive"
    notice: str = ""


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder's config.json is one of transformers'."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "model_type" in config


def read_folder(folder: Path) -> Converted:
    """The model in a folder that `save_pretrained` wrote, of version 4 or 5.

    Raises:
        ModelError: if it is of no class that can be converted, or damaged.
    """
    config = _json(folder / "config.json")
    preparation = folder / "preprocessor_config.json"
    images = _json(preparation) if preparation.is_file() else {}
    try:
        return convert(config, _weights(folder), images)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(error, 200)
        raise ModelError(f"{folder} can't be read: {reason}") from error


def convert(config: Mapping, state: State, images: Mapping) -> Converted:
    """The model of a config.json, its weights and its preprocessor_config.json ({} without one).

    Raises:
        CheckpointError: if it can't be converted; KeyError, TypeError, ValueError if a file lacks
            something.
    """
    labels = PROBLEMS.get(str(config.get("problem_type")), "exclusive")
    names = _names(config)
    if config.get("model_type") == "timm_wrapper":
        return _timms(config, state, images, names, labels)
    if not is_transformers(state):
        raise CheckpointError(
            f"its weights are none of a ViT; {', '.join(config.get('architectures') or ())} is no "
            "class that can be read"
        )
    vision = _vision(config)
    trunk, others = trunk_of(state)
    weights = renamed(trunk)
    weights |= _head(others, weights)
    categories = next((len(weights[k]) for k in _HEADS if k in weights), 0)
    data = _data(vision, images)
    if not str(vision["model_type"]).startswith(("dinov2", "dinov3")):
        data["input_size"] = (3, *_pair(vision["image_size"]))  # positions are of that size
    size = tuple(data["input_size"][1:])
    model = network(vision, weights, categories, size)
    _load(model, adapted(vision, weights, size))
    notice = "" if images else "no preprocessor_config.json: mean and deviation are its class's own"
    return Converted(model, data, names[:categories], labels, notice)


_HEADS = ("head.weight", "head.fc.weight")


def _head(others: State, trunk: State) -> State:
    """The classifier by timm's name."""
    name = "head.fc" if any(key.startswith("layers.0.") for key in trunk) else "head"
    head = {}
    for key, value in others.items():
        part = key.rpartition(".")[2]
        if key.startswith("classifier.") or key.startswith("cls_classifier."):
            head[f"{name}.{part}"] = value
        elif key.startswith("distillation_classifier."):
            head[f"head_dist.{part}"] = value
        elif key == "visual_projection.weight":
            head["head.weight"] = value
    return head


def _load(model: nn.Module, weights: State) -> None:
    own = model.state_dict()
    if "head.bias" in own and "head.bias" not in weights:
        weights = weights | {"head.bias": own["head.bias"].new_zeros(own["head.bias"].shape)}
    missing = [k for k in own if k not in weights and "relative_position_index" not in k
               and "relative_coords_table" not in k and "attn_mask" not in k]  # fmt: skip
    if missing:
        raise CheckpointError(f"it lacks {len(missing)} of its weights, first {missing[0]}")
    extra = [k for k in weights if k not in own
             and not k.startswith(("pooler.", "attn_pool.", "norm.", "fc_norm."))]  # fmt: skip
    if extra:
        raise CheckpointError(f"it has weights that its configuration has no place for: {extra[0]}")
    wrong = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if wrong:
        shapes = tuple(weights[wrong[0]].shape), tuple(own[wrong[0]].shape)
        raise CheckpointError(f"its {wrong[0]} is {shapes[0]}, by its configuration {shapes[1]}")
    model.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)


def _timms(
    config: Mapping, state: State, images: Mapping, names: list[str], labels: str
) -> Converted:
    """A timm model inside transformers (TimmWrapper)."""
    name = config["architecture"]
    prefix = "timm_model."
    weights = {key.removeprefix(prefix): value for key, value in state.items()}
    args = dict(config.get("model_args") or {})
    count = config.get("num_classes", len(names))
    model = timm.create_model(name, pretrained=False, **{**args, "num_classes": count})
    model.load_state_dict(weights)
    saved = dict(config.get("pretrained_cfg") or images.get("pretrained_cfg") or {})
    data = resolve_model_data_config(model) | {
        key: saved[key]
        for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size")
        if saved.get(key) is not None
    }
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size:
        data["input_size"] = (data["input_size"][0], *size)
    return Converted(model, data, names, labels)


def _vision(config: Mapping) -> dict:
    """The vision part of a config, where there are two towers."""
    kind = config.get("model_type")
    if kind in VISION and "vision_config" in config:
        return dict(config["vision_config"]) | {"model_type": VISION[kind]}
    return dict(config)


def _names(config: Mapping) -> list[str]:
    names = config.get("id2label") or config.get("label_names") or {}
    if isinstance(names, Mapping):
        by_index = {int(index): str(name) for index, name in names.items()}
        names = [by_index.get(index, "") for index in range(len(by_index))]
    names = [str(name) for name in names]
    placeholders = [f"LABEL_{index}" for index in range(len(names))]
    return [] if names == placeholders or not all(names) else names


def _data(vision: Mapping, images: Mapping) -> dict:
    """timm's data config after preprocessor_config.json."""
    imagenet = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    mean, std = STATISTICS.get(str(vision["model_type"]), imagenet)
    if images.get("do_normalize", True):
        mean, std = images.get("image_mean") or mean, images.get("image_std") or std
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = 255 * float(images.get("rescale_factor") or 1 / 255)  # of values from 0 to 1
    resized, short = _size(images.get("size"), _pair(vision.get("image_size", 224)))
    cropped = resized
    if images.get("do_center_crop", bool(images.get("crop_size"))) and images.get("crop_size"):
        cropped, _ = _size(images["crop_size"], resized)
    return {
        "input_size": (3, *cropped),
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
        "interpolation": INTERPOLATIONS.get(images.get("resample", 3), "bicubic"),
        "crop_pct": cropped[0] / resized[0],
        "crop_mode": "center" if short else "squash",
    }


def _size(size: object, default: tuple[int, int]) -> tuple[tuple[int, int], bool]:
    """((H, W), whether it is of the shorter side)."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return (size["shortest_edge"],) * 2, True
        if "height" in size:
            return (size["height"], size["width"]), False
    if isinstance(size, int):
        return (size, size), False
    return default, False


def _weights(folder: Path) -> State:
    """All weights, of one file or several."""
    for index in INDICES:
        if (folder / index).is_file():
            shards = sorted(set(_json(folder / index).get("weight_map", {}).values()))
            if not shards or any(Path(name).name != name for name in shards):
                raise CheckpointError(f"{index} does not name files beside it")
            parts = [read_file(folder / name) for name in shards]
            return {key: value for part in parts for key, value in part.items()}
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_file(folder / name)
    raise CheckpointError(f"it holds none of {', '.join((*WEIGHTS, *INDICES))}")


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read: {one_line(error, 200)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no settings by name")
    return found


def _pair(value: int | list) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
