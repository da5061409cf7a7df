"""Whether a model's tokens are its prefix and then the image's patches, row by row.

timm's own code makes them so. Where a model has code of its own before its blocks, its tokens are
asked: each patch has a number, and for each bit of it an image is changed in the patches whose
number has that bit. A token that is of patch k changes just with those images that tell k.
"""

import math

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from vitexplain.attention.readout import Unreadable, is_from_timm
from vitexplain.attention.shadow import shadow_of
from vitexplain.errors import RequestError, one_line

BEFORE_BLOCKS = ("forward", "forward_features", "_pos_embed")


class _Stopped(Exception):
    """Raised at the first block."""


def is_ordered(model: nn.Module) -> bool:
    """Whether all that happens before the blocks is timm's own code."""
    return not any(name in vars(model) for name in BEFORE_BLOCKS) and all(
        is_from_timm(getattr(type(model), name, None)) for name in BEFORE_BLOCKS
    )


def check_order(
    model: nn.Module, first: str, size: tuple[int, int, int], grid: tuple[int, int], prefix: int
) -> None:
    """Raise Unreadable unless tokens are `prefix` ones, and then the patches of the grid.

    Args:
        first: the name of the first block.
        size: (C, H, W) of an input.
    """
    # a stem of convolutions mixes neighbouring patches: there a token has no patch of its own
    if is_ordered(model) or not isinstance(model.patch_embed, PatchEmbed):
        return
    patches = grid[0] * grid[1]
    bits = max(1, math.ceil(math.log2(patches)))
    tokens = _tokens(model, first, _images(model, size, grid, bits)).flatten(1, -2)
    if tokens.shape[1] != prefix + patches:
        return  # the blocks will say so
    changed = (tokens[1:] - tokens[:1]).abs().amax(dim=-1) > 0  # (bits, N)
    numbers = (changed * (2 ** torch.arange(bits, device=changed.device))[:, None]).sum(dim=0)
    expected = torch.arange(patches, device=numbers.device)
    if bool(changed[:, :prefix].any()) or not torch.equal(numbers[prefix:], expected):
        raise Unreadable(
            "its tokens are not prefix tokens followed by the image's patches, row by row"
        )


def _images(model: nn.Module, size: tuple, grid: tuple[int, int], bits: int) -> Tensor:
    """(1 + bits, C, H, W): a random image, and one for each bit with some patches changed."""
    weight = next(model.parameters())
    image = torch.randn(size, generator=torch.Generator().manual_seed(0))
    height, width = size[1:]
    number = torch.arange(grid[0] * grid[1]).view(grid)
    for dim, (pixels, count) in enumerate(zip((height, width), grid, strict=True)):
        number = number.repeat_interleave(math.ceil(pixels / count), dim)
    number = number[:height, :width]
    images = [image] + [torch.where((number >> bit) % 2 == 1, -image, image) for bit in range(bits)]
    return torch.stack(images).to(weight.device, weight.dtype)


def _tokens(model: nn.Module, first: str, images: Tensor) -> Tensor:
    """What the first block is given, (B, N, C) or (B, h, w, C)."""
    shadow, seen = shadow_of(model), []

    def see(_block: nn.Module, inputs: tuple) -> None:
        seen.extend(inputs[:1])
        raise _Stopped

    shadow.get_submodule(first).register_forward_pre_hook(see)
    try:
        with torch.inference_mode():
            shadow(images)
    except _Stopped:
        pass
    except RequestError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise Unreadable(f"its forward pass fails: {one_line(error, 160)}") from error
    if not seen or not isinstance(seen[0], Tensor):
        raise Unreadable("its blocks are given no tensor of tokens")
    return seen[0]
