"""The classifier among weights: under timm's name, another one, or as a sequence of layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitexplain.checkpoints.reading import CheckpointError

State = dict[str, Tensor]

NAMES = ("head", "classif", "fc", "linear", "logits", "cls")
# what has such a name, but is no classifier
NOT_HEADS = (
    *("decoder", "predictor", "projection", "projector", "last_layer", "dino", "ibot", "head.mlp"),
    *("text", "criterion", "teacher", "transformer", "encoder", "blocks.", "layers.", "attn_pool"),
)


BUILD = "build the model yourself and pass it to vitexplain.explain"


@dataclass
class Head:
    """A classifier's weights by the names that timm's model has for them.

    Attributes:
        categories: how many outputs it has; 0 without one.
        layer: a module in place of timm's, where the classifier is more than one linear layer.
        used: the names in the file that it is made of, as they are there.
        name: where it was, if not under timm's name.
    """

    categories: int = 0
    state: State = field(default_factory=dict)
    layer: nn.Module | None = None
    used: frozenset[str] = frozenset()
    name: str = ""


def find_head(trunk: State, beside: State, own: tuple[str, ...], width: int, path: object) -> Head:
    """The classifier of a model whose features are `width` numbers.

    Args:
        trunk: after timm's filter.
        beside: what is not the trunk's, by its whole names.
        own: the names of timm's classifiers in this model.

    Raises:
        CheckpointError: if it can't be told which layers are the classifier, or what they do.
    """
    if all(_is_linear(trunk, name, width) for name in own):
        used = {k for k in trunk for name in own if k.rpartition(".")[0] == name}
        return Head(trunk[f"{own[0]}.weight"].shape[0], {}, None, frozenset(used))
    everything = {**beside, **trunk}
    found = [name for name in _named(everything) if _is_linear(everything, name, width)]
    if not found:
        return _of_several(everything, width, path)
    parents = {name.rpartition(".")[0] for name in found}
    if len(found) > 1 and len(parents) == 1 and all(name[-1].isdigit() for name in found):
        raise CheckpointError(_untold(path, parents.pop()))
    if len(found) > 1:
        raise CheckpointError(
            f"checkpoint {path} may have several classifiers ({', '.join(sorted(found)[:4])}): "
            "keep one of them in the file"
        )
    (name,) = found
    return _made(everything, name, own[0], width, path)


def _named(state: Mapping[str, Tensor]) -> list[str]:
    """Names of two-dimensional weights that are called like a classifier."""
    return [
        key.removesuffix(".weight")
        for key, value in state.items()
        if key.endswith(".weight")
        and value.ndim == 2
        and any(name in key for name in NAMES)
        and not any(name in key for name in NOT_HEADS)
    ]


def _is_linear(state: Mapping[str, Tensor], name: str, width: int) -> bool:
    weight = state.get(f"{name}.weight")
    return weight is not None and weight.ndim == 2 and weight.shape[1] == width


def _of_several(state: Mapping[str, Tensor], width: int, path: object) -> Head:
    """No classifier, or one of another width, which nothing here can feed."""
    others = _named(state)
    if others:
        shape = tuple(state[f"{others[0]}.weight"].shape)
        raise CheckpointError(
            f"checkpoint {path}: its {others[0]}.weight {shape} does not fit the model's {width} "
            f"features; {BUILD}"
        )
    return Head()


def _made(state: Mapping[str, Tensor], name: str, own: str, width: int, path: object) -> Head:
    parent, _, last = name.rpartition(".")
    siblings = {k: v for k, v in state.items() if parent and k.startswith(parent + ".")}
    before = {k: v for k, v in siblings.items() if _number(k, parent) < _number(name, parent)}
    after = {k: v for k, v in siblings.items() if _number(k, parent) > _number(name, parent)}
    linear = {k: state[k] for k in (f"{name}.weight", f"{name}.bias") if k in state}
    if not last.isdigit():
        before, after = {}, {}
    if after:
        raise CheckpointError(_untold(path, parent))
    categories = state[f"{name}.weight"].shape[0]
    used = frozenset((*linear, *before))
    if not before:
        weights = {f"{own}{key[len(name) :]}": value for key, value in linear.items()}
        if f"{own}.bias" not in weights:
            weights[f"{own}.bias"] = torch.zeros(categories)
        return Head(categories, weights, None, used, name)
    layer = nn.Sequential(_norm(before, width, parent, path), _linear(linear, name))
    return Head(categories, {}, layer, used, parent)


def _untold(path: object, parent: str) -> str:
    return (
        f"checkpoint {path}: its classifier {parent} has several layers, and what is between them "
        f"is not in the file; {BUILD}"
    )


def _number(key: str, parent: str) -> int:
    """The place of a layer within a sequence; 0 where it has none."""
    part = key[len(parent) + 1 :].partition(".")[0]
    return int(part) if part.isdigit() else 0


def _norm(state: Mapping[str, Tensor], width: int, parent: str, path: object) -> nn.Module:
    kinds = {key.rpartition(".")[2]: value for key, value in state.items()}
    if {"running_mean", "running_var"} <= kinds.keys() and len(kinds) == len(state):
        norm = nn.BatchNorm1d(width, affine="weight" in kinds)
    elif kinds.keys() == {"weight", "bias"} and all(v.shape == (width,) for v in kinds.values()):
        norm = nn.LayerNorm(width)
    else:
        raise CheckpointError(
            f"checkpoint {path}: what its classifier {parent} does before its last layer can't be "
            f"told; {BUILD}"
        )
    norm.load_state_dict(kinds, strict=False)
    return norm


def _linear(state: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight = state[f"{name}.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=f"{name}.bias" in state)
    layer.load_state_dict({key[len(name) + 1 :]: value for key, value in state.items()})
    return layer
