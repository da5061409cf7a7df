"""Several maps of an image measured together: the same values, and nothing asked twice."""

import numpy as np
import pytest
import torch

from helpers import make_vit
from vitexplain.faithfulness.measures import REMOVED, evaluate_images, removed
from vitexplain.faithfulness.removal import Removal, perturbation
from vitexplain.faithfulness.score import faithfulness, faithfulness_of
from vitexplain.faithfulness.states import FILLS, HIDDEN_BY, Answers, state_of
from vitexplain.methods.registry import METHODS
from vitexplain.targets import Target

INNER = 2 * 2 * 9  # states of a curve between its ends: fills, directions, steps


def watched(**changes):
    """A model, and the images that pass through it."""
    model, seen = make_vit(**changes), []
    model.patch_embed.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    return model, seen


@pytest.fixture
def passed():
    return watched()


def count(seen):
    return sum(map(len, seen))


def masks_of(number, grid=(4, 4), seed=0):
    return list(np.random.default_rng(seed).random((number, *grid), dtype=np.float32))


def test_whole_and_empty_images_pass_once_for_all_maps():
    model, seen = watched(img_size=64)
    image, masks = torch.randn(3, 64, 64), masks_of(5, (8, 8))
    faithfulness(model, image, masks[0], 2)
    assert count(seen) == INNER + 3  # the whole image, and an empty one of each fill
    seen.clear()
    faithfulness_of(model, image, [(mask, 2) for mask in masks])
    assert count(seen) == 5 * INNER + 3
    different = torch.cat(seen).flatten(1).unique(dim=0)
    assert len(different) == count(seen)


def test_identical_maps_pass_once_whatever_they_are_measured_by(passed, images):
    model, seen = passed
    (mask,) = masks_of(1)
    targets = [2, 5, Target(2, (5,), ())]
    values = faithfulness_of(model, images[0], [(mask, t) for t in targets])
    assert count(seen) == INNER + 3
    assert len(set(values)) == 3
    seen.clear()
    scaled = faithfulness_of(model, images[0], [(mask, 2), (3 * mask, 2), (mask**2, 2)])
    assert count(seen) == INNER + 3  # they rank alike
    assert scaled == [values[0]] * 3


def test_a_map_and_its_reverse_have_the_same_states():
    """What one shows first, the other hides last."""
    model, seen = watched(img_size=(32, 40))
    (mask,) = masks_of(1, (4, 5))  # 20 patches: 10 equal steps
    image = torch.randn(3, 32, 40, generator=torch.Generator().manual_seed(3))
    there, back = faithfulness_of(model, image, [(mask, 1), (1 - mask, 1)])
    assert count(seen) == INNER + 3
    assert there == pytest.approx(-back, abs=1e-7)


def test_measured_together_as_alone(images):
    """Also maps of different grids, and categories with rivals among others without."""
    model = make_vit()
    maps = [(mask, 2) for mask in masks_of(2)]
    maps += [(masks_of(1, (2, 3), seed=4)[0], 6), (maps[0][0], Target(0, (3, 4), ()))]
    together = faithfulness_of(model, images[1], maps, batch_size=7)
    for (mask, target), found in zip(maps, together, strict=True):
        contrast = isinstance(target, Target)
        rivals = target.rivals if contrast else ()
        alone = faithfulness(
            model, images[1], mask, target.index if contrast else target, rivals=rivals
        )
        assert found == pytest.approx(alone, abs=1e-6)
    assert len(set(together)) == 4


def test_share_among_rivals_written_out(images):
    model = make_vit()
    answers = Answers(model, images, "exclusive")
    whole = state_of(1, "blur", (4, 4), np.ones(16, dtype=bool))
    target = Target(5, (0, 3), ())
    answers.ask([(whole, target), (whole, 5)])
    with torch.no_grad():
        logits = model(images)[1]
    shares = logits.softmax(0)
    found = answers[whole, target]
    assert found.probability == pytest.approx(float(shares[5] / shares[[5, 0, 3]].sum()), abs=1e-6)
    assert found.first == bool(logits[5] > logits[[0, 3]].max())
    assert answers[whole, 5].probability == pytest.approx(float(shares[5]), abs=1e-6)
    assert answers[whole, 5].first == (int(logits.argmax()) == 5)


def test_nothing_hidden_is_the_same_state_for_every_fill_and_grid():
    everything = {state_of(0, fill, (1, n), np.ones(n, bool)) for fill in FILLS for n in (4, 9)}
    nothing = {state_of(0, fill, (1, n), np.zeros(n, bool)) for fill in FILLS for n in (4, 9)}
    assert (len(everything), len(nothing)) == (1, 2)
    assert state_of(0, "mean", (1, 2), np.array([1, 0], bool)) != state_of(
        1, "mean", (1, 2), np.array([1, 0], bool)
    )


def test_curves_of_one_removal_share_their_ends(passed, images):
    model, seen = passed
    removal = Removal(model, images, [2, 0, 5], "blur", 8)
    removal.deletion(np.stack(masks_of(3)))
    removal.insertion(np.stack(masks_of(3)))
    assert count(seen) == 3 * (2 * 7 + 2)


def test_evaluation_asks_the_same_states_of_several_methods_once(passed, images, monkeypatch):
    """Methods that give the same map take the passes of one."""
    model, seen = passed
    seen_by = {}
    for names in (("relevance",), ("relevance", "same")):
        methods = dict.fromkeys(names, METHODS["relevance"])
        monkeypatch.setattr("vitexplain.faithfulness.measures._by_change", nothing)
        monkeypatch.setattr("vitexplain.faithfulness.measures.cost", no_time)
        seen.clear()
        found = evaluate_images(model, images, (1, 1, 1), methods, [2, 0, 5])
        seen_by[len(names)] = count(seen)
    assert seen_by[2] == seen_by[1] + len(images)  # the second one's maps
    for key, value in found.values["relevance"].items():
        np.testing.assert_array_equal(value, found.values["same"][key])


def test_removed_are_the_areas_of_each_map_alone(passed, images):
    """Of the fills that are asked for; the perturbation test comes with the mean colour."""
    model, seen = passed
    targets = [2, Target(0, (3,), ()), 5]
    first, second = np.stack(masks_of(3)), np.stack(masks_of(3, seed=1)).round(1)
    maps = {"first": first, "again": 2 * first, "second": second}
    answers = Answers(model, images, "exclusive", 7)
    found = removed(answers, maps, targets, 10, ["blur"], seed=4)
    assert count(seen) == 3 * (2 * 2 * 9 + 2)  # two different maps, both directions, the ends
    assert [set(values) for values in found.values()] == [{"deletion_blur", "insertion_blur"}] * 3
    found = removed(answers, maps, targets, 10, HIDDEN_BY, seed=4)
    assert set(found["second"]) == {measure.key for measure in REMOVED}
    for name, masks in maps.items():
        for fill in HIDDEN_BY:
            alone = Removal(model, images, targets, fill, 10, seed=4)
            deletion, insertion = alone.deletion(masks), alone.insertion(masks)
            np.testing.assert_allclose(found[name][f"deletion_{fill}"], deletion.areas, atol=1e-6)
            np.testing.assert_allclose(found[name][f"insertion_{fill}"], insertion.areas, atol=1e-6)
            if fill == "mean":
                expected = perturbation(deletion, insertion)
                assert np.array_equal([found[name][k] for k in ("positive", "negative")], expected)


def nothing(methods, *_):
    return {name: {} for name in methods}


def no_time(methods, *_):
    return dict.fromkeys(methods, 0.0)


def test_ranks_of_an_evaluation_are_those_of_signed_scores(images, monkeypatch):
    """Grad-CAM is 0 where it is negative: its mask would order these patches by lot."""
    model = make_vit()
    monkeypatch.setattr("vitexplain.faithfulness.measures._by_change", nothing)
    monkeypatch.setattr("vitexplain.faithfulness.measures.cost", no_time)
    categories = [2, 0, 5]
    explained = METHODS["gradcam"].make(model).explain(images, categories)
    assert (explained.masks == 0).mean() > 0.1
    found = evaluate_images(model, images, (1, 1, 1), {"gradcam": METHODS["gradcam"]}, categories)
    deletion = found.values["gradcam"]["deletion_mean"]
    signed, clamped = (
        Removal(model, images, categories, "mean", 10).deletion(maps).areas
        for maps in (explained.scores, explained.masks)
    )
    np.testing.assert_allclose(deletion, signed, atol=1e-6)
    assert np.abs(signed - clamped).max() > 1e-3
