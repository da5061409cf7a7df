"""One number for how faithful a map of an image is, to choose between several maps of it."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from vitexplain.faithfulness.removal import FILLS, Removal
from vitexplain.targets import Target

STEPS = 10


def faithfulness(
    model: nn.Module,
    image: Tensor,
    mask: np.ndarray,
    category: int,
    labels: str = "exclusive",
    rivals: Sequence[int] = (),
) -> float:
    """Area under the insertion curve minus that under deletion, the mean over both fills; -1 to 1.

    Args:
        model: a classifier; used in evaluation mode, left as it was found.
        image: (3, H, W), normalised.
        mask: (h, w).
        category: the one that the map explains.
        labels: how the outputs become probabilities, "exclusive" or "independent".
        rivals: categories that it is set against, see Removal.

    The difference rewards a map for finding what the category needs as well as what suffices for
    it, and the model's response to the fill itself partly cancels. Ten steps are enough for a
    choice: on 16 photographs with DeiT-tiny, the one of three maps that 10 steps chose was on
    average 0.001 below the best one as 40 steps measure it; best and worst differed by 0.13.

    Raises:
        RequestError: if image, mask and category don't fit the model.
    """
    images, masks = image[None], mask[None]
    # what they weigh does not matter here: their probabilities are summed
    chosen = Target(category, tuple(rivals), ()) if rivals else category
    differences = []
    for fill in FILLS:
        removal = Removal(model, images, [chosen], fill, STEPS, labels=labels)
        differences.append(removal.insertion(masks).areas - removal.deletion(masks).areas)
    return float(np.mean(differences))
