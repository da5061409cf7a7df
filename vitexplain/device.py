"""Device selection and batching."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import torch

from vitexplain.errors import RequestError, is_out_of_memory

# of GNU's malloc.h: trim and mmap threshold, and how much is asked for at once, in bytes
MALLOC_OPTIONS = {-1: 2**30, -3: 2**25, -2: 2**26}
Item, Result = TypeVar("Item"), TypeVar("Result")


def choose_device(wanted: str = "auto", use_cuda: bool = False) -> tuple[torch.device, str]:
    """The device, and a sentence that names it.

    Args:
        wanted: "auto" (the fastest available), "cpu", "cuda", "cuda:N" or "mps".
        use_cuda: CUDA if available, else the CPU; overrides `wanted`.

    Raises:
        RequestError: if `wanted` names a device that isn't there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if use_cuda and not cuda:
        return torch.device("cpu"), "Using CPU (CUDA is not available)"
    if use_cuda or (wanted == "auto" and cuda):
        wanted = "cuda"
    elif wanted == "auto":
        wanted = "mps" if mps else "cpu"
    device = _parse(wanted)
    if device.type == "cuda" and not cuda:
        raise RequestError("device cuda is not available here: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(f"there is no device {wanted}: {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not mps:
        raise RequestError("device mps is not available here: use --device cpu")
    return device, f"Using {_describe(device)}"


def in_batches(
    run: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    batch_size: int,
    tell: Callable[[str], None],
) -> Iterator[Result]:
    """Call `run` on all items in batches; when memory runs out, in batches of half the size.

    Args:
        tell: receives a sentence whenever the batch is halved.

    Raises:
        torch.OutOfMemoryError, RuntimeError: of `run`, if a single item does not fit.
    """
    start = 0
    while start < len(items):
        try:
            result = run(items[start : start + batch_size])
        except (MemoryError, RuntimeError) as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            result = None
        if result is None:  # outside of the handler, which would keep the tensors of `run` alive
            batch_size = max(1, min(batch_size, len(items) - start) // 2)
            torch.cuda.empty_cache()
            tell(f"out of memory: going on with batches of {batch_size}")
            continue
        yield result
        start += batch_size


def keep_freed_memory() -> None:
    """Let the C library reuse freed memory for the next tensors; only GNU's returns it.

    GNU's malloc returns most of it after each layer of a pass, and every page is zeroed anew:
    some 900 page faults per image for a small ViT, a twentieth of the time.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)


def _parse(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise RequestError(f"device must be auto, cpu, cuda, cuda:N or mps, not {name!r}")
    return device


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return {"cpu": "CPU", "mps": "Apple GPU (mps)"}[device.type]
