"""The ViT within what people put around one: parallel and averaged models, modules of their own."""

from collections.abc import Iterator
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
WRAPPER = "explained_wrapper"  # under which a ViT keeps the module around it


class Unclear(RequestError):
    """Which ViT is meant is not clear, or it is not all that happens; the message is the reason."""


def vit_within(model: nn.Module, kinds: tuple[type, ...]) -> nn.Module | None:
    """The one ViT in `model`; None if there is none.

    A module of the user's own may do more with the ViT's output, such as classify it. Then the ViT
    that is returned has that module's forward pass in its own one's place.

    Args:
        kinds: the classes that count as ViTs.

    Raises:
        Unclear: if there are several, or they are given something else than the module's images.
    """
    while type(model).__name__ in TRANSPARENT:
        model = getattr(model, TRANSPARENT[type(model).__name__])
    if isinstance(model, kinds):
        return model
    found = dict(_outermost(model, kinds))
    if not found:
        return None
    where = [_attribute(name) for name in found]
    if len(found) > 1:
        raise Unclear(f"it holds several ViTs, pass one of them: {', '.join(where[:4])}")
    (vit,) = found.values()
    given, output, whole = _one_pass(model, vit, where[0])
    if not torch.equal(given[0], given[1]):
        raise Unclear(
            f"it changes images before its ViT sees them: pass {where[0]}, and images prepared for "
            "that"
        )
    same = output.shape == whole.shape and torch.equal(output, whole)
    return vit if same else _with_wrapper(vit, model, whole.shape[-1])


def input_size(vit: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of images that a ViT takes."""
    size = getattr(vit.patch_embed, "img_size", None) or (224, 224)
    return (channels_of(vit), *size)


def _outermost(model: nn.Module, kinds: tuple[type, ...], prefix: str = "") -> Iterator:
    """(name, ViT) of each ViT that is not within another one."""
    for name, child in model.named_children():
        if isinstance(child, kinds):
            yield prefix + name, child
        else:
            yield from _outermost(child, kinds, f"{prefix}{name}.")


def _attribute(name: str) -> str:
    """ "model.encoder[1]" of "encoder.1"."""
    return "model" + "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in name.split("."))


def _one_pass(model: nn.Module, vit: nn.Module, where: str) -> tuple[tuple, Tensor, Tensor]:
    """((images, what the ViT was given), its output, the model's output) for a random image."""
    shadow = shadow_of(model)
    (inner,) = (twin for _, twin in _outermost(shadow, (type(vit),)))
    seen = []
    inner.register_forward_hook(lambda _module, inputs, output: seen.append((inputs, output)))
    weight = next(inner.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, *input_size(vit), generator=generator).to(weight)
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
            f"it holds a ViT, but is no module that maps images to logits (B, categories) by one "
            f"pass through it: pass {where}"
        ) from error
    return (images, inputs[0]), output, whole


def _with_wrapper(vit: nn.Module, wrapper: nn.Module, outputs: int) -> nn.Module:
    """The same layers, with the wrapper's forward pass."""
    whole = object.__new__(type(vit))
    vars(whole).update(vars(vit))
    whole._modules = {**vit._modules, WRAPPER: wrapper}
    whole.forward = MethodType(_forward_of_wrapper, whole)
    whole.num_classes = outputs
    return whole


def _forward_of_wrapper(whole: nn.Module, images: Tensor) -> Tensor:
    return getattr(whole, WRAPPER)(images)
