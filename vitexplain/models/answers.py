"""What a model's outputs answer: how many categories it has, their names, and how they relate."""

from collections.abc import Sequence
from pathlib import Path

import torch
from timm.data import infer_imagenet_subset
from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.families import GLOBAL, WINDOWED
from vitexplain.attention.readout import is_timms_own
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.wrappers import input_size
from vitexplain.choices import LABELS
from vitexplain.errors import RequestError
from vitexplain.models.categories import CategoryError, default_names, read_names
from vitexplain.outputs import COSINE, are_values

SIDES = ("negative", "positive")
VALUES = ("lower", "higher")  # of a single output that is no probability
# timm's towers of CLIP and its like end in a projection without a bias, not in a classifier
TOWERS = ("clip", "vit_pe_core")
WIDTH = 64  # embeddings have a multiple of this many numbers


def count_outputs(model: nn.Module) -> int:
    """How many numbers the model's head gives for an image; 0 without a head."""
    said = getattr(model, "num_classes", 0)
    head = getattr(model, "head", None)
    if not isinstance(model, GLOBAL + WINDOWED):
        return said
    if not is_timms_own(model) or isinstance(head, nn.Sequential):
        return _counted(model)
    if isinstance(head, nn.Linear):  # put in the place of timm's own, perhaps
        return head.out_features
    return said


def is_embedding(model: nn.Module, config: dict) -> bool:
    """Whether the outputs are an embedding, as of CLIP's image towers, and no categories.

    Args:
        config: timm's pretrained_cfg of the model.
    """
    count, head = count_outputs(model), getattr(model, "head", None)
    name = f"{config.get('architecture')}.{config.get('tag')}"
    bias = getattr(head, "bias", None)
    return (
        any(tower in name for tower in TOWERS)
        and count > 0
        and count % WIDTH == 0
        and not config.get("label_names")
        and not infer_imagenet_subset({"num_classes": count})
        and (bias is None or bias.is_meta or not bool(bias.any()))
    )


def name_outputs(
    model: nn.Module,
    config: dict,
    class_names: str | Path | Sequence[str] | None = None,
    labels: str = "exclusive",
) -> tuple[list[str], str]:
    """The names of the categories, none for an embedding, and a notice or "".

    Args:
        config: timm's pretrained_cfg of the model.
        class_names: a file of names, or they themselves.
        labels: one of choices.LABELS.

    Raises:
        RequestError: if `labels` is none of these; CategoryError if names don't fit.
    """
    if labels not in (*LABELS, COSINE):
        raise RequestError(f"labels must be one of {', '.join(LABELS)}, not {labels!r}")
    count = count_outputs(model)
    if class_names is not None:
        return (_two_names if count == 1 else _given)(class_names, count), ""
    if is_embedding(model, config):
        return [], f"its outputs are an embedding of {count} numbers, not categories"
    if count == 1:
        given = config.get("label_names") or ()
        names = tuple(map(str, given)) if len(given) == 2 else SIDES
        return list(VALUES if are_values(labels) else names), ""
    return default_names(count, config), ""


def _given(class_names: str | Path | Sequence[str], count: int) -> list[str]:
    if isinstance(class_names, str | Path):
        return read_names(class_names, count)
    if len(class_names) != count:
        raise CategoryError(f"{len(class_names)} class names, the model has {count} classes")
    return [str(name) for name in class_names]


def _two_names(class_names: str | Path | Sequence[str], _count: int) -> list[str]:
    """Of a single output: the names against and for, or the latter alone."""
    try:
        return _given(class_names, 2)
    except CategoryError as error:
        try:
            (name,) = _given(class_names, 1)
        except CategoryError:
            raise CategoryError(
                f"{error}: it has a single output, which takes two names (against, for) or one"
            ) from None
        return [f"not {name}", name]


def _counted(model: nn.Module) -> int:
    """By a pass: of a model whose forward is its own."""
    weight = next(model.parameters())
    if weight.is_meta:
        return getattr(model, "num_classes", 0)
    with torch.inference_mode():
        outputs = forward(shadow_of(model), torch.zeros(1, *input_size(model)).to(weight))
    return outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else 0
