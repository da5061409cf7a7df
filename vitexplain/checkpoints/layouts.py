"""The names that other code gives to the same weights, as timm's filters want them.

timm knows many: OpenAI's and open_clip's, DINOv2's, Microsoft's. Here are those that it doesn't.
"""

import re
import sys
from collections.abc import Mapping
from types import ModuleType

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from vitexplain.checkpoints.transformers_keys import is_transformers, renamed, trunk_of

State = dict[str, Tensor]

TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(linear_2|3)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
)
# blocks in chunks, as DINOv2 distributes them: the second number counts through
CHUNKED = ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),)


def timms_names(state: Mapping[str, Tensor], prefix: str) -> State:
    """The trunk's weights by names that timm, or its filters, know.

    Args:
        state: the trunk's, without prefix.
        prefix: what stood before them; CLIP's filters look for the last part of it.
    """
    if "conv_proj.weight" in state:
        return _renamed(state, TORCHVISION)
    if is_transformers(state):
        return renamed(trunk_of(state)[0])
    if any(re.match(r"blocks\.\d+\.\d+\.", key) for key in state):
        state = _renamed(state, CHUNKED)
    if "class_embedding" in state or prefix.endswith("visual."):
        return {key if key.startswith("visual.") else f"visual.{key}": state[key] for key in state}
    return dict(state)


def data_of(trunk: Mapping[str, Tensor]) -> dict:
    """How images are prepared for weights of torchvision's; {} where the names don't tell."""
    if "conv_proj.weight" not in trunk:
        return {}
    statistics = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    return statistics | {"interpolation": "bilinear", "crop_pct": 0.875}


def filtered(state: State, model: nn.Module) -> State:
    """The weights through the filter that timm has for the model's family."""
    module: ModuleType | None = sys.modules.get(type(model).__module__)
    keep = getattr(module, "checkpoint_filter_fn", None)
    found = keep(dict(state), model) if keep else dict(state)
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def _renamed(state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> State:
    new = {}
    for key, value in state.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        new[key] = value
    return new
