"""What is said of maps that hit the boxes, that miss them, and of too few images."""

import numpy as np
from PIL import Image

from vitexplain.images.region import Region
from vitexplain.training.pointing import _with_box, in_words


def columns(method, centre):
    """Hits of a method and of the middle, of 100 images, independent of each other."""
    rng = np.random.default_rng(0)
    return {
        "rollout": {"pointing": rng.permutation(np.arange(100) < 100 * method).astype(float)},
        "centre_blob": {"pointing": rng.permutation(np.arange(100) < 100 * centre).astype(float)},
    }


def test_maps_that_miss_say_what_that_may_mean():
    (said,) = in_words(columns(0.1, 0.4))
    assert said.startswith(
        "rollout: the brightest patch lies in the box in 10% of 100 images, "
        "a spot in the middle in 40% (difference -30%, "
    )
    assert said.endswith("less often, so the model may look at something else")


def test_maps_that_hit():
    (said,) = in_words(columns(0.8, 0.4))
    assert said.endswith("more than the middle alone would give")


def test_what_can_not_be_told():
    (said,) = in_words(columns(0.4, 0.41))
    assert said.endswith("no more often, so the model may look at something else")
    few = {name: {"pointing": each["pointing"][:5]} for name, each in columns(0, 1).items()}
    assert in_words(few)[0].endswith("of so few images that says little")


def test_the_box_is_drawn_where_it_is():
    mask = np.zeros((4, 4), np.float32)
    mask[0, 0] = 1
    image, box = Image.new("RGB", (640, 320), (90, 90, 90)), Region(320, 160, 600, 300)
    drawn = np.asarray(_with_box(image, mask, Region(0, 0, 640, 320), box))
    assert drawn.shape == (160, 320, 3)
    white = np.argwhere((drawn == 255).all(axis=2))
    np.testing.assert_allclose(white.min(axis=0), (80, 160), atol=1)
    np.testing.assert_allclose(white.max(axis=0), (150, 300), atol=1)
