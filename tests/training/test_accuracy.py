import numpy as np
import pytest

from vitexplain.training.accuracy import Share, calibration_error, confusion, top_k

PROBABILITIES = np.array(
    [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25]], dtype=float
)
LABELS = np.array([0, 2, 2, 1])


def test_top_k():
    assert top_k(PROBABILITIES, LABELS, 1).hits == 2
    assert top_k(PROBABILITIES, LABELS, 2).hits == 4


def test_wilson_interval_as_published():
    """Newcombe 1998, table I: 81 of 263, and 0 of 20 (95 %)."""
    assert Share(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=2e-4)
    assert Share(0, 20).interval == pytest.approx((0.0, 0.1611), abs=2e-4)


def test_calibration_error_by_hand():
    # confidences .6 right, .5 wrong, .7 right, .4 wrong, each alone in its bin
    expected = (0.4 + 0.5 + 0.3 + 0.4) / 4
    assert calibration_error(PROBABILITIES, LABELS) == pytest.approx(expected)
    # one bin for all: mean confidence .55, half of them right
    assert calibration_error(PROBABILITIES, LABELS, bins=1) == pytest.approx(0.05)


def test_calibrated_predictions_have_no_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20000)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = (rng.random(20000) > confidence).astype(int)
    assert calibration_error(probabilities, labels) < 0.02


def test_confusion():
    categories, counts = confusion(np.array([4, 4, 9]), np.array([4, 7, 9]))
    assert categories.tolist() == [4, 7, 9]
    assert counts.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
