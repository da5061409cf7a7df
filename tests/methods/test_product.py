"""The steps of the product, each on its own."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import make_vit, random_attention
from vitexplain.methods.product import (
    SAMPLED,
    discard_weakest_,
    fuse_heads,
    paths,
    propagate,
    select,
)
from vitexplain.methods.registry import METHODS

matrices = st.integers(0, 2**31 - 1).map(lambda seed: random_attention(2, 2, 1 + 9, 3, seed))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_discard_takes_exactly_the_weakest_patch_entries(prefix):
    fused = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(3)) + 0.01
    before = fused.clone()
    for ratio in (0, 0.3, 0.9, 0.999):
        kept = discard_weakest_(fused.clone(), ratio, prefix)
        for image, original in zip(kept, fused, strict=True):
            assert torch.equal(image[:, :prefix], original[:, :prefix])
            columns, originals = image[:, prefix:], original[:, prefix:]
            assert int((columns == 0).sum()) == int(ratio * columns.numel())
            if (columns == 0).any():
                assert originals[columns == 0].max() < originals[columns > 0].min()
    assert torch.equal(fused, before)


def test_empty_row_becomes_the_identity():
    fused = torch.tensor([[[0.5, 0.5], [0.001, 0.002]]])
    kept = discard_weakest_(fused.clone(), 0.5, 0)
    assert kept.tolist() == [[[0.5, 0.5], [0.0, 0.0]]]
    assert propagate([kept], torch.tensor([[0.0, 1.0]])).tolist() == [[0.0, 1.0]]


def test_what_stays_and_what_is_moved_by_hand():
    """Two tokens, two blocks: 1/2 and 1/4 of each go by the residual connections alone."""
    first = torch.tensor([[[0.0, 1.0], [3.0, 0.0]]])  # rownorm(A + I): [.5, .5], [.75, .25]
    second = torch.tensor([[[0.5, 0.5], [1.0, 2.0]]])  # [.75, .25], [.25, .75]; 1/2 and 1/4 are I's
    stayed, moved = paths([first, second], torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(stayed, torch.tensor([[0.5 / 4, 0.5 / 16]]))
    # the row is [.5, .5] after the second, [.625, .375] after the first
    torch.testing.assert_close(stayed + moved, torch.tensor([[0.625, 0.375]]))


@pytest.mark.parametrize("family", ["mean", "Swin"])
@pytest.mark.parametrize("name", ["grad_rollout", "relevance"])
def test_what_is_read_by_no_category_has_an_empty_map(name, family, images):
    """Not one that is 1 everywhere, which says that all patches count."""
    model = make_vit(class_token=False, global_pool="avg", depth=1)
    if family == "Swin":
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, num_classes=5, depths=(1, 1)
        ).eval()
    head = model.head if family == "mean" else model.head.fc
    with torch.no_grad():
        head.weight[2] = 0
    masks = METHODS[name].make(model).batch(images, [2, 0, 2])
    assert masks.max(axis=(1, 2)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["attention_rollout", "value_rollout"])
def test_half_of_each_block_is_no_part_of_a_mean(name, images):
    """Rows sum to 1 where nothing is dropped, and (1/2)^L of a patch has gone nowhere."""
    model = make_vit(class_token=False, global_pool="avg")
    options = {"discard_ratio": 0, "head_fusion": "mean"} if name == "attention_rollout" else {}
    scores = METHODS[name].make(model, **options).explain(images).scores
    np.testing.assert_allclose(scores.sum(axis=(1, 2)), 1 - 0.5**3, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 5000), st.floats(0, 1), st.sampled_from("rtsd"))
def test_selecting_agrees_with_sorting(seed, count, share, kind):
    """Whatever the sample is like: random, with ties, in order, or different from the rest."""
    values = np.random.default_rng(seed).random(count, dtype=np.float32)
    if kind == "t":
        values = np.round(values, 1)
    elif kind == "s":
        values.sort()
    elif kind == "d":
        values[::SAMPLED] += 2
    rank = min(int(share * count), count - 1)
    assert select(values, rank) == np.sort(values)[rank]


@settings(max_examples=30, deadline=None)
@given(matrices, st.sampled_from(["mean", "max", "min"]), st.floats(0, 0.99), st.integers(0, 9))
def test_rows_of_the_product_sum_to_1(attentions, fusion, ratio, token):
    fused = [discard_weakest_(fuse_heads(a, fusion), ratio, 1) for a in attentions]
    for number in range(len(fused)):
        row = propagate(fused[number:], torch.eye(10)[token].expand(2, -1))
        torch.testing.assert_close(row.sum(-1), torch.ones(2), atol=1e-5, rtol=0)
        assert row.min() >= 0
