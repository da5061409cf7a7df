"""Which categories may be explained, and which inputs."""

import pytest

from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (0, "1 to 7 categories"),
        (8, "1 to 7 categories"),
        ([[1, 2]], "3 images"),
        ([[1], [1, 2], [1]], "equally many"),
        ([[], [], []], "equally many"),
        ([[1], [7], [1]], "0 to 6, not 7"),
    ],
)
def test_wrong_categories(categories, message, images):
    with pytest.raises(ValueError, match=message):
        VITAttentionGradRollout(make_vit()).explain_several(images, categories)
