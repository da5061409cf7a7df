"""In which precision a device multiplies, said explicitly: CUDA's own choice differs by operation.

Measured on the bundled model at a discard ratio of 0.9, largest difference of a patch (of 1):
products rounded as in TF32 0.012, fp16 0.014, bfloat16 0.37. The rounding itself is small, but it
decides which entries are discarded. Therefore there is no bfloat16 here.
"""

import torch
from torch import nn

from vitexplain.choices import PRECISIONS
from vitexplain.errors import RequestError

GPUS = ("cuda", "mps")
ROUGH = (
    "the model is in bfloat16, whose maps differ by up to 0.4 from those in float32: pass it in "
    "float32, or in float16 on a GPU"
)


def precision_of(wanted: str, device: torch.device) -> str:
    """What "auto" is on the device, "tf32" on CUDA and "fp32" elsewhere, or `wanted` itself.

    Raises:
        RequestError: if the device does not compute so.
    """
    if wanted not in PRECISIONS:
        raise RequestError(f"precision must be one of {', '.join(PRECISIONS)}, not {wanted!r}")
    if wanted == "auto":
        return "tf32" if device.type == "cuda" else "fp32"
    if wanted == "tf32" and device.type != "cuda":
        raise RequestError(f"tf32 is a precision of CUDA: on {device.type} use --precision fp32")
    if wanted == "fp16" and device.type not in GPUS:
        raise RequestError("fp16 is for GPUs: on a CPU use --precision fp32")
    return wanted


def compute_in(precision: str, model: nn.Module, device: torch.device) -> None:
    """Have the process, and the model, compute in one of "fp32", "tf32" and "fp16"."""
    if device.type == "cuda":
        how = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = how
        torch.backends.cudnn.conv.fp32_precision = how
    if precision == "fp16":
        model.half()


def remark_on(model: nn.Module) -> str:
    """A sentence for the user if the model's precision is too low for maps; else an empty one."""
    kinds = {parameter.dtype for parameter in model.parameters()}
    return ROUGH if torch.bfloat16 in kinds else ""
