"""Colours change as far as asked, in training only."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitexplain.errors import RequestError
from vitexplain.training.augmentation import STAINS, StainJitter, training_transform

CONFIG = {
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "mean": (0, 0, 0),
    "std": (1, 1, 1),
}
PURPLE = Image.new("RGB", (32, 32), (180, 120, 200))


def colours(count=40, **options):
    """Mean colour of each of some augmented images, (count, 3), 0 to 1."""
    torch.manual_seed(0)
    transform = training_transform(CONFIG, smallest_crop=1.0, **{"color_jitter": 0.0} | options)
    return np.array([transform(PURPLE).mean(dim=(1, 2)).numpy() for _ in range(count)])


def test_without_changes_colours_stay():
    np.testing.assert_allclose(colours(), np.full((40, 3), (180, 120, 200)) / 255, atol=0.01)


def test_jitter_spreads_brightness_as_far_as_asked():
    found = colours(200, color_jitter=0.5).mean(axis=1)
    assert found.std() > 0.08
    assert found.std() > 3 * colours(200, color_jitter=0.1).mean(axis=1).std()


def test_hues_turn_and_brightness_stays():
    found = colours(100, hue=0.5)
    np.testing.assert_allclose(found.max(axis=1), 200 / 255, atol=0.02)
    assert len(set(found.argmax(axis=1))) == 3  # each of red, green, blue is brightest at times


def test_grey_is_as_frequent_as_asked():
    found = colours(200, grey=0.3)
    assert 0.2 < (np.ptp(found, axis=1) < 0.01).mean() < 0.4


def test_a_stain_becomes_stronger_by_its_own_colour():
    """Amounts are found again: those of the image, scaled and shifted within bounds."""
    amounts = np.array([0.5, 0.3, 0.1])
    pixel = 255 * np.exp(-amounts @ STAINS)
    image = Image.fromarray(np.full((4, 4, 3), np.round(pixel), np.uint8))
    torch.manual_seed(0)
    jitter = StainJitter(0.4)
    found = np.array([np.asarray(jitter(image))[0, 0] for _ in range(300)])
    back = -np.log(np.maximum(found, 1) / 255) @ np.linalg.inv(STAINS)
    most = 1.4 * amounts + 0.1
    least = 0.6 * amounts - 0.1
    assert (back < most + 0.02).all()
    assert (back > least - 0.02).all()
    assert (np.ptp(back, axis=0) > 0.8 * (most - least)).all()
    same = np.asarray(StainJitter(0.0)(PURPLE))
    np.testing.assert_allclose(same, np.asarray(PURPLE), atol=1)


@pytest.mark.parametrize(
    ("option", "value"),
    [("color_jitter", -0.1), ("hue", 0.6), ("grey", 1.5), ("stain", -1), ("color_jitter", 2)],
)
def test_what_is_out_of_range(option, value):
    with pytest.raises(RequestError, match=f"--{option} must be from 0 to"):
        training_transform(CONFIG, smallest_crop=1.0, **{option: value})
