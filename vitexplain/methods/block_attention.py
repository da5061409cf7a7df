"""The raw attention of the tokens that the classifier pools, in one block.

Vaswani et al. 2017, "Attention Is All You Need", equation 1. One row of one block's matrix, such as
the class token's. It knows nothing of what the blocks before have mixed into the tokens.

In CaiT, XCiT and VOLO, it is the attention of a block of class attention, see
vitexplain.attention.class_attention.
"""

from functools import partial

import numpy as np
from torch import Tensor, nn

from vitexplain.attention.capture import capture_attention, forward
from vitexplain.attention.checks import check_block, check_head_fusion
from vitexplain.attention.class_attention import (
    class_attention,
    class_blocks,
    class_layout,
    with_class_attention,
)
from vitexplain.attention.tokens import (
    WINDOWED,
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    check_supported,
)
from vitexplain.methods.base import ImageMethod, on_grid
from vitexplain.methods.product import fuse_heads, of_head


class BlockAttention(ImageMethod):
    """Attention of one block of a timm ViT, the same for every category.

    Args:
        model: a timm VisionTransformer, or one with class attention; used in evaluation mode, left
            as it was found.
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
        last = with_class_attention(model)
        model = check_supported(model) if last is None else last
        if isinstance(model, WINDOWED):
            raise UnsupportedModel(model, "a block looks at windows only: roll its attention out")
        self._of_class = last is not None
        check_head_fusion(head_fusion)
        check_block(block, len(class_blocks(model) if self._of_class else blocks_of(model)))
        self.model, self.head_fusion, self.block, self.head = model, head_fusion, block, head

    def _layout(self, images: Tensor) -> TokenLayout:
        if self._of_class:
            return class_layout(self.model, *images.shape[2:])
        return super()._layout(images)

    def _scores(
        self,
        images: Tensor,
        layout: TokenLayout,
        *,
        with_logits: bool,  # noqa: ARG002
    ) -> tuple[np.ndarray, Tensor]:
        fuse = partial(of_head, head=self.head, head_fusion=self.head_fusion)
        if self._of_class:
            attention, logits = class_attention(self.model, images, layout, self.block)
            return on_grid(fuse(attention)[:, 0, 1:], layout.grid), logits
        with capture_attention(self.model, layout, reduce=fuse) as captured:
            logits = forward(self.model, images)
        attention = captured.summed()[self.block]
        # all heads of the pool decide what is read, whichever one of the block is wanted
        pool = None if captured.pool is None else fuse_heads(captured.pool, "mean")
        row = layout.readout_weights(attention, pool)[:, None] @ attention  # (B, 1, N)
        return on_grid(row[:, 0, layout.prefix_tokens :], layout.grid), logits
