"""Device selection and batching."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import TypeVar

import torch

from vitexplain.errors import RequestError, is_out_of_memory, one_line

# of GNU's malloc.h: trim and mmap threshold, and how much is asked for at once, in bytes
MALLOC_OPTIONS = {-1: 2**30, -3: 2**25, -2: 2**26}
Item, Result = TypeVar("Item"), TypeVar("Result")


def choose_device(wanted: str = "auto", use_cuda: bool = False) -> tuple[torch.device, str]:
    """The device, and a sentence that names it.

    Args:
        wanted: "auto" (the fastest available), "cpu", "cuda", "cuda:N" or "mps".
        use_cuda: CUDA if available, else the CPU; overrides `wanted`.

    Raises:
        RequestError: if `wanted` names a device that isn't there, or that torch can't use.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if use_cuda and not cuda:
        return torch.device("cpu"), "Using CPU (CUDA is not available)"
    if use_cuda or (wanted == "auto" and cuda):
        reason = _why_unusable(torch.device("cuda"))
        if reason:
            return torch.device("cpu"), f"Using CPU (CUDA can't be used: {reason})"
        wanted = "cuda"
    elif wanted == "auto":
        wanted = "mps" if mps else "cpu"
    device = parse_device(wanted)
    if device.type == "cuda" and not cuda:
        raise RequestError("device cuda is not available here: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(f"there is no device {wanted}: {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not mps:
        raise RequestError("device mps is not available here: use --device cpu")
    reason = _why_unusable(device)
    if reason:
        raise RequestError(f"device {wanted} can't be used: {reason}")
    return device, f"Using {_describe(device)}"


def choose_devices(wanted: str, use_cuda: bool = False) -> list[tuple[torch.device, str]]:
    """As choose_device; of a list such as "cuda:0,1" or "cuda:0,cuda:1", for each of them.

    Raises:
        RequestError: if one isn't there, is named twice, or is of another kind than the others.
    """
    first, *others = wanted.split(",")
    kind = first.partition(":")[0]
    names = [first, *(f"{kind}:{each}" if each.isdecimal() else each for each in others)]
    chosen = [choose_device(name, use_cuda) for name in names]
    devices = [device for device, _ in chosen]
    if len({device.type for device in devices}) > 1:
        raise RequestError(f"--device {wanted} names devices of several kinds: name those of one")
    if devices[0].type != "cpu" and len(set(devices)) < len(devices):
        raise RequestError(f"--device {wanted} names a device twice")
    return chosen


def in_batches(
    run: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    batch_size: int,
    tell: Callable[[str], None],
    halved: Callable[[int], object] = lambda _size: None,
) -> Iterator[Result]:
    """Call `run` on all items in batches; when memory runs out, in batches of half the size.

    Args:
        tell: receives a sentence whenever the batch is halved.
        halved: receives its new size.

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
            _give_back_cached_memory()
            halved(batch_size)
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


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device, as far as it says so."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


@cache
def total_memory(device: torch.device) -> int | None:
    """Bytes of memory that the device has, as far as it says so."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return torch.mps.recommended_max_memory() if device.type == "mps" else None


def _give_back_cached_memory() -> None:
    """Torch keeps what was freed on a GPU, in pieces that may be too small for what comes next."""
    with suppress(RuntimeError):  # the error before may have left the device unusable
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        elif torch.backends.mps.is_available():
            torch.mps.empty_cache()


def _why_unusable(device: torch.device) -> str:
    """Why torch can't calculate on a GPU that is there, such as too old a driver; or ""."""
    if device.type == "cpu":
        return ""
    try:
        torch.ones(1, device=device).add_(1)
    except RuntimeError as error:
        return one_line(error, 160)
    return ""


def parse_device(name: str) -> torch.device:
    """The device of that name, there or not; RequestError if there is no such name."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    known = device is not None and device.type in ("cpu", "cuda", "mps")
    if not known or (device.type != "cuda" and device.index):
        raise RequestError(f"device must be auto, cpu, cuda, cuda:N or mps, not {name!r}")
    return device if device.type == "cuda" else torch.device(device.type)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return {"cpu": "CPU", "mps": "Apple GPU (mps)"}[device.type]
