"""The last grid of features in an image classifier: what Grad-CAM weights.

Nearly all of timm's models are forward_head(forward_features(x)), and what is between the two is a
grid: (B, C, h, w), (B, h, w, C), or tokens (B, P + h*w, C) in row-major order after P prefix
tokens. It is the layer that Grad-CAM's authors take. Where the head reads a class token alone, as
in CaiT, the logits have no gradient at any other place; or what is between the two may be several
tensors. Then it is the output of the last norm from whose every place a gradient comes: the input
of the last attention that reads them all.

Which one it is depends on the model and the size of its input, not on an image: it is found with a
random one.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.readout import channels_of
from vitexplain.attention.shadow import shadow_of

FEATURES = "forward_features"
MOST_PREFIX = 16  # tokens before the patches
FEWEST = 4  # patches: with fewer, there is nothing to see


@dataclass(frozen=True)
class LastGrid:
    """Where a model has its last grid of features, and how it lies there.

    Attributes:
        place: the name of the module whose output it is; FEATURES for that method's.
        shape: (h, w).
        channels_last: the output is (B, h, w, C), or tokens; else (B, C, h, w).
        prefix_tokens: P, how many tokens stand before the patches.
    """

    place: str
    shape: tuple[int, int]
    channels_last: bool
    prefix_tokens: int = 0

    def patches(self, output: Tensor) -> Tensor:
        """(B, h*w, C) of what the place put out."""
        if output.ndim == 3:
            return output[:, self.prefix_tokens :]
        return output.flatten(1, 2) if self.channels_last else output.flatten(2).mT


def last_grid(model: nn.Module, height: int, width: int) -> LastGrid | None:
    """The last grid of features that a model makes of height x width images; None if none is seen.

    Args:
        model: timm's, whose outputs are (B, K).
    """
    shadow = shadow_of(model)
    weight = next(filter(torch.is_floating_point, shadow.parameters()))
    found: list[tuple[LastGrid, Tensor]] = []

    def see(place: str, module: nn.Module | None, output: object) -> None:
        grid = _grid_of(shadow, place, module, output, (height, width))
        if grid is not None and output.requires_grad:
            found.append((grid, output))

    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as undo:
        for name, module in shadow.named_modules():
            if "Norm" in type(module).__name__:
                watch(shadow, name, lambda out, n=name, m=module: see(n, m, out), undo)
        if hasattr(shadow, FEATURES):
            watch(shadow, FEATURES, lambda out: see(FEATURES, None, out), undo)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, channels_of(model), height, width, generator=generator)
        outputs = forward(shadow, image.to(weight).requires_grad_())
        if not found or not outputs.requires_grad:
            return None
        weights = torch.linspace(0.5, 1.5, outputs.numel()).reshape(outputs.shape).to(outputs)
        tensors = [output for _, output in found]
        gradients = torch.autograd.grad((outputs * weights).sum(), tensors, allow_unused=True)
    read = [
        (grid, grid.patches(gradient).abs().amax(dim=2)[0])  # (h*w,)
        for (grid, _), gradient in zip(found, gradients, strict=True)
        if gradient is not None
    ]
    everywhere = [grid for grid, size in read if bool((size > 0).all())]
    if not everywhere and not any(bool(size.any()) for _, size in read):
        everywhere = [grid for grid, _ in found]  # a head of zeros, as before training, reads none
    whole = [grid for grid in everywhere if grid.place == FEATURES]
    return (whole or everywhere or [None])[-1]


def watch(
    model: nn.Module, place: str, see: Callable[[Tensor], Tensor | None], undo: ExitStack
) -> None:
    """Pass what a place of a shadow puts out through `see`, which may put something else there."""
    if place != FEATURES:
        hook = model.get_submodule(place).register_forward_hook
        undo.callback(hook(lambda _module, _inputs, output: see(output)).remove)
        return
    for module in model.modules():
        if type(module) is type(model):  # also where a wrapper's forward calls the model within
            module.forward_features = _seen(module.forward_features, see)


def _seen(inner: Callable, see: Callable[[Tensor], Tensor | None]) -> Callable:
    def seen(*args, **kwargs):
        output = inner(*args, **kwargs)
        other = see(output)
        return output if other is None else other

    return seen


def _grid_of(
    model: nn.Module, place: str, module: nn.Module | None, output: object, size: tuple[int, int]
) -> LastGrid | None:
    """The grid that an output (1, ...) is; None if it is none."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4) or len(output) != 1:
        return None
    if output.ndim == 3:
        found = _tokens(model, output.shape[1], size)
        return found and LastGrid(place, found[0], True, found[1])
    last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    if module is not None:  # a LayerNorm's channels are what it is a norm over
        last = tuple(getattr(module, "normalized_shape", ())) == (output.shape[3],)
        last = last and "2d" not in type(module).__name__
    shape = tuple(output.shape[1:3] if last else output.shape[2:])
    return LastGrid(place, shape, last) if shape[0] * shape[1] >= FEWEST else None


def _tokens(
    model: nn.Module, count: int, size: tuple[int, int]
) -> tuple[tuple[int, int], int] | None:
    """((h, w), how many prefix tokens) of `count` tokens; None if they are no grid of the image.

    timm says by how much each stage of a model is smaller than its input.
    """
    information = getattr(model, "feature_info", None) or ()
    stages = getattr(information, "info", information)  # a list, or timm's FeatureInfo
    for reduction in dict.fromkeys(stage["reduction"] for stage in reversed(stages)):
        for down in (-1, 1):  # rounded up, or down
            shape = tuple(down * (down * pixels // reduction) for pixels in size)
            prefix = count - shape[0] * shape[1]
            if 0 <= prefix <= MOST_PREFIX and shape[0] * shape[1] >= FEWEST:
                return shape, prefix
    return None
