"""Does a map stay what it is under noise that nobody sees?

As the input stability of Alvarez-Melis & Jaakkola 2018, "On the Robustness of Interpretability
Methods", but by the rank correlation of the two maps, which needs no common scale. High is good,
for a map that is faithful: a spot in the middle is as stable as can be.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.faithfulness.passes import BATCH, check_categories, masks_of
from vitexplain.faithfulness.ranks import rank_correlation
from vitexplain.methods.registry import Method

SIGMA = 0.05  # of the noise, for images from 0 to 1: 13 grey levels
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
    """(B,): rank correlation of the map and that of the image with noise, mean over the draws.

    Args:
        images: (B, 3, H, W), normalised.
        categories: B of them, explained with noise and without.
        std: what each channel was divided by; noise of `sigma` is for images from 0 to 1.
        masks: (B, h, w), the maps without noise, if they are at hand.
        seed: of the noise, which is the same for all images.

    Raises:
        UnsupportedModel: if the method can't explain the model.
    """
    check_categories(model, images, categories)
    if masks is None:
        masks = masks_of(method, model, images, categories, batch_size)
    generator = torch.Generator().manual_seed(seed)
    scale = sigma / torch.tensor(std)[:, None, None]
    found = []
    for _ in range(draws):
        noise = (torch.randn(images.shape[1:], generator=generator) * scale).to(images)
        found.append(masks_of(method, model, images + noise, categories, batch_size))
    return np.mean([rank_correlation(masks, other) for other in found], axis=0)
