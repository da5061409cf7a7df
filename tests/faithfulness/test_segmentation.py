"""Maps against masks of objects: what is counted, by hand and by other libraries."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitexplain.errors import RequestError
from vitexplain.faithfulness.segmentation import (
    BOTH_CLASSES,
    COUNTS,
    SEGMENTED,
    average_precision,
    enlarged,
    segmented,
    totals,
)


def test_one_image_by_hand():
    """The mean is 0.5: above it are 4 of 9 pixels, one of them unknown and not counted."""
    mask = np.array([[0.9, 0.8, 0.1], [0.7, 0.3, 0.2], [0.0, 0.5, 1.0]])
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 255]], dtype=np.uint8)
    found = segmented(mask, truth)
    assert [found[key] for key in COUNTS] == [2, 1, 1, 4]
    assert found["pixel_accuracy"] == pytest.approx(6 / 8)
    assert found["foreground_iou"] == pytest.approx(2 / 4)
    assert found["iou"] == pytest.approx((2 / 4 + 4 / 6) / 2)
    # from high to low: object, background, object, background, object; a third of recall each
    assert found["ap"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)


def test_the_mean_is_of_the_whole_map_also_where_nothing_is_known():
    truth = np.array([[1, 0], [0, 255]], dtype=np.uint8)
    mask = np.array([[0.5, 0.0], [0.4, 0.0]])
    low, high = (segmented(np.where(truth == 255, value, mask), truth) for value in (0.0, 0.9))
    assert [low[key] for key in COUNTS] == [1, 1, 0, 1]  # mean 0.225
    assert [high[key] for key in COUNTS] == [1, 0, 0, 2]  # mean 0.45


def test_enlarged_as_opencv_enlarges():
    """Which samples at the centres of pixels, too, as bilinear without aligned corners."""
    mask = np.random.default_rng(0).random((3, 5))
    expected = cv2.resize(mask, (45, 21), interpolation=cv2.INTER_LINEAR) - mask.min()
    np.testing.assert_allclose(enlarged(mask, 21, 45), expected, atol=1e-5)


def by_definition(scores, is_object):
    """Threshold by threshold, without sorting or cumulative sums."""
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        recall = (taken & is_object).sum() / is_object.sum()
        area += (recall - before) * (taken & is_object).sum() / taken.sum()
        before = recall
    return area


CASES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40).filter(
    lambda pairs: any(is_object for _, is_object in pairs)
)


@settings(deadline=None)
@given(CASES)
def test_average_precision_by_its_definition(pairs):
    scores, is_object = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    assert average_precision(scores, is_object) == pytest.approx(by_definition(scores, is_object))


@settings(deadline=None)
@given(CASES)
def test_average_precision_as_sklearn_has_it(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, is_object = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    expected = metrics.average_precision_score(is_object, scores)
    assert average_precision(scores, is_object) == pytest.approx(expected)


def images(count=3):
    """Maps (4, 4), and masks (8, 8) of objects of different sizes."""
    rng = np.random.default_rng(1)
    for size in range(2, 2 + count):
        truth = np.zeros((8, 8), dtype=np.uint8)
        truth[1 : 1 + size, 2 : 2 + size] = 1
        truth[0] = 255
        yield rng.random((4, 4)), truth


def test_totals_are_of_all_pixels_together():
    each = [segmented(mask, truth) for mask, truth in images()]
    found = totals({key: np.array([values[key] for values in each]) for key in each[0]})
    taken, real = [], []
    for mask, truth in images():
        large = cv2.resize(mask, (8, 8), interpolation=cv2.INTER_LINEAR)
        taken.append((large > large.mean())[truth < 255])
        real.append((truth == 1)[truth < 255])
    taken, real = np.concatenate(taken), np.concatenate(real)
    ious = [(a & b).sum() / (a | b).sum() for a, b in ((taken, real), (~taken, ~real))]
    assert found["pixel_accuracy"] == pytest.approx((taken == real).mean())
    assert found["foreground_iou"] == pytest.approx(ious[0])
    assert found["iou"] == pytest.approx(np.mean(ious))
    assert found["iou"] != pytest.approx(np.mean([values["iou"] for values in each]))
    assert list(found) == [measure.key for measure in SEGMENTED]


def test_the_published_precision_is_of_both_classes():
    each = [segmented(mask, truth) for mask, truth in images()]
    for found, (mask, truth) in zip(each, images(), strict=True):
        large = cv2.resize(mask, (8, 8), interpolation=cv2.INTER_LINEAR)
        scaled = ((large - large.min()) / (large.max() - large.min()))[truth < 255]
        real = truth[truth < 255] == 1
        scores, classes = np.append(1 - scaled, scaled).round(9), np.append(~real, real)
        assert found[BOTH_CLASSES] == pytest.approx(by_definition(scores, classes), abs=1e-6)
    mean = np.mean([found[BOTH_CLASSES] for found in each])
    values = {key: np.array([found[key] for found in each]) for key in each[0]}
    assert totals(values)["ap"] == pytest.approx(mean)


def test_a_map_of_the_object_itself_is_perfect():
    truth = np.zeros((6, 6), dtype=np.uint8)
    truth[2:4, 1:5] = 1
    found = segmented(truth.astype(np.float32), truth)
    assert [found[measure.key] for measure in SEGMENTED] == [1, 1, 1, 1]


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0])
def test_an_even_map_says_nothing(value):
    truth = np.zeros((224, 224), dtype=np.uint8)
    truth[:56] = 1
    found = segmented(np.full((14, 14), value, dtype=np.float32), truth)
    assert [found[key] for key in COUNTS] == [0, 0, truth.sum(), (1 - truth).sum()]
    assert (found["pixel_accuracy"], found["foreground_iou"]) == (0.75, 0)
    assert found["ap"] == pytest.approx(0.25)


def test_an_object_that_fills_all_that_is_counted():
    truth = np.full((2, 2), 255, dtype=np.uint8)
    truth[0] = 1
    found = segmented(np.array([[1.0, 0.9], [0.0, 0.0]]), truth)
    assert (found["iou"], found["ap"], found["pixel_accuracy"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "no object, which is 1 in it"), (255, "no object"), (7, "not 7")],
)
def test_masks_that_say_nothing(value, message):
    with pytest.raises(RequestError, match=message):
        segmented(np.eye(2), np.full((4, 4), value, dtype=np.uint8))
