"""Relevance of attention: gradients weigh attention, and the blocks' relevance adds up.

Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers" (ICCV), equations 5 and 6, for self-attention alone:

    E_l = mean_heads((A_l * dy_c/dA_l)^+),    R <- R + E_l R,    R = I at first, block 1 first.

As gradient rollout, but without a division by the rows' sums, and nothing is discarded. The mask
is the row of R that the classifier reads, at the patches' columns.
"""

import numpy as np
from torch import nn

from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import largest_is_one
from vitexplain.attention.capture import AttentionFactors
from vitexplain.attention.tokens import TokenLayout


class Relevance(VITAttentionGradRollout):
    """Relevance of a timm ViT's patches, for one category of each image.

    Args:
        model: a timm VisionTransformer; used in evaluation mode, left as it was found.
        start_block: first block whose attention counts, 0 for all of them.

    Raises:
        UnsupportedModel: if the model's attention can't be rolled out.
        RequestError: if start_block is out of range.
    """

    def __init__(self, model: nn.Module, start_block: int = 0):
        super().__init__(model, discard_ratio=0, head_fusion="mean", start_block=start_block)

    def _masks(self, attention: AttentionFactors, layout: TokenLayout) -> np.ndarray:
        factors = attention.factors
        row = layout.readout_weights(factors[-1].matrix, attention.pool)[:, None]  # (B, 1, N)
        for factor in reversed(factors):
            through = row @ factor.matrix
            # merged tokens are what they were made of; blocks have a residual connection
            row = through if factor.matrix.ndim == 2 else row + through
        return largest_is_one(row[:, 0, layout.prefix_tokens :], layout.grid)
