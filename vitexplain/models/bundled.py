"""The bundled model's files, and the network that they describe."""

import json
from functools import partial
from importlib import resources
from pathlib import Path

import timm
from timm.layers import HybridEmbed
from timm.models import is_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitexplain.errors import ModelError, one_line


def bundled_folder() -> Path:
    """Where config.json, model.safetensors and the card are, in a clone and as installed."""
    return Path(str(resources.files("vitexplain") / "data" / "bundled"))


def read_config(folder: Path) -> dict:
    """The config.json of a folder with a model.

    Raises:
        ModelError: if there is none, or it can't be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder} holds no readable config.json: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder}: config.json holds no settings by name")
    return config


def build_network(config: dict, num_classes: int | None = None) -> VisionTransformer:
    """The untrained network described by a config.json like the bundled model's."""
    if config["class"] != "timm.models.vision_transformer.VisionTransformer":
        raise ModelError(f"config.json: unknown class {config['class']}")
    backbone = dict(config["embed_layer"]["backbone"])
    name = backbone.pop("name")
    if not is_model(name):  # timm would ask the hub for others
        raise ModelError(f"config.json: timm has no model called {name}")
    stem = timm.create_model(name, pretrained=False, **backbone)
    args = config["args"] | ({} if num_classes is None else {"num_classes": num_classes})
    for key, value in args.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < (key == "num_heads"):
            raise ModelError(f"config.json: {key} can't be {value}")
    embed = partial(HybridEmbed, backbone=stem, feature_size=_feature_size(stem, args))
    return VisionTransformer(**args, embed_layer=embed)


def _feature_size(stem: nn.Module, args: dict) -> int | None:
    """The side of the stem's grid of features; None where timm has to try it with an image."""
    side, reduction = args.get("img_size"), stem.feature_info.reduction()[-1]
    return side // reduction if isinstance(side, int) and side % reduction == 0 else None
