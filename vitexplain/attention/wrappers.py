"""The model within what people put around one: parallel and averaged ones, modules of their own."""

from collections.abc import Callable, Iterator
from types import MethodType

import torch
from torch import Tensor, nn

from vitexplain.attention.readout import channels_of
from vitexplain.attention.shadow import shadow_of
from vitexplain.errors import RequestError

# attributes under which well-known wrappers keep the model whose output is their own
TRANSPARENT = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEma": "module",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "OptimizedModule": "_orig_mod",
}
WRAPPER = "explained_wrapper"  # under which a model keeps the module around it
SIDE = 224  # pixels of images for models that say nothing of them

Counts = Callable[[nn.Module], bool]  # whether a module is a model that is looked for


class Unclear(RequestError):
    """Which model is meant is not clear, or it is not all that happens: the message says why."""


def model_within(model: nn.Module, counts: Counts, kind: str = "ViT") -> nn.Module | None:
    """The one that counts in `model`; None if there is none.

    A module of the user's own may do more with its output, such as classify it. Then the one that
    is returned has that module's forward pass in its own one's place.

    Args:
        counts: whether a module is such a model.
        kind: what to call it.

    Raises:
        Unclear: if there are several, or they are given something else than the module's images.
    """
    while type(model).__name__ in TRANSPARENT:
        model = getattr(model, TRANSPARENT[type(model).__name__])
    if counts(model):
        return model
    found = dict(_outermost(model, counts))
    if not found:
        return None
    where = [_attribute(name) for name in found]
    if len(found) > 1:
        raise Unclear(f"it holds several {kind}s, pass one of them: {', '.join(where[:4])}")
    ((name, inner),) = found.items()
    given, output, whole = _one_pass(model, name, kind)
    if not torch.equal(given[0], given[1]):
        raise Unclear(
            f"it changes images before its {kind} sees them: pass {where[0]}, and images prepared "
            "for that"
        )
    same = output.shape == whole.shape and torch.equal(output, whole)
    return inner if same else _with_wrapper(inner, model, whole.shape[-1])


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of images that a model takes."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    said = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return (channels_of(model), *(size or (said and said[1:]) or (SIDE, SIDE)))


def _outermost(model: nn.Module, counts: Counts, prefix: str = "") -> Iterator:
    """(name, model) of each one that counts and is not within another one."""
    for name, child in model.named_children():
        if counts(child):
            yield prefix + name, child
        else:
            yield from _outermost(child, counts, f"{prefix}{name}.")


def _attribute(name: str) -> str:
    """ "model.encoder[1]" of "encoder.1"."""
    return "model" + "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in name.split("."))


def _one_pass(model: nn.Module, name: str, kind: str) -> tuple[tuple, Tensor, Tensor]:
    """((images, what the inner one was given), its output, the outer one's) of a random image."""
    shadow = shadow_of(model)
    inner = shadow.get_submodule(name)
    seen = []
    inner.register_forward_hook(lambda _module, inputs, output: seen.append((inputs, output)))
    weight = next(inner.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, *input_size(inner), generator=generator).to(weight)
    try:
        with torch.no_grad():
            whole = shadow(images)
        ((inputs, output),) = seen
        if not (isinstance(whole, Tensor) and isinstance(output, Tensor) and whole.ndim == 2):
            raise TypeError("no logits")
    except RequestError:
        raise
    except Exception as error:  # whatever the user's module raises, or does with its ViT
        raise Unclear(
            f"it holds a {kind}, but is no module that maps images to logits (B, categories) by "
            f"one pass through it: pass {_attribute(name)}"
        ) from error
    return (images, inputs[0]), output, whole


def _with_wrapper(inner: nn.Module, wrapper: nn.Module, outputs: int) -> nn.Module:
    """The same layers, with the wrapper's forward pass."""
    whole = object.__new__(type(inner))
    vars(whole).update(vars(inner))
    whole._modules = {**inner._modules, WRAPPER: wrapper}
    whole.forward = MethodType(_forward_of_wrapper, whole)
    whole.num_classes = outputs
    return whole


def _forward_of_wrapper(whole: nn.Module, images: Tensor) -> Tensor:
    return getattr(whole, WRAPPER)(images)
