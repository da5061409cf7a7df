import pytest
import torch

from vit_device import choose_device


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(no_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some GPU")


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
    assert choose_device() == (torch.device("mps"), "Using Apple GPU (mps)")
    assert choose_device(use_cuda=True)[0] == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "cuda:-1"])
def test_unknown(no_gpu, name):
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)
