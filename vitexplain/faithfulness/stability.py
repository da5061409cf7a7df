"""Is a map stable under imperceptible noise?

Input stability as in Alvarez-Melis & Jaakkola 2018, "On the Robustness of Interpretability
Methods", but measured by the rank correlation of the two maps, which needs no common scale. High
is good only for a map that is faithful, too: a centre Gaussian is perfectly stable.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.faithfulness.passes import BATCH, check_categories, scores_of
from vitexplain.faithfulness.ranks import rank_correlation
from vitexplain.methods.registry import Method

SIGMA = 0.05  # standard deviation of the noise, for images from 0 to 1: 13 grey levels
DRAWS = 3


def stability(
    method: Method,
    model: nn.Module,
    images: Tensor,
    categories: Sequence[int],
    std: Sequence[float],
    *,
    sigma: float = SIGMA,
    draws: int = DRAWS,
    masks: np.ndarray | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
) -> np.ndarray:
    """(B,): rank correlation of the maps with and without noise, the mean over several draws.

    Args:
        images: (B, 3, H, W), normalised.
        categories: B of them, explained with noise and without.
        std: what each channel was divided by; `sigma` refers to images from 0 to 1.
        masks: (B, h, w), the maps without noise, if they are known already.
        seed: of the noise, which is the same for all images.

    Raises:
        UnsupportedModel: if the method can't explain the model.
    """
    check_categories(model, images, categories)
    if masks is None:
        masks = scores_of(method, model, images, categories, batch_size)
    generator = torch.Generator().manual_seed(seed)
    scale = sigma / torch.tensor(std)[:, None, None]
    noisy = []
    for _ in range(draws):
        noise = (torch.randn(images.shape[1:], generator=generator) * scale).to(images)
        noisy.append(scores_of(method, model, images + noise, categories, batch_size))
    return np.mean([rank_correlation(masks, other) for other in noisy], axis=0)
