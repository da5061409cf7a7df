"""Relevance of attention: gradients weight attention, and the blocks' relevance adds up.

Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers" (ICCV), equations 5 and 6, for self-attention alone:

    E_l = mean_heads((A_l * dy_c/dA_l)^+),    R <- R + E_l R,    R = I at first, block 1 first.

As gradient rollout, but without a division by the rows' sums, and nothing is discarded. The map is
the row of R - I that the classifier pools, at the patches' columns; an attention pool's own
attention, weighted as E_l, is part of it.
"""

import numpy as np
from torch import Tensor, nn

from vitexplain.attention.checks import check_start_block
from vitexplain.attention.tokens import TokenLayout, blocks_of, check_supported
from vitexplain.methods.base import CategoryMethod, Choose
from vitexplain.methods.product import relevance_scores
from vitexplain.methods.weighting import weighted_attention


class Relevance(CategoryMethod):
    """Relevance of a timm ViT's patches, for one category of each image.

    Args:
        model: a timm VisionTransformer; used in evaluation mode, left as it was found.
        start_block: first block whose attention counts, 0 for all of them.
        exact: keep gradients in the model's own precision, however many tokens there are (see
            vit_grad_rollout).

    Raises:
        UnsupportedModel: if the model's attention can't be rolled out.
        RequestError: if start_block is out of range.
    """

    def __init__(self, model: nn.Module, start_block: int = 0, exact: bool = False):
        model = check_supported(model)
        check_start_block(start_block, len(blocks_of(model)))
        self.model, self.start_block, self.exact = model, start_block, exact

    def _scores(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        weighted, logits, categories = weighted_attention(
            self.model,
            images,
            layout,
            choose,
            "mean",
            start_block=self.start_block,
            exact=self.exact,
        )
        return [relevance_scores(each, layout) for each in weighted], logits, categories
