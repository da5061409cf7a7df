"""Why this category and not that one: contrasts, by every method that has categories."""

import numpy as np
import pytest
import torch

from helpers import make_vit
from vitexplain.errors import RequestError
from vitexplain.faithfulness.passes import contrasts_of
from vitexplain.faithfulness.removal import Removal
from vitexplain.methods.registry import METHODS
from vitexplain.targets import RIVALS, Target, nearest_rivals, set_against

OF_CATEGORY = [name for name, method in METHODS.items() if method.of_category]
LINEAR = ("gradcam", "attnlrp", "integrated_gradients", "occlusion")


@pytest.fixture(scope="module")
def model():
    return make_vit()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def with_contrast_as_output(weights):
    """The contrast made by the head itself: its category 0 is the contrast, 1 the reverse."""
    model = make_vit()
    head = torch.nn.Linear(24, 2)
    rows = torch.tensor(weights)
    with torch.no_grad():
        head.weight.copy_(torch.stack([rows @ model.head.weight, -rows @ model.head.weight]))
        head.bias.copy_(torch.stack([rows @ model.head.bias, -rows @ model.head.bias]))
    model.head, model.num_classes = head, 2
    return model.eval()


@pytest.mark.parametrize("name", OF_CATEGORY)
def test_a_contrast_is_the_output_of_a_head_that_subtracts(name, model, images, few_steps):
    """An independent way to the same map: no target, but a model with the contrast as a logit."""
    found = METHODS[name].make(model).explain(images, [2, 2], against=[5])
    twin = with_contrast_as_output([0.0, 0, 1, 0, 0, -1, 0])
    there, back = (METHODS[name].make(twin).explain(images, [n, n]).scores for n in (0, 1))
    expected = there if name in LINEAR else there - back
    size = np.abs(expected).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.scores / size, expected / size, atol=2e-4)
    np.testing.assert_allclose(found.masks, expected / size, atol=2e-4)
    assert found.categories == [2, 2]
    assert found.targets == [Target(2, (5,), (1.0,))] * 2


@pytest.mark.parametrize("name", OF_CATEGORY)
def test_a_against_b_is_b_against_a_turned_round(name, model, images, few_steps):
    method = METHODS[name].make(model)
    found, reverse = (method.explain(images, [a, a], [b]) for a, b in ((1, 4), (4, 1)))
    np.testing.assert_allclose(found.masks, -reverse.masks, atol=1e-5)
    assert np.abs(found.masks).max(axis=(1, 2)) == pytest.approx([1, 1])


@pytest.mark.parametrize("name", LINEAR)
def test_linear_methods_subtract_maps(name, model, images, few_steps):
    method = METHODS[name].make(model)
    of_a, of_b, of_c = (method.explain(images, [n, n]).scores for n in (0, 3, 6))
    found = method.explain(images, [0, 0], [3, 6]).scores
    np.testing.assert_allclose(found, of_a - (of_b + of_c) / 2, atol=1e-5 * np.abs(of_a).max())


def test_rivals_are_the_nearest_by_their_probabilities(model, images):
    found = METHODS["gradcam"].make(model).explain(images, [4, 0], "auto")
    for place, index in enumerate((4, 0)):
        target, logits = found.targets[place], found.logits[place]
        others = sorted(set(range(7)) - {index}, key=lambda n: abs(logits[n] - logits[index]))
        assert (target.index, list(target.rivals)) == (index, others[:RIVALS])
        shares = logits.softmax(0)[others[:RIVALS]]
        assert target.weights == pytest.approx((shares / shares.sum()).tolist(), abs=1e-6)


def test_each_of_the_most_likely_against_the_rest(model, images):
    found = METHODS["grad_rollout"].make(model).explain_several(images, 3, "auto")
    for place in range(2):
        chosen = [each.categories[place] for each in found]
        for each in found:
            target = each.targets[place]
            assert sorted((target.index, *target.rivals)) == sorted(chosen)
            assert sum(target.weights) == pytest.approx(1)


def test_where_the_most_likely_is_among_the_others(model, images):
    """In a folder of images nobody knows which it will be."""
    top = METHODS["gradcam"].make(model).explain(images).categories
    others = [top[0], (top[0] + 1) % 7]
    found = METHODS["gradcam"].make(model).explain(images[:1], None, others)
    assert found.targets[0].rivals == (others[1],)
    found = METHODS["gradcam"].make(model).explain(images[:1], None, others[:1])
    assert found.targets[0] == nearest_rivals(top[0], found.logits[0])


@pytest.mark.parametrize(
    ("category", "others", "reason"),
    [
        ([1, 1], [1], "category 1 can't be set against itself"),
        ([1, 1], [7], "categories must be from 0 to 6, not 7"),
        ([1, 1], [], "at least one other"),
    ],
)
def test_wrong_requests(category, others, reason, model, images):
    with pytest.raises(RequestError, match=reason):
        METHODS["gradcam"].make(model).explain(images, category, others)


@pytest.mark.parametrize("name", OF_CATEGORY)
def test_each_image_may_have_a_contrast_of_its_own(name, model, images, few_steps):
    method = METHODS[name].make(model)
    targets = [set_against(2, [5], 7), set_against(3, [0, 1], 7)]
    found = method.explain(images, targets)
    assert found.categories == [2, 3]
    for place, against in enumerate(([5], [0, 1])):
        alone = method.explain(images[place : place + 1], [found.categories[place]], against)
        np.testing.assert_allclose(found.masks[place], alone.masks[0], atol=1e-5)


def test_contrasts_that_are_measured_are_those_that_are_explained(model, images):
    explained = METHODS["gradcam"].make(model).explain(images, against="auto").targets
    measured = contrasts_of(model, images, None, "auto", batch_size=1)
    for one, other in zip(measured, explained, strict=True):
        assert (one.index, one.rivals, one.sign) == (other.index, other.rivals, other.sign)
        # a batch of one rounds otherwise than one of several
        assert one.weights == pytest.approx(other.weights, abs=1e-6)
    named = contrasts_of(model, images, [1, 2], [4])
    assert named == [set_against(1, [4], 7), set_against(2, [4], 7)]


def test_a_single_output_has_two_sides(images):
    one = make_vit(num_classes=1)
    method = METHODS["gradcam"].make(one)
    found = method.explain(images, [1, 1], [0])
    np.testing.assert_allclose(found.scores, 2 * method.explain(images, [1, 1]).scores, rtol=1e-4)


def test_the_value_of_a_contrast():
    outputs = torch.tensor([1.0, 2.0, 4.0])
    target = set_against(2, [0, 1, 0], 3)
    assert target.of(outputs) == pytest.approx(4 - 1.5)
    assert target.reversed().of(outputs) == pytest.approx(1.5 - 4)
    with pytest.raises(RequestError, match="no second category"):
        nearest_rivals(0, outputs[:1])


@pytest.mark.parametrize("labels", ["exclusive", "independent"])
def test_faithfulness_is_measured_on_the_share_of_the_rivals(model, images, labels):
    """By hand: p_a / (p_a + p_b + p_c) after each step, instead of p_a."""
    masks = np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
    targets = [set_against(2, [5], 7), set_against(3, [0, 1], 7)]
    removal = Removal(model, images, targets, "mean", 4, labels=labels)
    curve = removal.deletion(masks)
    for place, among in enumerate(([2, 5], [3, 0, 1])):
        order = np.argsort(-masks[place].ravel(), kind="stable")
        for step, gone in enumerate((0, 4, 8, 12, 16)):
            image = images[place].clone()
            for patch in order[:gone]:
                row, column = divmod(int(patch), 4)
                image[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 0
            with torch.no_grad():
                logits = model(image[None])[0]
            shares = logits.softmax(0) if labels == "exclusive" else logits.sigmoid()
            expected = shares[among[0]] / shares[among].sum()
            assert curve.probabilities[place, step] == pytest.approx(float(expected), abs=1e-5)
            assert curve.first[place, step] == (logits[among].argmax() == 0)
