"""Checks of the arguments that several methods share.

Each raises RequestError, which names the argument and says what is allowed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitexplain.attention.readout import channels_of
from vitexplain.choices import HEAD_FUSIONS
from vitexplain.errors import RequestError


def check_discard_ratio(discard_ratio: float) -> None:
    """A share of the entries, in [0, 1): something must be left."""
    if not 0 <= discard_ratio < 1:  # NaN fails here, too
        raise RequestError(f"discard_ratio must be at least 0 and below 1, not {discard_ratio}")


def check_head_fusion(head_fusion: str) -> None:
    """One of HEAD_FUSIONS."""
    if head_fusion not in HEAD_FUSIONS:
        allowed = ", ".join(HEAD_FUSIONS)
        raise RequestError(f"head_fusion must be one of {allowed}, not {head_fusion!r}")


def check_start_block(start_block: int, blocks: int) -> None:
    """The number of one of `blocks` blocks, from 0 on."""
    if start_block not in range(blocks):
        raise RequestError(f"start_block must be from 0 to {blocks - 1}, not {start_block}")


def check_block(block: int, blocks: int) -> None:
    """The number of one of `blocks` blocks; negative ones count from the last."""
    if not -blocks <= block < blocks:
        raise RequestError(f"block must be from 0 to {blocks - 1}, not {block}")


def check_rollout_options(
    discard_ratio: float, head_fusion: str, start_block: int, as_published: bool, blocks: int
) -> None:
    """All options of attention rollout and gradient rollout, for a model of `blocks` blocks."""
    check_discard_ratio(discard_ratio)
    check_head_fusion(head_fusion)
    check_start_block(start_block, blocks)
    if as_published and start_block:
        raise RequestError("start_block must be 0 with as_published: the older script had none")


def check_matrices(*sequences: Sequence[Tensor]) -> None:
    """Every block has one matrix in each sequence, all (B, H, N, N) and of one shape."""
    shapes = {tuple(matrix.shape) for sequence in sequences for matrix in sequence}
    lengths = [len(sequence) for sequence in sequences]
    if len(set(lengths)) > 1 or len(shapes) != 1:
        raise RequestError(
            "attentions (and gradients) must be one tensor for each block, all of one shape, "
            f"not {sorted(shapes)} in lists of {lengths}"
        )
    (shape,) = shapes
    if len(shape) != 4 or shape[2] != shape[3]:
        raise RequestError(f"attentions must have the shape (B, H, N, N), not {shape}")


def check_one_image(input_tensor: Tensor) -> None:
    """A batch of one."""
    if len(input_tensor) != 1:
        raise RequestError(
            f"input_tensor holds {len(input_tensor)} images, not one: use .batch() for many"
        )


def images_for(model: nn.Module, input_tensor: Tensor) -> Tensor:
    """The batch (B, C, H, W), on the model's device and in its precision."""
    expected = "input_tensor must be a (B, C, H, W) tensor, B >= 1, as the model's transform makes"
    if not isinstance(input_tensor, Tensor):
        raise RequestError(
            f"{expected}, not {type(input_tensor).__name__}: vitexplain.explain takes images"
        )
    if input_tensor.ndim != 4 or not len(input_tensor):
        hint = ": add the batch, x[None]" if input_tensor.ndim == 3 else ""
        raise RequestError(f"{expected}, not {tuple(input_tensor.shape)}{hint}")
    channels = channels_of(model)
    if input_tensor.shape[1] != channels:
        raise RequestError(
            f"the model takes images of {channels} channels, not {input_tensor.shape[1]}"
        )
    weight = next(filter(torch.is_floating_point, model.parameters()), torch.empty(0))
    return input_tensor.detach().to(weight.device, weight.dtype)
