"""The steps of the product, each on its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import random_attention
from vitexplain.methods.product import SAMPLED, discard_weakest_, fuse_heads, propagate, select

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
