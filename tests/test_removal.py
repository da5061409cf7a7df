"""Insertion, deletion and perturbation: against one patch at a time, and a model that is known."""

import numpy as np
import pytest
import torch
from conftest import make_vit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn
from torch.nn import functional as F

from vit_faithfulness.choice import faithfulness
from vit_faithfulness.removal import (
    area,
    deletion,
    insertion,
    perturbation,
    ranks_of,
    replaced,
)

CATEGORIES = [2, 5, 0]


class Known(nn.Module):
    """Category 1's logit is the sum of the patches' mean brightness, weighed as told."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, pictures):
        patches = F.adaptive_avg_pool2d(pictures.mean(dim=1, keepdim=True), self.weights.shape)
        logit = (patches[:, 0] * self.weights).sum(dim=(1, 2))
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def by_hand(model, picture, other, mask, category, shares):
    """Probabilities as ever more patches of `other` come in, one patch after the other."""
    height, width = picture.shape[1] // mask.shape[0], picture.shape[2] // mask.shape[1]
    order = np.argsort(-mask.flatten(), kind="stable")
    curve, mixed, gone = [], picture.clone(), 0
    for share in shares:
        while gone < round(share * mask.size):
            row, column = divmod(int(order[gone]), mask.shape[1])
            where = np.s_[
                :, row * height : (row + 1) * height, column * width : (column + 1) * width
            ]
            mixed[where] = other[where]
            gone += 1
        curve.append(model(mixed[None]).softmax(dim=1)[0, category].item())
    return curve


@pytest.mark.parametrize("baseline", ["mean", "blur"])
def test_curves_are_those_of_one_patch_at_a_time(baseline, pictures):
    model = make_vit()
    masks = np.random.default_rng(0).random((3, 4, 4), np.float32)
    others = replaced(pictures, baseline)
    shares = np.linspace(0, 1, 9)
    deleted = deletion(model, pictures, masks, CATEGORIES, baseline, steps=8)
    inserted = insertion(model, pictures, masks, CATEGORIES, baseline, steps=8)
    for number in range(3):
        given = masks[number], CATEGORIES[number], shares
        expected = by_hand(model, pictures[number], others[number], *given)
        np.testing.assert_allclose(deleted[number], expected, atol=1e-5)
        expected = by_hand(model, others[number], pictures[number], *given)
        np.testing.assert_allclose(inserted[number], expected, atol=1e-5)


@pytest.mark.parametrize("positive", [True, False])
def test_perturbation_counts_right_answers(positive, pictures):
    model = make_vit()
    masks = np.random.default_rng(0).random((3, 4, 4), np.float32)
    categories = model(pictures).argmax(dim=1).tolist()
    found = perturbation(model, pictures, masks, categories, positive=positive)
    for number in range(3):
        mask = masks[number] if positive else -masks[number]
        order = np.argsort(-mask.flatten())
        for step, share in enumerate(np.linspace(0.1, 0.9, 9)):
            mixed = pictures[number].clone().view(3, 4, 8, 4, 8)
            for patch in order[: round(share * 16)]:
                mixed[:, patch // 4, :, patch % 4] = 0
            answer = int(model(mixed.view(1, 3, 32, 32)).argmax())
            assert found[number, step] == (answer == categories[number])


def test_true_importance_beats_every_other_order():
    """Where the model is known, its own weights are the best map in all respects."""
    rng = np.random.default_rng(0)
    weights = rng.permutation(np.linspace(-1, 3, 16)).reshape(4, 4).astype(np.float32)
    model, picture = Known(weights).eval(), torch.ones(1, 3, 32, 32)
    true = weights - weights.min()

    def measures(mask):
        given = model, picture, mask[None], [1], "mean"
        return area(deletion(*given))[0], area(insertion(*given))[0]

    best_deletion, best_insertion = measures(true)
    for _ in range(20):
        other = rng.permutation(true.flatten()).reshape(4, 4)
        deleted, inserted = measures(other)
        assert best_deletion < deleted and best_insertion > inserted
        # a blur changes nothing of a picture that is the same everywhere
        assert faithfulness(model, picture[0], true, 1) > faithfulness(model, picture[0], other, 1)
    worst_deletion, worst_insertion = measures(-true)
    assert worst_deletion > best_deletion and worst_insertion < best_insertion


def test_area_of_known_curves():
    np.testing.assert_allclose(area(np.array([[1, 1, 1], [0, 0.5, 1], [1, 0, 0]])), [1, 0.5, 0.25])


@given(arrays.arrays(np.float32, (2, 3, 5), elements=st.sampled_from([0, 0.5, 1.0])))
def test_ranks_follow_the_mask_and_ties_do_not_follow_the_place(masks):
    ranks = ranks_of(masks)
    for rank, mask in zip(ranks, masks, strict=True):
        assert sorted(rank.flatten()) == list(range(15))
        in_order = mask.flatten()[np.argsort(rank.flatten())]
        assert (np.diff(in_order) <= 0).all()
    flat = ranks_of(np.zeros((1, 10, 10)))[0]
    assert 35 < flat[:5].mean() < 65  # 49.5 were it random; by place it would be 24.5


def test_blur_keeps_the_mean_and_takes_the_detail():
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, :, ::2] = 1  # stripes
    blurred = replaced(picture, "blur")
    np.testing.assert_allclose(blurred.numpy(), 0.5, atol=0.02)
    edge = torch.zeros(1, 3, 64, 64)
    edge[..., 32:] = 1
    profile = replaced(edge, "blur")[0, 0, 10]
    assert (profile.diff() >= -1e-6).all() and profile[31] == pytest.approx(0.5, abs=0.06)
    with pytest.raises(ValueError, match="baseline must be one of mean, blur"):
        replaced(picture, "black")
