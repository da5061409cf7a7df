"""One number for one map of one picture, by which the most faithful of several is chosen."""

import numpy as np
from torch import Tensor, nn

from vit_faithfulness.removal import BASELINES, area, deletion, insertion

STEPS = 10


def faithfulness(model: nn.Module, picture: Tensor, mask: np.ndarray, category: int) -> float:
    """Area under insertion minus area under deletion, -1 to 1; higher is better.

    Both curves together, so that a map can't win by ranking either end alone, and both baselines
    in equal parts, since each favours other maps. Ten steps, as it is calculated for every map.

    Args:
        model: a classifier in evaluation mode.
        picture: (3, H, W), normalised as the model wants it.
        mask: (h, w).
    """
    differences = []
    for baseline in BASELINES:
        given = (model, picture[None], mask[None], [category], baseline, STEPS)
        differences.append(area(insertion(*given))[0] - area(deletion(*given))[0])
    return float(np.mean(differences))
