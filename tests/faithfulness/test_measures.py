"""Floors, randomisation, stability, the table, and all of it on images without labels."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from helpers import LAYOUTS, make_vit
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.drawing.charts import draw_randomisation
from vitexplain.faithfulness import measures as evaluate
from vitexplain.faithfulness.baselines import BASELINES, centre_blob
from vitexplain.faithfulness.intervals import interval_of, student
from vitexplain.faithfulness.measures import MEASURES, evaluate_images
from vitexplain.faithfulness.passes import masks_of, scores_of
from vitexplain.faithfulness.ranks import average_ranks, rank_correlation
from vitexplain.faithfulness.removal import Removal, perturbation
from vitexplain.faithfulness.sanity import by_shuffles, randomisation, shuffle_, stages_of
from vitexplain.faithfulness.stability import stability
from vitexplain.faithfulness.table import Measure, as_json, as_markdown, behind, winners
from vitexplain.methods.registry import METHODS, Method

READY = {name: METHODS[name] for name in ("attention_rollout", "grad_rollout", "relevance")}
CATEGORIES = [2, 0, 5]
STD = (0.2, 0.25, 0.5)


@dataclass
class Seen:
    """A method that remembers what it was asked, and whose map is the first channel's."""

    model: torch.nn.Module

    calls = []  # noqa: RUF012

    def explain(self, images, categories=None):
        self.calls.append((images.clone(), categories))
        return BASELINES["centre_blob"].make(self.model).explain(images)


class Refuses:
    def __init__(self, model):
        raise UnsupportedModel(model, "it is a test")


class Fails(Seen):
    def explain(self, images, categories=None):
        if self.calls:
            raise RuntimeError("on purpose")
        return super().explain(images, categories)


def method(name):
    Seen.calls.clear()
    return Method(name.lower(), name, "", True, (__name__, name))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(state, other):
    return all(torch.equal(state[name], other[name]) for name in state)


def test_centre_blob():
    blob = centre_blob(5, 7)
    assert np.unravel_index(blob.argmax(), blob.shape) == (2, 3)
    assert np.allclose(blob, blob[::-1, ::-1])


@pytest.mark.parametrize("name", BASELINES)
def test_floors_explain_as_methods_do(name, images):
    model = make_vit(proj_drop_rate=0.5)
    expected = model(images)
    model.train()
    explained = BASELINES[name].make(model).explain(images)
    assert model.training
    torch.testing.assert_close(explained.logits, expected.detach())
    assert explained.masks.shape == (3, *explained.layout.grid) == (3, 4, 4)
    assert explained.masks.max(axis=(1, 2)) == pytest.approx(1)
    assert explained.masks.min() >= 0


def test_random_map_is_the_images_own(images):
    explain = BASELINES["random"].make(make_vit()).explain
    masks = explain(images).masks
    assert np.array_equal(explain(images[1:2]).masks[0], masks[1])
    assert np.abs(rank_correlation(masks, masks[[1, 2, 0]])).max() < 0.9
    other = explain(images + 1e-6).masks
    assert not np.array_equal(other, masks)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (3, 4), elements=st.sampled_from([0, 0.25, 0.5, 1])),
    arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)),
)
def test_rank_correlation_equals_scipys(mask, other):
    assert np.array_equal(average_ranks(mask).ravel(), scipy.stats.rankdata(mask))
    (found,) = rank_correlation(mask[None], other[None])
    if np.ptp(mask) and np.ptp(other):
        expected = scipy.stats.spearmanr(mask, other, axis=None).statistic
        assert found == pytest.approx(expected, abs=1e-12)
    else:
        assert found == float(np.ptp(mask) == np.ptp(other))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stages_hold_every_weight_once_from_head_to_embedding(layout):
    model = make_vit(**LAYOUTS[layout][0])
    stages = stages_of(model)
    assert list(stages) == ["head", "norm", "block 3", "block 2", "block 1", "embedding"]
    found = [id(parameter) for stage in stages.values() for parameter in stage]
    assert sorted(found) == sorted(map(id, model.parameters()))
    assert any(p is model.head.weight for p in stages["head"])
    assert any(p is model.blocks[2].attn.qkv.weight for p in stages["block 3"])
    assert any(p is model.patch_embed.proj.weight for p in stages["embedding"])


def test_stages_of_windows():
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224")
    stages = stages_of(model)
    assert list(stages)[:3] == ["head", "norm", "block 12"]
    assert sum(map(len, stages.values())) == len(list(model.parameters()))
    assert any(p is model.layers[3].blocks[1].attn.qkv.weight for p in stages["block 12"])


def test_shuffled_weights_keep_their_values():
    model = make_vit()
    before = weights(model)
    shuffle_(list(model.parameters()), torch.Generator().manual_seed(0))
    for name, value in model.named_parameters():
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
        constant = bool((before[name] == before[name].flatten()[0]).all())
        assert constant or not torch.equal(value, before[name]), name


def test_randomisation_is_the_map_of_a_shuffled_copy(images):
    model = make_vit()
    stages, alike = randomisation(model, images, CATEGORIES, READY, seed=4)
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(4)
    for number, (stage, parameters) in enumerate(stages_of(copied).items()):
        assert stages[number] == stage
        shuffle_(parameters, generator)
        for name, method_ in READY.items():
            whole = masks_of(method_, model, images, CATEGORIES)
            expected = rank_correlation(whole, masks_of(method_, copied, images, CATEGORIES))
            np.testing.assert_allclose(alike[name][:, number], expected)


def test_five_shuffles_of_all_weights_each_with_an_image_of_its_own(images):
    model = make_vit()
    scores = {
        name: scores_of(each, model, images, CATEGORIES)
        for name, each in (READY | BASELINES).items()
    }
    found = by_shuffles(model, images, CATEGORIES, READY | BASELINES, scores, seed=4)
    generator = torch.Generator().manual_seed(4)
    for number in range(5):
        copied, place = copy.deepcopy(model), number % 3
        for parameters in stages_of(copied).values():
            shuffle_(parameters, generator)
        which = slice(place, place + 1)
        for name, each in READY.items():
            other = scores_of(each, copied, images[which], CATEGORIES[which])
            (expected,) = rank_correlation(scores[name][which], other)
            assert found[name][number] == pytest.approx(abs(expected))
    assert all(found[name].shape == (5,) and found[name].min() >= 0 for name in found)
    for name in BASELINES:  # they know nothing of the weights
        assert (found[name] == 1).all()


def test_maps_of_a_random_model_are_others_and_the_floors_are_not(images):
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    categories = [i % 7 for i in range(12)]
    _, alike = randomisation(make_vit(), images, categories, READY | BASELINES)
    for name in READY:
        assert abs(alike[name][:, -1].mean()) < 0.4, name
    for name in BASELINES:
        assert (alike[name] == 1).all()
    # rollout does not see the head, whose weights the gradient passes
    assert (alike["attention_rollout"][:, :2] == 1).all()
    assert alike["grad_rollout"][:, 0].mean() < 0.95


def test_weights_are_restored_bit_for_bit(images):
    model = make_vit()
    before = weights(model)
    randomisation(model, images, CATEGORIES, READY)
    assert same(before, model.state_dict())
    with pytest.raises(RuntimeError, match="on purpose"):
        randomisation(model, images, CATEGORIES, {"fails": method("Fails")})
    assert same(before, model.state_dict())
    assert len(Seen.calls) == 1


def test_the_same_categories_are_explained_throughout(images):
    randomisation(make_vit(), images, CATEGORIES, {"seen": method("Seen")})
    assert [categories for _, categories in Seen.calls] == [CATEGORIES] * 7


def test_figure_shows_a_line_for_each_method():
    alike = {"a": np.array([[0.8, 0.1]]), "b": np.array([[1.0, 1.0]])}
    titles = {"a": "first", "b": "second"}
    both = draw_randomisation(["head", "norm"], alike, titles)
    one = draw_randomisation(["head", "norm"], {"a": alike["a"]}, titles)
    orange = [(np.asarray(p) == (255, 127, 14)).all(axis=-1).sum() for p in (both, one)]
    assert orange[0] > 100
    assert orange[1] == 0


def test_noise_has_its_size_in_units_of_the_image(images):
    images = torch.randn(2, 3, 128, 128)
    model = make_vit(img_size=128, patch_size=32)
    seen = method("Seen")
    assert stability(seen, model, images, [1, 2], STD, sigma=0.1, draws=2).tolist() == [1, 1]
    (plain, _), *noisy = Seen.calls
    noise = [(other - plain) * torch.tensor(STD)[:, None, None] for other, _ in noisy]
    for found in noise:
        assert found.std(dim=(0, 2, 3)).tolist() == pytest.approx([0.1] * 3, rel=0.05)
        torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    assert (noise[0] - noise[1]).abs().max() > 0.1
    assert all(categories == [1, 2] for _, categories in Seen.calls)


def test_stability(images):
    model = make_vit()
    for name in READY:
        arguments = (READY[name], model, images, CATEGORIES, STD)
        assert (stability(*arguments, sigma=0) == 1).all()
        little, much = (stability(*arguments, sigma=s).mean() for s in (0.001, 0.5))
        assert little > 0.9 > much, name
        masks = masks_of(READY[name], model, images, CATEGORIES)
        np.testing.assert_allclose(stability(*arguments, masks=masks), stability(*arguments))
    assert (stability(BASELINES["centre_blob"], model, images, CATEGORIES, STD) == 1).all()
    random = stability(BASELINES["random"], model, images, CATEGORIES, STD, draws=40)
    assert np.abs(random).max() < 0.3


def test_intervals_are_students():
    for freedom in (9, 10, 23, 100, 5000):
        assert student(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=5e-4)
    values = np.random.default_rng(1).normal(3, 1, 12)
    expected = scipy.stats.t.interval(0.95, 11, values.mean(), scipy.stats.sem(values))
    assert interval_of(values) == pytest.approx(expected, abs=1e-3)
    assert interval_of(values[:9]) is None and interval_of(values[:10]) is not None


@pytest.mark.parametrize("count", [10, 24])
def test_intervals_cover_the_mean_as_often_as_they_say(count):
    """Where a percentile bootstrap, from the same values, does not."""
    rng = np.random.default_rng(0)
    covered, bootstrapped = 0, 0
    for _ in range(2000):
        values = rng.normal(size=count)
        low, high = interval_of(values)
        covered += low <= 0 <= high
        means = rng.choice(values, (200, count)).mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        bootstrapped += low <= 0 <= high
    assert 0.94 < covered / 2000 < 0.965  # three standard errors are 0.015
    assert bootstrapped / 2000 < (0.915 if count == 10 else 0.94)


def test_paired_differences_tell_apart_what_two_intervals_do_not():
    rng = np.random.default_rng(5)
    image = rng.random(30)  # what all methods have in common
    values = {
        "best": {"insertion": image + 0.02},
        "worse": {"insertion": image + rng.normal(0, 0.01, 30)},
        "as good": {"insertion": image + 0.018 + 0.05 * (-1) ** np.arange(30)},
        "noise": {"insertion": image + 1},
    }
    measure = Measure("insertion", "insertion", "higher")
    compared = behind(values, measure, {"noise"})
    lows, highs = zip(
        *(interval_of(values[name]["insertion"]) for name in ("best", "worse")), strict=True
    )
    assert lows[0] < highs[1]  # they overlap
    expected = scipy.stats.ttest_rel(image + 0.02, values["worse"]["insertion"])
    assert expected.pvalue < 0.01 and compared["worse"].worse
    assert compared["worse"].interval == pytest.approx(
        [-each for each in reversed(expected.confidence_interval())], abs=1e-4
    )
    assert not compared["as good"].worse and compared["noise"].mean > 0.9
    assert set(winners(values, [measure], {"noise"})["insertion"]) == {"best", "as good"}


def test_what_was_not_measured_is_left_out_of_means_and_pairs():
    """A slow method has fewer images: these decide nothing but its own difference."""
    rng = np.random.default_rng(6)
    image, noise = rng.random(40), rng.normal(0, 0.01, 40)
    slow = np.where(np.arange(40) < 15, image - 0.1 + noise, np.nan)
    values = {"all": {"m": image}, "slow": {"m": slow}}
    measure = Measure("m", "measure", "higher")
    (found,) = behind(values, measure, ()).values()
    assert found.count == 15 and found.worse
    assert found.mean == pytest.approx(-0.1 + noise[:15].mean())
    assert found.interval == pytest.approx(interval_of(noise[:15] - 0.1))
    described = as_json(values, [measure])["slow"]["m"]
    assert described["n"] == 15 and described["mean"] == pytest.approx(slow[:15].mean())
    assert described["values"] == [*slow[:15], *[None] * 25]
    row = as_markdown(values, [measure], {"all": "all", "slow": "slow"}).splitlines()[-1]
    assert row.startswith(f"| slow | {slow[:15].mean():.3f} [") and row.endswith(", n = 15 |")


TABLE = {
    "spot": {"deletion": np.zeros(12), "sanity": np.array([0.0, 0.0])},
    "a": {"deletion": np.full(12, 0.2), "sanity": np.array([0.3]), "time": np.array([1.5])},
    "b": {
        "deletion": np.array([0.4, 0.2] * 6),
        "sanity": np.array([0.2]),
        "time": np.array([1.5]),
    },
}
COLUMNS = (
    Measure("deletion", "Deletion ↓", "lower"),
    Measure("nowhere", "nowhere", "higher"),
    Measure("sanity", "Randomisation ↓", "lower"),
    Measure("time", "Time ↓", "lower"),
)


def test_table_says_which_way_is_better_and_who_is_best():
    text = as_markdown(TABLE, COLUMNS, {"spot": "spot", "a": "A", "b": "B"}, {"spot"})
    assert text == (
        "| method | Deletion ↓ | Randomisation ↓ | Time ↓ |\n"
        "|---|---|---|---|\n"
        "| A | **0.200 [0.20, 0.20]** | 0.300 | **1.500** |\n"
        "| B | 0.300 [0.23, 0.37]<br>+0.100 [+0.034, +0.166], n = 12 | **0.200** | **1.500** |\n"
        "| *spot* | 0.000 [0.00, 0.00]<br>-0.200 [-0.200, -0.200], n = 12 | 0.000 |  |"
    )


def test_winners_where_higher_is_better():
    column = [Measure("deletion", "deletion", "higher")]
    assert winners(TABLE, column, {"spot"}) == {"deletion": ["b"]}


def test_table_as_json():
    described = as_json(TABLE, COLUMNS, {"spot"})
    differences = TABLE["b"]["deletion"] - 0.2
    half = scipy.stats.t.ppf(0.975, 11) * scipy.stats.sem(differences)
    assert described["b"]["deletion"] == {
        "mean": pytest.approx(0.3),
        "interval": pytest.approx((0.3 - half, 0.3 + half), abs=1e-4),
        "n": 12,
        "better": "lower",
        "values": [0.4, 0.2] * 6,
        "behind_best": {
            "mean": pytest.approx(0.1),
            "interval": pytest.approx((0.1 - half, 0.1 + half), abs=1e-4),
            "n": 12,
            "worse": True,
        },
    }
    assert described["a"]["deletion"]["behind_best"] is None
    assert described["a"]["sanity"]["interval"] is None
    assert "time" not in described["spot"]


@pytest.fixture
def model():
    return make_vit()


def named(*names):
    return {name: evaluate.ALL[name] for name in names}


def test_evaluation_measures_what_the_modules_do(model, images):
    before = weights(model)
    names = ["grad_rollout", "centre_blob"]
    found = evaluate_images(
        model, images, STD, named(*names), steps=20, few=2, batch_size=2, seed=3
    )
    assert same(before, model.state_dict())
    assert list(found.values) == names
    assert not found.left_out
    with torch.no_grad():
        categories = model(images).argmax(dim=1).tolist()
    values = found.values["grad_rollout"]
    assert set(values) == {measure.key for measure in MEASURES}
    masks = masks_of(READY["grad_rollout"], model, images, categories)
    removal = Removal(model, images, categories, "mean", 20, seed=3)
    deletion, insertion = removal.deletion(masks), removal.insertion(masks)
    np.testing.assert_allclose(values["deletion_mean"], deletion.areas, atol=1e-5)
    np.testing.assert_allclose(values["insertion_mean"], insertion.areas, atol=1e-5)
    for key, expected in zip(
        ("positive", "negative"), perturbation(deletion, insertion), strict=True
    ):
        np.testing.assert_allclose(values[key], expected)
    blurred = Removal(model, images, categories, "blur", 20, seed=3)
    np.testing.assert_allclose(values["deletion_blur"], blurred.deletion(masks).areas, atol=1e-5)
    np.testing.assert_allclose(values["insertion_blur"], blurred.insertion(masks).areas, atol=1e-5)
    few = images[:2], categories[:2]
    scores = {name: scores_of(READY[name], model, *few) for name in READY}
    alike = by_shuffles(model, *few, READY, scores, seed=3)
    np.testing.assert_allclose(values["sanity"], alike["grad_rollout"])
    stable = stability(READY["grad_rollout"], model, *few, STD, seed=3)
    np.testing.assert_allclose(values["stability"], stable)
    assert values["time"].shape == (1,) and values["time"][0] > 0


def test_evaluation_of_given_categories(model, images):
    found = evaluate_images(model, images, STD, named("relevance"), CATEGORIES).values["relevance"]
    masks = masks_of(READY["relevance"], model, images, CATEGORIES)
    deletion = Removal(model, images, CATEGORIES, "blur", 10).deletion(masks)
    np.testing.assert_allclose(found["deletion_blur"], deletion.areas, atol=1e-5)


def test_methods_that_refuse_the_model_are_left_out(model, images, monkeypatch):
    monkeypatch.setitem(evaluate.ALL, "refuses", method("Refuses"))
    found = evaluate_images(model, images, STD, named("refuses", "random"), few=1)
    assert found.left_out == {"refuses": "it is a test"}
    assert list(found.values) == ["random"]


def test_evaluation_refuses_what_it_cant_do(model, images):
    with pytest.raises(ValueError, match="multiple of 10"):
        evaluate_images(model, images, STD, named("random"), steps=15)
    with pytest.raises(ValueError, match="as many categories"):
        evaluate_images(model, images, STD, named("random"), [0])
    model = make_vit(num_classes=0)
    with pytest.raises(ValueError, match="without categories"):
        evaluate_images(model, images, STD, named("random"))
