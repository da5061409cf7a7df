"""The raw attention of what the classifier reads, in one block.

Vaswani et al. 2017, "Attention Is All You Need", equation 1. One row of one block's matrix: where
that block's read-out looks. It knows nothing of what the blocks before have mixed into the tokens.
"""

import numpy as np
import torch
from torch import Tensor, nn

from vit_rollout import Explanation, fuse_heads, largest_is_one
from vitexplain.attention.capture import capture_attention, forward
from vitexplain.attention.checks import check_one_image, check_settings, images_for
from vitexplain.attention.tokens import (
    WINDOWED,
    UnsupportedModel,
    blocks_of,
    check_supported,
    token_layout,
)
from vitexplain.errors import RequestError


class BlockAttention:
    """Attention of one block of a timm ViT, the same for every category.

    Args:
        model: a timm VisionTransformer; used in evaluation mode, left as it was found.
        head_fusion: "mean", "max" or "min".
        block: number of the block, from 0 on; negative ones count from the last.
        head: number of the head, from 0 on; None fuses all.

    Raises:
        UnsupportedModel: if the model's attention can't be captured, or is in windows.
        RequestError: if an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        head_fusion: str = "mean",
        block: int = -1,
        head: int | None = None,
    ):
        check_supported(model)
        if isinstance(model, WINDOWED):
            raise UnsupportedModel(model, "a block looks at windows only: roll its attention out")
        blocks = len(blocks_of(model))
        check_settings(0, head_fusion, 0, False, blocks)
        if not -blocks <= block < blocks:
            raise RequestError(f"block must be from 0 to {blocks - 1}, not {block}")
        self.model, self.head_fusion, self.block, self.head = model, head_fusion, block, head

    def __call__(self, input_tensor: Tensor) -> np.ndarray:
        """The mask (h, w) of one image (1, 3, H, W): float32, largest value 1."""
        check_one_image(input_tensor)
        return self.batch(input_tensor)[0]

    def batch(self, input_tensor: Tensor) -> np.ndarray:
        """The masks (B, h, w) of B images (B, 3, H, W)."""
        return self.explain(input_tensor).masks

    def explain(self, input_tensor: Tensor) -> Explanation:
        """Masks and logits of B images (B, 3, H, W), from one forward pass.

        Raises:
            UnsupportedModel: if what passes the hooks is not attention over the input's tokens.
            RequestError: if there is no such head, or the input is not a batch of images.
        """
        images = images_for(self.model, input_tensor)
        layout = token_layout(self.model, *images.shape[2:])
        with (
            torch.inference_mode(),
            capture_attention(self.model, layout, reduce=self._fused) as captured,
        ):
            logits = forward(self.model, images)
            attention = captured.summed()[self.block]
            # all heads of the pool decide what is read, whichever one of the block is wanted
            pooled = None if captured.pool is None else fuse_heads(captured.pool, "mean")
            row = layout.readout_weights(attention, pooled)[:, None] @ attention
        masks = largest_is_one(row[:, 0, layout.prefix_tokens :], layout.grid)
        return Explanation(masks, logits.float().cpu().clone(), layout)

    def _fused(self, attention: Tensor) -> Tensor:
        """(B, H, N, N) -> (B, N, N)."""
        if self.head is None:
            return fuse_heads(attention, self.head_fusion)
        if self.head not in range(attention.shape[1]):
            raise RequestError(f"head must be from 0 to {attention.shape[1] - 1}, not {self.head}")
        return attention[:, self.head].float()
