"""The greedy order of patches: by hand, against brute force, random orders and methods."""

from itertools import permutations

import numpy as np
import pytest
import torch

from helpers import Additive, make_vit
from vitexplain.errors import RequestError
from vitexplain.faithfulness.ceiling import ceiling
from vitexplain.faithfulness.measures import removed
from vitexplain.faithfulness.passes import scores_of, top1
from vitexplain.faithfulness.removal import Removal
from vitexplain.faithfulness.states import FILLS, HIDDEN_BY, Answers
from vitexplain.images.reading import open_image
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import load_model
from vitexplain.targets import Target

BOTH = pytest.mark.parametrize("insert", [True, False])


def areas_of(model, image, maps, steps, fill, insert, category):
    """(N,) of N maps (h, w) of one image."""
    images, categories = image.expand(len(maps), -1, -1, -1), [category] * len(maps)
    removal = Removal(model, images, categories, fill, steps)
    return (removal.insertion if insert else removal.deletion)(np.stack(maps)).areas


def greedy_by_hand(model, image, category, steps, insert):
    """The area, patch by patch of 8 x 8 pixels, hidden by the mean colour."""
    now, then = torch.zeros_like(image), image
    if not insert:
        now, then = then, now
    now, left = now.clone(), [(y, x) for y in range(0, 32, 8) for x in range(0, 32, 8)]
    sign = 1 if insert else -1

    def with_(image, patches):
        image = image.clone()
        for y, x in patches:
            image[:, y : y + 8, x : x + 8] = then[:, y : y + 8, x : x + 8]
        return image

    def probability(image):
        with torch.no_grad():
            return float(model(image[None])[0].softmax(0)[category])

    heights = [probability(now)]
    for _ in range(steps):
        left.sort(key=lambda patch: -sign * probability(with_(now, [patch])))
        now, left = with_(now, left[: 16 // steps]), left[16 // steps :]
        heights.append(probability(now))
    return np.trapezoid(heights, dx=1 / steps)


@BOTH
@pytest.mark.parametrize("steps", [4, 8])
def test_area_is_that_of_the_greedy_order_by_hand(steps, insert, images):
    model = make_vit()
    for image, category in ((0, 2), (2, 5)):
        answers = Answers(model, images, "exclusive")
        found = ceiling(answers, image, (4, 4), category, steps, "mean", insert=insert)
        expected = greedy_by_hand(model, images[image], category, steps, insert)
        assert found.area == pytest.approx(expected, abs=1e-5)


@BOTH
@pytest.mark.parametrize("fill", HIDDEN_BY)
def test_random_orders_are_no_better(fill, insert, images):
    model, maps = make_vit(), np.random.default_rng(0).random((200, 4, 4))
    (category,) = top1(model, images[:1])
    answers = Answers(model, images, "exclusive")
    found = ceiling(answers, 0, (4, 4), category, 8, fill, insert=insert)
    others = areas_of(model, images[0], maps, 8, fill, insert, category)
    if insert:
        assert found.area >= others.max() > others.mean() + 0.05
    else:
        assert found.area <= others.min() < others.mean() - 0.05


@BOTH
def test_the_best_of_all_orders_is_no_worse_and_begins_no_better(insert):
    model = make_vit(img_size=16)  # 2 x 2 patches
    for image in torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2)):
        answers = Answers(model, image[None], "exclusive")
        found = ceiling(answers, 0, (2, 2), 2, 4, "mean", insert=insert)
        maps = [4.0 - np.argsort(order).reshape(2, 2) for order in permutations(range(4))]
        removal = Removal(model, image.expand(24, -1, -1, -1), [2] * 24, "mean", 4)
        every = (removal.insertion if insert else removal.deletion)(np.stack(maps))
        best = max if insert else min
        assert best(*every.areas, found.area) == pytest.approx(best(every.areas), abs=1e-6)
        first = best(every.probabilities[:, 1])
        assert found.curves.probabilities[0, 1] == pytest.approx(first, abs=1e-6)


@BOTH
@pytest.mark.parametrize("steps", [1, 5, 16, 40])
@pytest.mark.parametrize("fill", FILLS)
def test_where_effects_add_up_it_is_the_best_order(fill, steps, insert):
    worth = np.random.default_rng(5).permutation(np.linspace(-0.4, 0.9, 16))
    image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(4))
    model = Additive(worth)
    found = ceiling(Answers(model, image[None], "exclusive"), 0, (4, 4), 0, steps, fill,
                    insert=insert)  # fmt: skip
    effect = np.empty(16)  # of showing each patch, on the logit
    emptied = Answers(model, image[None], "exclusive")._emptied(fill)[0]
    with torch.no_grad():
        for patch in range(16):
            y, x = patch // 4 * 8, patch % 4 * 8
            shown = emptied.clone()
            shown[:, y : y + 8, x : x + 8] = image[:, y : y + 8, x : x + 8]
            effect[patch] = model(shown[None])[0, 0] - model(emptied[None])[0, 0]
    best = areas_of(model, image, [effect.reshape(4, 4)], steps, fill, insert, 0)
    assert found.area == pytest.approx(best[0], abs=1e-6)
    if steps == 16:
        assert np.array_equal(found.ranking.ranks, np.argsort(np.argsort(-effect)))


@BOTH
@pytest.mark.parametrize("fill", HIDDEN_BY)
def test_its_scores_are_a_map_that_has_this_area(fill, insert, images):
    model, target = make_vit(), Target(2, (4, 1), ())
    answers = Answers(model, images, "exclusive")
    found = ceiling(answers, 1, (4, 4), target, 10, fill, insert=insert)
    assert sorted(found.scores.ravel()) == pytest.approx(np.arange(1, 17) / 16)
    removal = Removal(model, images[1:2], [target], fill, 10)
    measured = (removal.insertion if insert else removal.deletion)(found.scores[None])
    np.testing.assert_allclose(measured.probabilities, found.curves.probabilities, atol=1e-6)
    assert measured.areas[0] == pytest.approx(found.area, abs=1e-6)


def test_it_takes_as_many_passes_as_it_says_and_leaves_the_model(images):
    model, seen = make_vit(), []
    model.patch_embed.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    answers = Answers(model, images, "exclusive", batch_size=16)
    ceiling(answers, 0, (4, 4), 2, 8, "mean", insert=True)
    # 16 + 14 + ... + 2 of patches alone, the curve's 7 inner points and its ends
    assert sum(seen) == 16 * 9 // 2 + 9
    assert max(seen) == 16
    assert not model.norm_pre._forward_hooks


@pytest.mark.slow
@BOTH
def test_no_method_is_better_on_a_photograph(insert, examples):
    loaded = load_model("bundled", img_size=(112, 112))  # 7 x 7 patches
    images = loaded.transform(open_image(examples / "cat.jpg"))[None]
    (category,) = categories = top1(loaded.model, images)
    answers = Answers(loaded.model, images, loaded.labels)
    names = ("grad_rollout", "relevance", "gradcam", "attention_rollout")
    scores = {name: scores_of(METHODS[name], loaded.model, images, categories) for name in names}
    methods = removed(answers, scores, categories, 10, ["mean"])
    found = ceiling(answers, 0, (7, 7), category, 10, "mean", insert=insert)
    for values in methods.values():
        if insert:
            assert found.area > values["insertion_mean"][0]
        else:
            assert found.area < values["deletion_mean"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fill": "black"}, "fill must be one of mean, blur, drop"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"grid": (0, 4)}, "grid must be at least 1x1, not 0x4"),
        ({"image": 3}, "image must be from 0 to 2, not 3"),
        ({"target": 7}, "categories must be from 0 to 6"),
        ({"grid": (2, 2), "fill": "drop"}, "the model's own, not of 2x2"),
    ],
)
def test_wrong_requests(changes, message, images):
    arguments = {"image": 0, "grid": (4, 4), "target": 2, "steps": 4, "fill": "mean"} | changes
    with pytest.raises(RequestError, match=message):
        ceiling(Answers(make_vit(), images, "exclusive"), **arguments, insert=True)


def test_a_model_that_drops_no_tokens_says_so(images):
    answers = Answers(make_vit(class_token=False, global_pool="avg"), images, "exclusive")
    with pytest.raises(RequestError, match="reads patches alone"):
        ceiling(answers, 0, (4, 4), 2, 4, "drop", insert=False)
