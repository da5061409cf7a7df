"""What a GPU would be asked to do, on a pretended one (pretended.py): results, launches, waits."""

import copy
from functools import partial

import numpy as np
import pytest
import timm
import torch
from conftest import state_of
from PIL import Image
from pretended import NAME, moved, pretended_device
from torch.utils._python_dispatch import TorchDispatchMode

import families
from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention import chunks
from vitexplain.device import in_batches
from vitexplain.faithfulness.ranks import rank_correlation
from vitexplain.faithfulness.score import faithfulness
from vitexplain.methods.registry import METHODS

SEVERAL = ("deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "vit_small_patch16_dinov3",
           "vit_base_patch16_siglip_224", "vit_relpos_small_patch16_224")  # fmt: skip
OWN_BATCHES = ("integrated_gradients", "occlusion")  # of these, which they halve themselves
SWIN = {"img_size": 64, "window_size": 4, "depths": (2, 1), "embed_dim": 24, "num_heads": (2, 2)}


@pytest.fixture
def device():
    with pretended_device() as device:
        yield device


def explain(name, model, images):
    """The maps (B, h, w) of one method, of category 1."""
    method = METHODS[name]
    made = method.make(model)
    given = ([1] * len(images),) if method.of_category else ()
    return made.explain(images, *given).masks


def small(name):
    if name == "swin":
        torch.manual_seed(0)
        made = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **SWIN)
        return made.eval(), 64
    return families.make(name), (families.SMALL | families.FAMILIES[name][0])["img_size"]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "vit_tiny_patch16_224") for name in METHODS),
        *((name, family) for family in SEVERAL for name in ("attention_rollout", "grad_rollout")),
        *((name, "swin") for name in ("attention_rollout", "relevance", "gradcam")),
    ],
)
def test_maps_are_those_of_the_cpu(name, family, few_steps):
    model, side = small(family)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    expected = explain(name, model, images)
    with pretended_device() as device:
        there = moved(copy.deepcopy(model))
        found = explain(name, there, images.to(NAME))
    assert device.launches.total() > 50
    np.testing.assert_allclose(found, expected, atol=1e-5)


def deit_tiny():
    """With the tokens, heads and blocks of DeiT-tiny, which decide on the launches."""
    size = {"img_size": 224, "patch_size": 16, "embed_dim": 24, "depth": 12, "num_heads": 3}
    return make_vit(**size)


def plain(model, images):
    with torch.no_grad():
        model(images)


def plain_backward(model, images):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    images = images.clone().requires_grad_()
    torch.autograd.grad(model(images)[:, 1].sum(), images)


@pytest.mark.parametrize(
    ("name", "passes"),
    [("attention_rollout", plain), ("grad_rollout", plain_backward), ("relevance", plain_backward)],
)
def test_a_batch_costs_few_launches_and_hardly_a_wait(device, name, passes):
    model, images = moved(deit_tiny()), torch.randn(32, 3, 224, 224).to(NAME)
    passes(copy.deepcopy(model), images)
    own = device.launches.total()
    device.reset()
    explain(name, model, images)
    assert device.launches.total() <= 1.5 * own + 40, device.launches.most_common(12)
    assert device.waits.total() <= 2, device.waits  # for the maps, and for the logits
    assert device.to_host.total() <= 2, device.to_host


def test_large_models_are_worked_on_in_few_pieces(monkeypatch):
    """ViT-L at 518 pixels, 32 images: 960 pieces a block before."""
    monkeypatch.setattr(chunks, "total_memory", lambda _device: 80 * 2**30)
    query = torch.empty(32, 16, 1370, 64, device="meta")
    assert len(list(chunks.parts(query, 1370))) == 1
    monkeypatch.setattr(chunks, "total_memory", lambda _device: 8 * 2**30)
    pieces = list(chunks.parts(query, 1370))
    assert len(pieces) == 8
    assert all(rows == slice(0, 1370) or rows.stop >= 1370 for _, _, rows in pieces)  # whole heads
    query = torch.empty(1, 1, 16384, 64, device="meta")
    assert [rows.stop for _, _, rows in chunks.parts(query, 16384)][-1] >= 16384


class Failing(TorchDispatchMode):
    """Memory runs out at one operation, on the CPU: Python's backend dies in a backward pass."""

    def __init__(self, number=None):
        super().__init__()
        self.number, self.count = number, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_where_memory_runs_out_the_batch_is_halved(name, few_steps):
    model, _ = small("vit_tiny_patch16_224")
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    before = state_of(model)
    run = partial(explain, name, model)
    with torch.autograd.set_multithreading_enabled(False):
        with Failing() as counting:
            expected = run(images)
        for number in range(6):
            told = []
            with Failing(1 + number * (counting.count - 1) // 5):
                found = np.concatenate(list(in_batches(run, images, 4, told.append)))
            said = ["out of memory: going on with batches of 2"]
            assert told == said or (name in OWN_BATCHES and not told)
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert state_of(model) == before


def test_faithfulness_is_that_of_the_cpu(device):
    model, _ = small("vit_tiny_patch16_224")
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(2))
    mask = np.arange(16, dtype=np.float32).reshape(4, 4) / 15
    expected = faithfulness(copy.deepcopy(model), image, mask, 1)
    assert faithfulness(moved(model), image.to(NAME), mask, 1) == pytest.approx(expected, abs=1e-5)


class RoundedProducts(TorchDispatchMode):
    """Products of numbers with as many bits of mantissa as a GPU's fast units read."""

    PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "conv2d"))

    def __init__(self, bits):
        super().__init__()
        self.step = 2 ** (23 - bits)
        self.rounded = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.PRODUCTS:
            self.rounded += 1
            args = [self._round(a) if isinstance(a, torch.Tensor) else a for a in args]
        return func(*args, **(kwargs or {}))

    def _round(self, values):
        bits = values.contiguous().view(torch.int32)
        return (((bits + self.step // 2) // self.step) * self.step).view(torch.float32)


def maps_of_both(model, image):
    """Attention rollout as the command draws it, and gradient rollout."""
    rollout = VITAttentionRollout(model, head_fusion="max")
    return rollout.batch(image)[0], VITAttentionGradRollout(model).batch(image, [243])[0]


@pytest.fixture(scope="module")
def both(bundled, examples):
    return bundled.transform(Image.open(examples / "both.png").convert("RGB"))[None]


def test_tf32_changes_maps_by_a_hundredth(bundled, both):
    expected = maps_of_both(bundled.model, both)
    with torch.no_grad(), RoundedProducts(10) as mode:
        rollout = VITAttentionRollout(bundled.model, head_fusion="max").batch(both)[0]
    assert mode.rounded > 50
    assert 0 < np.abs(rollout - expected[0]).max() < 0.03
    assert rank_correlation(rollout[None], expected[0][None])[0] > 0.99


def test_fp16_changes_maps_by_a_hundredth(bundled, both):
    expected = maps_of_both(bundled.model, both)
    found = maps_of_both(copy.deepcopy(bundled.model).half(), both)
    for one, other in zip(expected, found, strict=True):
        assert 0 < np.abs(one - other).max() < 0.05
        assert rank_correlation(one[None], other[None])[0] > 0.99
