"""What a ViT would answer after each of its blocks, and which category each patch votes for.

The head is given the tokens of an earlier block in place of the last one's (the logit lens):

    p_l = softmax(head(z_l)),    z_l the N tokens after block l,

head being all that follows the last block: its norm, pooling and classifier. A patch's vote is the
head's answer to that patch's token alone, every token that the head reads being replaced by it
(Vilas, Schaumlöffel & Roig 2023, "Analyzing Vision Transformers for Image Classification in Class
Embedding Space", NeurIPS, section 3). Heads were trained on the last block only: what they say of
early ones is a reading, not what the model decides.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.checks import check_one_image, images_for
from vitexplain.attention.readout import has_categories
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import (
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    check_supported,
    token_layout,
)
from vitexplain.errors import RequestError
from vitexplain.methods.base import own_code_named
from vitexplain.outputs import probabilities

TOP = 3
AT_ONCE = 64  # tokens that the head answers at once


@dataclass(frozen=True)
class BlockPrediction:
    """What the head answers to the tokens after one block; h x w is that block's grid.

    Attributes:
        block: its number, from 0 on.
        top: the three most likely categories and their probabilities.
        votes: (h, w) int64, the most likely category of each patch alone.
        shares: (h, w) float32, its probability.
    """

    block: int
    top: tuple[tuple[int, float], ...]
    votes: np.ndarray
    shares: np.ndarray


def predictions_by_block(
    model: nn.Module, tensor: Tensor, labels: str = "exclusive"
) -> tuple[BlockPrediction, ...]:
    """The predictions after the blocks of a timm ViT, for one image (1, 3, H, W).

    Swin's earlier stages have fewer channels than its head reads: only the last stage answers.

    Args:
        labels: how outputs become probabilities, "exclusive" or "independent".

    Raises:
        UnsupportedModel: if its blocks can't be followed.
        RequestError: if the model has no categories, or the input is not one image.
    """
    model = check_supported(model)
    if not has_categories(model):
        raise RequestError("the model has no categories: no block predicts one")
    images = images_for(model, tensor)
    check_one_image(images)
    layout = token_layout(model, *images.shape[2:])
    with torch.inference_mode(), own_code_named(model):
        found = _tokens_after_blocks(model, images)
        head = _Head(model, images)
        last = found[-1].shape
        return tuple(
            _prediction(number, tokens, head, layout, labels)
            for number, tokens in enumerate(found)
            if tokens.shape == last
        )


class _Head:
    """All that follows a model's last block."""

    def __init__(self, model: nn.Module, images: Tensor):
        self.images, self.shadow = images, shadow_of(model)
        self.tokens: Tensor | None = None
        *before, last = blocks_of(self.shadow)
        for block in before:
            block.forward = lambda tokens, *_args, **_options: tokens
        last.forward = lambda *_args, **_options: self.tokens

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, K), the logits of B images with these tokens after the last block."""
        self.tokens = tokens
        return forward(self.shadow, self.images)


def _tokens_after_blocks(model: nn.Module, images: Tensor) -> list[Tensor]:
    """(1, N, C) after each block; in Swin (1, h, w, C)."""
    shadow, seen = shadow_of(model), []
    for block in blocks_of(shadow):
        block.register_forward_hook(lambda _block, _inputs, tokens: seen.append(tokens))
    forward(shadow, images)
    if len(seen) != len(blocks_of(shadow)):
        raise UnsupportedModel(model, "not every one of its blocks runs once")
    return seen


def _prediction(
    number: int, tokens: Tensor, head: _Head, layout: TokenLayout, labels: str
) -> BlockPrediction:
    shares = probabilities(head(tokens).float(), labels)[0]
    top = shares.sort(descending=True, stable=True)
    count = min(TOP, len(shares))
    grid = layout.grid if tokens.ndim == 3 else tuple(tokens.shape[1:3])
    of_patches = _votes(tokens, head, layout, labels)  # (h*w, K)
    best = of_patches.max(dim=1)
    return BlockPrediction(
        number,
        tuple(zip(top.indices[:count].tolist(), top.values[:count].tolist(), strict=True)),
        best.indices.cpu().numpy().reshape(grid),
        best.values.float().cpu().numpy().reshape(grid),
    )


def _votes(tokens: Tensor, head: _Head, layout: TokenLayout, labels: str) -> Tensor:
    """(h*w, K): the probabilities that each patch's token alone gets."""
    alone = tokens[0, layout.prefix_tokens :] if tokens.ndim == 3 else tokens[0].flatten(0, 1)
    found = []
    for some in alone.split(AT_ONCE):
        if tokens.ndim == 4:
            whole = some[:, None, None]  # (b, 1, 1, C)
        else:  # as many as the head needs to find what it reads
            whole = some[:, None].expand(-1, layout.prefix_tokens + 1, -1)
        found.append(probabilities(head(whole).float(), labels))
    return torch.cat(found)
