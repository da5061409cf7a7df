"""Make the model that a file's weights are of, and say what was found and what was assumed.

The model has the file's own size and patch grid: other sizes are resampled afterwards, once.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.models import is_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitexplain.checkpoints.heads import Head, find_head
from vitexplain.checkpoints.layouts import data_of, filtered, timms_names
from vitexplain.checkpoints.nesting import Found, find_weights
from vitexplain.checkpoints.reading import CheckpointError, read_file
from vitexplain.checkpoints.recognise import count_blocks, recognise
from vitexplain.errors import one_line

State = dict[str, Tensor]

# what files keep of a trunk that a model makes by itself, or needs in training only
MADE = ("relative_position_index", "relative_coords_table", "attn_mask", "num_batches_tracked",
        "mask_token", "rope.", "pos_drop", "k_bias")  # fmt: skip
TRUNK = ("blocks.", "layers.", "patch_embed.", "pos_embed", "cls_token", "dist_token", "reg_token",
         "norm.", "fc_norm.", "norm_pre.", "attn_pool.", "rel_pos")  # fmt: skip
# arguments of timm that read files or ask the hub
ELSEWHERE = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay",
             "pretrained_strict", "cache_dir", "scriptable")  # fmt: skip
LARGEST = 65_536  # of whole numbers: more blocks or channels are a damaged file
WINDOWED = (SwinTransformer, SwinTransformerV2)


@dataclass
class Fitted:
    """A model with a file's weights.

    Attributes:
        architecture: its name in timm.
        notice: what was found, assumed and passed over; "" where that is nothing unusual.
        extras: what the file holds beside tensors.
        data: how its images are prepared, where the layout tells that; as in timm's data config.
    """

    model: nn.Module
    architecture: str
    notice: str
    extras: dict
    data: dict


def fit(
    path: Path,
    architecture: str | None,
    args: Mapping[str, object] | None = None,
    img_size: tuple[int, int] | None = None,
) -> Fitted:
    """The model of a file of weights.

    Args:
        architecture: timm's name, with or without a tag; None to tell it from names and shapes.
        args: of the model, beyond what the file says.
        img_size: (H, W) that was asked for, which says how patches lie where they are no square.

    Raises:
        CheckpointError: if the file does not hold all weights of the architecture.
    """
    found = find_weights(read_file(path), path)
    _check_numbers(found.state, path)
    state, remarks = timms_names(found.trunk, found.prefix), _where(found)
    if architecture is None:
        architecture = recognise(state, path)
        if not is_model(architecture):
            raise CheckpointError(f"checkpoint {path} is of none of timm's architectures")
        remarks.insert(0, f"taken for {architecture}, with its mean and deviation")
    plan = _Plan(path, architecture, dict(args or {}), state)
    plan.follow_shapes(img_size, remarks)
    plan.follow_names(remarks)
    head = find_head(plan.weights, found.beside, plan.classifiers(), plan.model.num_features, path)
    model, passed = plan.build(head)
    passed += [key for key in found.beside if key not in head.used]
    if head.name:
        remarks.append(f"its classifier is {head.name}")
    remarks += _passed_over(passed, found)
    data = data_of(found.trunk)
    if data:
        remarks.append("images as torchvision prepares them")
    return Fitted(model, architecture, _sentence(path, remarks), found.extras, data)


def _check_args(args: Mapping[str, object], architecture: str) -> None:
    """Raise CheckpointError if arguments would load other files, or would never end."""
    for name, value in _flat(args):
        if name in ELSEWHERE or (isinstance(value, str) and value.startswith("hf-hub:")):
            raise CheckpointError(f"{architecture} can't be made with {name}={value!r}: that would "
                                  "load weights from elsewhere")  # fmt: skip
        if isinstance(value, int) and abs(value) > LARGEST:
            raise CheckpointError(
                f"{architecture} can't be made with {name}={value}: it is too large"
            )


def _flat(args: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """All names and values, also those within mappings."""
    for name, value in args.items():
        yield str(name), value
        if isinstance(value, Mapping):
            yield from _flat(value)


def _check_numbers(state: State, path: Path) -> None:
    """Raise CheckpointError unless all weights are ordinary numbers."""
    for name, value in state.items():
        if name.endswith(".zero_point") or value.is_quantized:
            raise CheckpointError(
                f"checkpoint {path} holds quantised weights, which have no gradients: pass those "
                "from before the quantisation"
            )
        kind = "complex numbers" if value.is_complex() else "a sparse tensor"
        kind = "no values, but a shape alone (a meta tensor)" if value.is_meta else kind
        if value.is_meta or value.is_complex() or value.layout != torch.strided:
            raise CheckpointError(f"checkpoint {path}: {name} holds {kind}")


class _Plan:
    """What to make: an architecture with arguments, first without memory."""

    def __init__(self, path: Path, architecture: str, args: dict, state: State):
        _check_args(args, architecture)
        self.path, self.architecture, self.args, self.state = path, architecture, args, state
        self.model = self._sketch()
        self.weights: State = {}

    def follow_shapes(self, img_size: tuple[int, int] | None, remarks: list[str]) -> None:
        """Channels, patches and grid are the file's."""
        embedding = self.state.get("patch_embed.proj.weight", self.state.get("visual.conv1.weight"))
        own = getattr(self.model.patch_embed, "proj", None)
        if embedding is not None and embedding.ndim == 4 and own is not None:
            self._check_embedding(embedding, own.weight)
            if embedding.shape[1] != own.weight.shape[1]:
                self.args.setdefault("in_chans", embedding.shape[1])
        if isinstance(self.model, VisionTransformer):
            remarks += self._follow_prefix()
        grown = self._window() if isinstance(self.model, WINDOWED) else self._grid(img_size)
        if grown:
            self.args |= grown
            remarks.append("made at the file's own {}x{} pixels".format(*grown["img_size"]))
        self.model = self._sketch()

    def _follow_prefix(self) -> list[str]:
        """Positions can only be told once the tokens before the patches are known."""
        remarks, implied = [], {}
        has = any(name in self.state for name in ("cls_token", "visual.class_embedding"))
        if not has and self.model.cls_token is not None:
            pool = "map" if "attn_pool.latent" in self.state else "avg"
            implied |= {"class_token": False, "global_pool": pool}
            remarks.append(f"without a class token, pooled by global_pool={pool}")
        if "reg_token" in self.state and self.model.reg_token is None:
            implied["reg_tokens"] = self.state["reg_token"].shape[1]
        positions = self.state.get("pos_embed")
        if has and positions is not None and positions.ndim == 3:
            side = math.isqrt(positions.shape[1])
            if side * side == positions.shape[1] and not self.model.no_embed_class:
                implied["no_embed_class"] = True
        if implied:
            self.args = implied | self.args
            self.model = self._sketch()
        return remarks

    def follow_names(self, remarks: list[str]) -> None:
        """Layers that the file has, or lacks, beside the architecture's own."""
        self.weights = filtered(self.state, self.model)
        if isinstance(self.model, VisionTransformer):
            implied = {k: v for k, v in _implied(self.weights, self.model).items()
                       if k not in self.args}  # fmt: skip
            if implied:
                self.args |= implied
                remarks.append("with " + ", ".join(f"{k}={v}" for k, v in implied.items()))
                self.model = self._sketch()
                self.weights = filtered(self.state, self.model)

    def classifiers(self) -> tuple[str, ...]:
        """The names of timm's classifiers in this model."""
        names = (self.model.pretrained_cfg or {}).get("classifier") or "head"
        return (names,) if isinstance(names, str) else tuple(names)

    def build(self, head: Head) -> tuple[nn.Module, list[str]]:
        """The model with its weights, and the names of those it has no use for."""
        count = 0 if head.layer is not None else head.categories
        model = self._create(num_classes=count)
        weights = filtered(self.state, model) | head.state
        own = model.state_dict()
        self._check(weights, own)
        model.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)
        if head.layer is not None:
            _put(model, self.classifiers()[0], head.layer)
            model.num_classes = head.categories
        return model, [key for key in weights if key not in own and key not in head.used]

    def _check(self, weights: State, own: State) -> None:
        """All that the model needs is there, of its shape, and no more that it should need."""
        missing = [k for k in own if k not in weights and not any(part in k for part in MADE)]
        if missing:
            raise CheckpointError(
                f"checkpoint {self.path} does not fit {self.architecture}: it lacks "
                f"{len(missing)} of its weights, first {missing[0]}{self._other()}"
            )
        for key, value in weights.items():
            if key in own and value.shape != own[key].shape:
                raise CheckpointError(
                    f"checkpoint {self.path} does not fit {self.architecture}: its {key} is "
                    f"{tuple(value.shape)}, the model's {tuple(own[key].shape)}{self._other()}"
                )
        extra = [k for k in weights if k not in own and k.startswith(TRUNK)
                 and not any(part in k for part in MADE)]  # fmt: skip
        if extra:
            raise CheckpointError(
                f"checkpoint {self.path} does not fit {self.architecture}, which has no "
                f"{extra[0]}{self._other()}"
            )

    def _check_embedding(self, embedding: Tensor, own: Tensor) -> None:
        width, _, *patch = embedding.shape
        if patch != list(own.shape[2:]):
            raise CheckpointError(
                f"checkpoint {self.path} does not fit {self.architecture}: it has patches of "
                f"{patch[0]}x{patch[1]} pixels, not {own.shape[2]}x{own.shape[3]}{self._other()}"
            )
        blocks = count_blocks(self.state)
        depth = len(getattr(self.model, "blocks", ())) or blocks
        if width != own.shape[0] or (blocks and blocks != depth):
            raise CheckpointError(
                f"checkpoint {self.path} does not fit {self.architecture}: it has "
                f"{blocks or 'its'} blocks of {width} channels, not {depth} of "
                f"{own.shape[0]}{self._other()}"
            )

    def _other(self) -> str:
        """Which architecture it may be of, as the end of a sentence."""
        try:
            name = recognise(self.state, self.path)
        except CheckpointError:
            return ""
        same = name == self.architecture.partition(".")[0]
        return "" if same or not is_model(name) else f"; it looks like {name}: try --model {name}"

    def _grid(self, img_size: tuple[int, int] | None) -> dict:
        """The size in pixels whose patches the file's positions are of; {} for the default."""
        count, prefixes = self._positions()
        if count is None:
            return {}
        height, width = self.model.patch_embed.grid_size
        down, across = self.model.patch_embed.patch_size
        if any(count - prefix == height * width for prefix in prefixes):
            return {}
        if img_size:
            asked = img_size[0] // down * (img_size[1] // across)
            if any(count - prefix == asked for prefix in prefixes):
                return {"img_size": img_size}
        for prefix in prefixes:
            side = math.isqrt(max(count - prefix, 0))
            if side and side * side == count - prefix:
                return {"img_size": (side * down, side * across)}
        raise CheckpointError(
            f"checkpoint {self.path}: its {count} positions are no square of patches; say their "
            "height and width with --img_size HxW"
        )

    def _positions(self) -> tuple[int | None, tuple[int, ...]]:
        """How many positions the file has, and how many of them may be of prefix tokens."""
        own = getattr(self.model, "num_prefix_tokens", 1)
        for name in ("pos_embed", "visual.pos_embed", "visual.positional_embedding"):
            if name in self.state:
                return self.state[name].shape[-2], tuple(dict.fromkeys((1, own, 2, 0)))
        for name in ("rel_pos_bias", "blocks.0.attn"):
            table = self.state.get(f"{name}.relative_position_bias_table")
            if table is not None and hasattr(self.model, "rel_pos_bias"):
                side = (math.isqrt(len(table) - 3) + 1) // 2
                return side * side, (0,)
        return None, ()

    def _window(self) -> dict:
        """The size in pixels that goes with the file's windows; {} for the default."""
        name = "layers.0.blocks.0.attn.relative_position_"
        table, index = (self.state.get(name + part) for part in ("bias_table", "index"))
        if index is not None:
            window = math.isqrt(len(index))
        elif table is not None:
            window = (math.isqrt(len(table)) + 1) // 2
        else:
            return {}
        own = self.model.layers[0].blocks[0].window_size[0]
        if window == own:
            return {}
        height, width = self.model.patch_embed.img_size
        size = (height * window // own, width * window // own)
        return {"img_size": size, "window_size": window}

    def _sketch(self) -> nn.Module:
        with torch.device("meta"):
            return self._create(num_classes=0)

    def _create(self, num_classes: int) -> nn.Module:
        args = {"num_classes": num_classes} | {
            key: value for key, value in self.args.items() if key != "num_classes"
        }
        try:
            return timm.create_model(self.architecture, pretrained=False, **args)
        except Exception as error:  # whatever an argument leads to
            raise CheckpointError(
                f"{self.architecture} can't be made with "
                f"{', '.join(f'{k}={v}' for k, v in args.items())}: {one_line(error, 200)}"
            ) from error


def _implied(weights: State, model: VisionTransformer) -> dict:
    """Arguments of a ViT that the names of its weights tell."""
    args: dict[str, object] = {}
    has_norm, has_fc_norm = "norm.weight" in weights, "fc_norm.weight" in weights
    fc_norm = not isinstance(model.fc_norm, nn.Identity)
    if has_fc_norm and not fc_norm:
        args |= {"global_pool": "avg", "fc_norm": True}
    elif has_norm and not has_fc_norm and fc_norm:
        args["fc_norm"] = False
    if "attn_pool.latent" in weights and model.attn_pool is None:
        args["global_pool"] = "map"
    names = dict(model.named_parameters())
    for name, argument, values in (
        ("blocks.0.ls1.gamma", "init_values", (None, 1e-5)),
        ("blocks.0.attn.q_norm.weight", "qk_norm", (False, True)),
        ("blocks.0.attn.qkv.bias", "qkv_bias", (False, True)),
        ("norm_pre.weight", "pre_norm", (False, True)),
    ):
        if (name in weights) != (name in names) and any(k.startswith("blocks.") for k in weights):
            args[argument] = values[name in weights]
    return args


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, last, layer)


def _where(found: Found) -> list[str]:
    remarks = []
    if found.entry not in ("", "model", "state_dict"):
        remarks.append(f"weights under {found.entry!r}")
    if found.prefix:
        remarks.append(f"behind the prefix {found.prefix!r}")
    return remarks


def _passed_over(names: list[str], found: Found) -> list[str]:
    """What was not used, by the first part of its names."""
    counts = Counter(
        name.partition(".")[0] for name in names if not any(part in name for part in MADE[:4])
    )
    counts.update({entry: number for entry, number in found.passed.items() if "optim" not in entry})
    if not counts:
        return []
    most = counts.most_common(4)
    listed = ", ".join(f"{name} ({number})" for name, number in most)
    more = sum(counts.values()) - sum(number for _, number in most)
    return [f"passed over: {listed}" + (f" and {more} others" if more else "")]


def _sentence(path: Path, remarks: list[str]) -> str:
    return f"{path.name}: {'; '.join(remarks)}" if remarks else ""
