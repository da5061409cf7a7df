"""One number for how faithful a map of an image is, to choose between several maps of it.

The area under the insertion curve minus that under deletion, the mean over both fills. The
difference rewards a map for finding what the category needs as well as what suffices for it, and
the model's response to the fill itself partly cancels. Ten steps are enough for a choice: on 16
photographs with DeiT-tiny, the one of three maps that 10 steps chose was on average 0.001 below the
best one as 40 steps measure it; best and worst differed by 0.13.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from vitexplain.faithfulness.passes import check_categories
from vitexplain.faithfulness.removal import Ranking, ask_for, curves, rankings_of
from vitexplain.faithfulness.states import FILLS, Answers
from vitexplain.progress import Watch, silent
from vitexplain.targets import Chosen, among

STEPS = 10


def faithfulness(
    model: nn.Module,
    image: Tensor,
    mask: np.ndarray,
    category: int,
    labels: str = "exclusive",
    rivals: Sequence[int] = (),
) -> float:
    """Of one map, from -1 to 1.

    Args:
        model: a classifier; used in evaluation mode, left as it was found.
        image: (3, H, W), normalised.
        mask: (h, w).
        category: the one that the map explains.
        labels: how the outputs become probabilities, "exclusive" or "independent".
        rivals: categories that it is set against, see Removal.

    Raises:
        RequestError: if image, mask and category don't fit the model.
    """
    return faithfulness_of(model, image, [(mask, among(category, rivals))], labels)[0]


def faithfulness_of(
    model: nn.Module,
    image: Tensor,
    maps: Sequence[tuple[np.ndarray, Chosen]],
    labels: str = "exclusive",
    *,
    batch_size: int | None = None,
    watch: Watch = silent,
) -> list[float]:
    """Of several maps of one image, measured together: what they share passes once.

    Args:
        maps: (h, w) of each, and the category, or contrast, that it is measured by.
        batch_size: images per forward pass; by default as many as suit the device.
        watch: shows how far the work has come, see vitexplain.progress.

    Others as for `faithfulness`.
    """
    for _, target in maps:
        check_categories(model, image[None], [target])
    rankings = [rankings_of(mask[None], [target])[0] for mask, target in maps]
    answers = Answers(model, image[None], labels, batch_size)
    ask_for(answers, rankings, STEPS, watch=watch)
    return [_difference(answers, ranking) for ranking in rankings]


def _difference(answers: Answers, ranking: Ranking) -> float:
    areas = [
        [curves(answers, [ranking], fill, STEPS, insert=insert).areas for insert in (True, False)]
        for fill in FILLS
    ]
    return float(np.mean([insertion - deletion for insertion, deletion in areas]))
