import platform
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import torch

from helpers import ROOT, make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain import device
from vitexplain.device import choose_device, choose_devices, in_batches
from vitexplain.errors import RequestError, is_out_of_memory
from vitexplain.faithfulness.ranks import rank_correlation
from vitexplain.precision import compute_in


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(no_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some GPU")
    monkeypatch.setattr(device, "_why_unusable", lambda _device: "")


def test_without_gpu(no_gpu):
    assert choose_device() == (torch.device("cpu"), "Using CPU")
    assert choose_device("cpu") == (torch.device("cpu"), "Using CPU")
    assert choose_device(use_cuda=True) == (
        torch.device("cpu"),
        "Using CPU (CUDA is not available)",
    )
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ValueError, match="not available here: use --device cpu"):
            choose_device(name)


def test_with_cuda(two_gpus):
    assert choose_device()[0] == torch.device("cuda")
    assert choose_device(use_cuda=True) == (torch.device("cuda"), "Using Some GPU (cuda)")
    assert choose_device("cuda:1")[0] == torch.device("cuda:1")
    assert choose_device("cpu")[0] == torch.device("cpu")
    with pytest.raises(ValueError, match="no device cuda:2: 2 CUDA devices"):
        choose_device("cuda:2")


def test_with_mps(no_gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(device, "_why_unusable", lambda _device: "")
    assert choose_device() == (torch.device("mps"), "Using Apple GPU (mps)")
    assert choose_device(use_cuda=True)[0] == torch.device("cpu")


def test_a_gpu_that_torch_cant_use(two_gpus, monkeypatch):
    reason = "CUDA error: no kernel image is available for execution on the device"
    monkeypatch.setattr(device, "_why_unusable", lambda _device: reason)
    expected = torch.device("cpu"), f"Using CPU (CUDA can't be used: {reason})"
    assert choose_device() == choose_device(use_cuda=True) == expected
    with pytest.raises(RequestError, match=r"device cuda:1 can't be used: .*no kernel image"):
        choose_device("cuda:1")


def test_several_devices(two_gpus):
    both = [torch.device("cuda:0"), torch.device("cuda:1")]
    for names in ("cuda:0,1", "cuda:0,cuda:1"):
        assert [found for found, _ in choose_devices(names)] == both
    assert [found for found, _ in choose_devices("cpu,cpu")] == [torch.device("cpu")] * 2
    for names, reason in (
        ("cuda:0,0", "names a device twice"),
        ("cuda:0,cpu", "devices of several kinds"),
        ("cuda:0,2", "no device cuda:2: 2 CUDA devices"),
        ("cuda:0,", "device must be"),
    ):
        with pytest.raises(RequestError, match=reason):
            choose_devices(names)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "cuda:-1", "mps:3", "cpu:2"])
def test_unknown(no_gpu, name):
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("not enough memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_batches_are_halved_until_they_fit(error):
    tried, told = [], []

    def run(items):
        tried.append(len(items))
        if len(items) > 3:
            raise error
        return list(items)

    sizes = []
    batches = in_batches(run, range(20), 16, told.append, sizes.append)
    assert list(chain.from_iterable(batches)) == list(range(20))
    assert tried == [16, 8, 4, *[2] * 10]
    assert told == [f"out of memory: going on with batches of {n}" for n in (8, 4, 2)]
    assert sizes == [8, 4, 2]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("Invalid buffer size: 12.00 GiB", True),
        ("FIND was unable to find an engine to execute this computation", True),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("unsupported operation: more than one element refers to a single memory location", False),
        ("Pin memory thread exited unexpectedly", False),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_what_says_that_memory_ran_out(said, expected):
    assert is_out_of_memory(RuntimeError(said)) is expected


def test_one_that_does_not_fit_and_other_errors_are_not_swallowed():
    def run(_items):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches(run, [1, 2], 2, lambda _: None))

    def fail(_items):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches(fail, [1, 2], 2, lambda _: None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, which is not here")
@pytest.mark.parametrize("pool", ["token", "map"])
def test_cuda_gives_the_masks_of_the_cpu(pool, images):
    model = make_vit(global_pool=pool, class_token=pool == "token")
    found = {}
    for place in ("cpu", "cuda"):
        model.to(place)
        compute_in("fp32", model, torch.device(place))
        # at 0.9 a difference in the last bit can decide whether an entry is discarded
        found[place] = [
            each
            for ratio in (0, 0.9)
            for each in (
                VITAttentionRollout(model, discard_ratio=ratio).batch(images),
                VITAttentionGradRollout(model, discard_ratio=ratio).batch(images, [0, 1, 2]),
            )
        ]
    on_cpu, on_cuda = found["cpu"], found["cuda"]
    for one, other in zip(on_cpu[:2], on_cuda[:2], strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4)
    for one, other in zip(on_cpu[2:], on_cuda[2:], strict=True):
        assert rank_correlation(one, other).min() > 0.99


COUNT_FAULTS = """
import sys, threading
from resource import RUSAGE_SELF, getrusage
import torch, vitexplain.device
torch.set_num_threads(1)
if "keep" in sys.argv:
    vitexplain.device.keep_freed_memory()
def work():
    for number in range(23):
        if number == 3:
            before = getrusage(RUSAGE_SELF).ru_minflt
        tokens = torch.ones(300_000)
        for _ in range(12):  # as the layers of a transformer do
            hidden = tokens.repeat(4)
            tokens = tokens + (hidden + 1)[:300_000]
    print(getrusage(RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only GNU's malloc is told")
def test_freed_memory_is_kept():
    """Tensors in a thread get the pages of those before them."""
    faults = [
        int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, *word], cwd=ROOT))
        for word in ([], ["keep"])
    ]
    assert faults[1] < faults[0] / 20
