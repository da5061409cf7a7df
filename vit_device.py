"""Choose where the model runs."""

import torch


def choose_device(wanted: str = "auto", use_cuda: bool = False) -> tuple[torch.device, str]:
    """The device, and a sentence that says what was chosen.

    Args:
        wanted: "auto" (the fastest there is), "cpu", "cuda", "cuda:N" or "mps".
        use_cuda: CUDA if there is any, else the CPU, whatever `wanted` says.

    Raises:
        ValueError: if `wanted` names a device that isn't there.
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
        raise ValueError("device cuda is not available here: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no device {wanted}: {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not mps:
        raise ValueError("device mps is not available here: use --device cpu")
    return device, f"Using {_describe(device)}"


def _parse(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, not {name!r}")
    return device


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return {"cpu": "CPU", "mps": "Apple GPU (mps)"}[device.type]
