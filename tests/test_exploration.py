"""All attention in few bits: how far from the attention it may be, and what fits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import LAYOUTS, expected_readout, make_vit
from vit_rollout import rollout
from vitexplain.attention.capture import capture_attention, forward
from vitexplain.attention.tokens import UnsupportedModel, token_layout
from vitexplain.choices import HEAD_FUSIONS
from vitexplain.exploration import Coded, Storage, explore
from windowed import make


@pytest.fixture
def image():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def attention_of(model, image):
    """(H, N, N) of each block, by hooks."""
    layout = token_layout(model, *image.shape[2:])
    with torch.no_grad(), capture_attention(model, layout) as captured:
        forward(model, image)
    return [torch.cat(branches, dim=1)[0].numpy() for branches in captured.blocks()]


@pytest.mark.parametrize("bits", [8, 16])
@given(seed=st.integers(0, 10**6), sharpness=st.floats(0.1, 30))
def test_codes_are_as_near_as_stated(bits, seed, sharpness):
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(2, 9, 9, generator=generator).mul(sharpness).softmax(-1)
    coded = Coded.of(matrices, bits)
    assert coded.codes.dtype == {8: np.uint8, 16: np.uint16}[bits]
    largest = matrices.amax(-1, keepdim=True).numpy()
    error = np.abs(coded.decoded() - matrices.numpy())
    assert (error <= 1.001 * largest / (2**bits - 1) + 1e-7).all()
    np.testing.assert_allclose(coded.decoded().max(-1, keepdims=True), largest, rtol=1e-6)


def test_a_row_of_zeros_stays_one():
    assert not Coded.of(torch.zeros(1, 3, 3), 16).decoded().any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_head_of_every_block_and_what_is_read(name, image):
    arguments, prefix, _ = LAYOUTS[name]
    model = make_vit(**arguments)
    found = explore(model, image)
    assert found.storage == (16, 0, 1)
    assert len(found.prefix_names) == prefix
    for (branch,), expected in zip(found.blocks, attention_of(model, image), strict=True):
        np.testing.assert_allclose(branch.heads.decoded(), expected, atol=2e-5)
    for how in HEAD_FUSIONS:
        np.testing.assert_allclose(found.reads[how], expected_readout(name, prefix), atol=1e-6)


def test_what_is_fused_rolls_out_as_the_heads_do(image):
    """8 bits are for looking at single heads; rollout, which discards, has its own 16."""
    model = make_vit(num_heads=12)
    heads = Storage(16, 0).bytes(36, 3, token_layout(model, 32, 32))
    found = explore(model, image, largest=heads - 1)
    assert found.storage == (8, 16, 1)
    expected = [torch.from_numpy(each)[None] for each in attention_of(model, image)]
    for place, how in enumerate(HEAD_FUSIONS):
        fused = [torch.tensor(branch.fused.decoded()[place]) for (branch,) in found.blocks]
        mine = rollout([each[None, None] for each in fused], 0.7)
        np.testing.assert_allclose(mine, rollout(expected, 0.7, how), atol=2e-3)


def test_squares_of_patches_are_means_of_queries_and_sums_of_keys(image):
    model = make_vit(reg_tokens=1, num_heads=12)  # 2 prefix tokens, 4x4 patches
    found = explore(model, image, largest=2000)
    assert found.storage == (0, 16, 2)
    assert found.grid == (2, 2)
    (attention, *_), ((branch,), *_) = attention_of(model, image), found.blocks
    mean = attention.mean(axis=0)
    squares = [[0], [1], [2, 3, 6, 7], [4, 5, 8, 9], [10, 11, 14, 15], [12, 13, 16, 17]]
    expected = [[mean[np.ix_(a, b)].sum(axis=1).mean() for b in squares] for a in squares]
    np.testing.assert_allclose(branch.fused.decoded()[0], expected, atol=2e-5)
    np.testing.assert_allclose(branch.fused.decoded()[0].sum(axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(found.reads["mean"], [1, 0, 0, 0, 0, 0])


def test_an_attention_pool_reads_by_each_fusion(image):
    model = make_vit(class_token=False, global_pool="map")
    found = explore(model, image)
    for how in HEAD_FUSIONS:
        assert found.reads[how].shape == (16,)
    assert found.reads["mean"].sum() == pytest.approx(1, abs=1e-5)
    assert (found.reads["max"] >= found.reads["min"]).all()


def test_windows_are_refused_with_what_works():
    with pytest.raises(UnsupportedModel, match=r"within windows.*--anatomy"):
        explore(make("swin_tiny_patch4_window7_224", 56, 56, 7), torch.zeros(1, 3, 56, 56))


def test_the_model_is_left_as_it_was(image):
    model = make_vit()
    before = model(image)
    explore(model, image)
    assert torch.equal(model(image), before)
    assert not any(module._forward_hooks for module in model.modules())
