"""Which tokens a model's head reads, found out from the model itself.

timm's own heads say it: `global_pool` and its like. A subclass with another `forward`, or a model
with something else in a method's place, may read what it likes, whatever its attributes say. For
these, the gradient of the outputs with respect to the last block's tokens tells: it is 0 for a
token that is not read. Where what is read is a weighted mean, z = sum_i w_i T_i, it is w_i dy/dz
for every token, so that the gradients of all of them have one direction and their lengths are the
weights. A head may read several such means, each by weights of its own (DeiT's two tokens, or the
class token beside the mean of the patches): each then counts alike.

Two random images are tried, as weights that depend on the image make no mean.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from vitexplain.attention.shadow import shadow_of
from vitexplain.errors import RequestError, one_line

OWN = ("forward", "forward_features", "forward_head", "pool")
PER_TOKEN = (nn.LayerNorm, nn.RMSNorm, nn.Identity)
MORE = "its head reads other things beside the last block's tokens"
DIRECTIONS = 2  # of the outputs, whose gradients are compared
# of a gradient's length: what two roundings may differ by
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
ROUGH = 3e-2  # in half precision
REARRANGED = ("CSATv2", "TResNet")  # whose first convolution reads more channels than images have


class Unreadable(RequestError):
    """The head reads tokens in a way that is no weighted mean; the message is the reason."""


@dataclass(frozen=True)
class Reading:
    """What the head reads of the last block's N tokens.

    Attributes:
        shares: (N,), how much of each token, summing to 1; None where an attention pool decides.
        means: how many different means are read.
        pooled: how many tokens, the last ones, an attention pool attends to; 0 without one.
    """

    shares: Tensor | None
    means: int = 1
    pooled: int = 0


def is_timms_own(model: nn.Module) -> bool:
    """Whether all that happens after the last block is timm's own code.

    Replaced layers that see one vector for each image, such as a head, don't matter here.
    """
    layers = [getattr(model, name, None) for name in ("norm", "attn_pool")]
    layers = [layer for layer in layers if layer is not None]
    return (
        not any(name in vars(model) for name in OWN)
        and all(is_from_timm(getattr(type(model), name, None)) for name in OWN)
        and all(isinstance(layer, PER_TOKEN) or is_from_timm(type(layer)) for layer in layers)
    )


def is_from_timm(thing: type | Callable | None) -> bool:
    """Whether a class or a function, if there is one, is timm's own code."""
    return thing is None or (thing.__module__ or "").partition(".")[0] == "timm"


def has_own_code(model: nn.Module) -> bool:
    """Whether any of its code is neither timm's nor torch's."""
    return not is_timms_own(model) or any(
        not type(module).__module__.startswith(("timm.", "torch.nn.modules."))
        for module in model.modules()
    )


def has_categories(model: nn.Module) -> bool:
    """Whether the model has a classifier, its own one or one put into its place."""
    if getattr(model, "num_classes", 0):
        return True
    head = getattr(model, "head", None)
    return not isinstance(head, nn.Identity | None) and not is_from_timm(type(head))


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at this module, or at every one."""
    everywhere = nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
    )


def reading_of(model: nn.Module, last: Callable[[nn.Module], nn.Module], size: tuple) -> Reading:
    """What the model's head reads after the last block.

    Args:
        last: model -> its last block, whose output is (B, N, C), or (B, h, w, C).
        size: (C, H, W) of an input.

    Raises:
        Unreadable: if that is no weighted mean of these tokens.
    """
    shadow = shadow_of(model)
    weight = next(shadow.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *size, generator=generator).to(weight.device, weight.dtype)
    with torch.inference_mode(False), torch.enable_grad():
        probe = _Probe(shadow, last(shadow))
        outputs = probe.run(images.requires_grad_())
        return probe.reading(outputs, images, generator)


def channels_of(model: nn.Module) -> int:
    """How many channels the model's images have."""
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or type(model).__name__ in REARRANGED:
        return 3
    return first.in_channels


class _Probe:
    """One pass with a new start of autograd after the last block, its norm and its pool."""

    def __init__(self, model: nn.Module, last: nn.Module):
        self.model = model
        self.tokens: list[Tensor] = []  # after the last block, and after the norm
        self.pooled: list[Tensor] = []  # the attention pool's output
        self.pool_reads = 0
        self.images: Tensor | None = None
        last.register_forward_hook(self._see)
        for name, layer in model.named_children():
            if name == "norm":
                layer.register_forward_hook(self._see_norm)
            if isinstance(layer, AttentionPoolLatent):
                layer.register_forward_hook(self._see_pool)

    def run(self, images: Tensor) -> Tensor:
        """The outputs (B, K)."""
        self.images = images
        try:
            outputs = self.model(images)
        except RequestError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise Unreadable(f"its forward pass fails: {one_line(error, 160)}") from error
        check_outputs(outputs)
        return outputs

    def reading(self, outputs: Tensor, images: Tensor, generator: torch.Generator) -> Reading:
        starts = [images, *self.tokens, *self.pooled]
        gradients = []  # of each start, one for each direction
        for number in range(DIRECTIONS):
            direction = torch.randn(outputs.shape[1], generator=generator).to(outputs)
            score = (outputs * direction).sum()
            if not score.requires_grad:
                raise Unreadable("its outputs don't depend on its blocks' tokens")
            more = number < DIRECTIONS - 1
            gradients.append(
                torch.autograd.grad(score, starts, retain_graph=more, allow_unused=True)
            )
        read = [
            any(g is not None and bool(g.any()) for g in of) for of in zip(*gradients, strict=True)
        ]
        if not any(read):
            raise Unreadable("its outputs don't depend on its blocks' tokens")
        (place,) = [i for i, is_read in enumerate(read) if is_read][:1]
        if sum(read) > 1 or place == 0:
            raise Unreadable(MORE)
        if place > len(self.tokens):
            return Reading(None, pooled=self.pool_reads)
        both = torch.stack([of[place].flatten(1, -2) for of in gradients], dim=-1)  # (2, N, C, D)
        tolerance = TOLERANCE.get(both.dtype, ROUGH)
        prefix = getattr(self.model, "num_prefix_tokens", 0)
        return Reading(*shares_of(both.flatten(2).double().cpu(), prefix, tolerance))

    def _see(self, _block, _inputs, output):
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            raise Unreadable("its last block returns no tensor of tokens")
        self.tokens.append(output.detach().requires_grad_())
        return self.tokens[-1]

    def _see_norm(self, _norm, _inputs, output):
        # before the last block, or of a mean already, it is not the norm of these tokens
        if self.tokens and isinstance(output, Tensor) and output.shape == self.tokens[0].shape:
            self.tokens.append(self._start(output))
            return self.tokens[-1]
        return None

    def _see_pool(self, _pool, inputs, output):
        self.pool_reads = inputs[0].shape[1]
        self.pooled.append(self._start(output))
        return self.pooled[-1]

    def _start(self, output: Tensor) -> Tensor:
        """A new start of autograd, for what follows from the last block's tokens alone."""
        weights = torch.linspace(0.5, 1.5, output.numel()).reshape(output.shape).to(output)
        (others,) = torch.autograd.grad(
            (output * weights).sum(), self.images, retain_graph=True, allow_unused=True
        )
        if others is not None and bool(others.any()):
            raise Unreadable(MORE)
        return output.detach().requires_grad_()


def check_outputs(outputs: object) -> None:
    """Raise Unreadable unless it is (B, K), one number for each category."""
    if isinstance(outputs, Tensor) and outputs.ndim == 2:
        return
    kind = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
    raise Unreadable(
        f"its forward returns {kind} where logits (B, categories) were due: wrap it in a module "
        "that returns these alone"
    )


def shares_of(gradients: Tensor, prefix_tokens: int, tolerance: float) -> tuple[Tensor, int]:
    """(N,) shares that sum to 1, and of how many means, from gradients (images, N, C).

    Raises:
        Unreadable: if they are not those of weighted means, the same for all images, of which one
            at most is of patches.
    """
    found = [means_of(of_image, tolerance) for of_image in gradients]
    first = torch.stack(found[0])
    of_patches = sum(bool(mean[prefix_tokens:].any()) for mean in first)
    if of_patches > 1 or any(
        len(means) != len(first) or bool(((torch.stack(means) - first).abs() > tolerance).any())
        for means in found[1:]
    ):
        raise Unreadable("its head weighs tokens by their content")
    return first.mean(dim=0), len(first)


def means_of(gradients: Tensor, tolerance: float) -> list[Tensor]:
    """The weights (N,) of each mean that is read, summing to 1, from gradients (N, C).

    Raises:
        Unreadable: if weights of both signs belong together.
    """
    lengths = gradients.norm(dim=1)
    left = lengths > tolerance**2 * lengths.max()
    means = []
    while left.any():
        leader = int((lengths * left).argmax())
        direction = gradients[leader] / lengths[leader]
        along = gradients @ direction  # (N,)
        aside = (gradients - along[:, None] * direction).norm(dim=1)
        members = left & (aside <= tolerance * lengths)
        weights = torch.where(members, along, 0)
        if bool((weights < 0).any()):
            raise Unreadable("its head subtracts tokens from each other")
        lightest = along[members].min()
        if lightest >= (1 - tolerance) * lengths[leader]:
            weights = members.to(weights.dtype)  # equal, but for roundings
        means.append(weights / weights.sum())
        left &= ~members
    return means
