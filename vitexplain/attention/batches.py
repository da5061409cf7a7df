"""How many images a model passes at once."""

import sys
from functools import partial

import torch
from torch import nn

from vitexplain.attention.families import blocks_of
from vitexplain.attention.tokens import layout_if_any
from vitexplain.device import free_memory

CPU_BATCH = 8  # larger batches of small models were no faster
SHARE_OF_FREE = 0.4  # of a GPU's free memory, for one of the two batches that are on their way
CACHED_TOKENS = 2048  # of a batch: with more, activations of a small ViT fall out of the cache

notify = partial(print, file=sys.stderr)  # where a batch did not fit, see vitexplain.device


def batch_for(
    model: nn.Module, height: int, width: int, most: int, device: torch.device | None = None
) -> int:
    """Images per forward pass that suit a device, by default the model's.

    On a CPU as many as its cache can hold, on a GPU as many as its free memory.

    Args:
        most: on a GPU.
    """
    device = next(model.parameters()).device if device is None else device
    layout = layout_if_any(model, height, width)
    if device.type == "cpu":
        return max(1, min(CPU_BATCH, CACHED_TOKENS // layout.tokens)) if layout else CPU_BATCH
    free = free_memory(device)
    if not layout or free is None:
        return most
    width = getattr(model, "embed_dim", 768)
    needed = memory_needed(layout.tokens, len(blocks_of(model)), width)
    return max(1, min(most, int(SHARE_OF_FREE * free / needed)))


def memory_needed(tokens: int, blocks: int, width: int) -> int:
    """Bytes that explaining one image on a GPU takes, roughly and at most, in float32.

    Of each block its fused attention (N, N) and what its backward pass needs, some 16 activations;
    and of one block what puts its entries in order.
    """
    return 4 * (blocks * (tokens**2 + 16 * tokens * width) + 6 * tokens**2)
