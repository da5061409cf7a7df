"""Let `import timm` survive a torchvision whose compiled part does not fit the installed torch.

timm needs torchvision's Python code only. PyPI's torchvision is compiled for CUDA, so beside a
CPU build of torch its binary cannot be loaded, the operators it would have registered are
missing, and `import torchvision` (hence `import timm`) stops with
"operator torchvision::nms does not exist". Declaring the two operators that torchvision's Python
code refers to at import time is enough. They stay without an implementation: nothing here calls
them. Where torchvision is sound, `repair()` does nothing.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import torch

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def repair() -> None:
    """Declare torchvision's operators where its own binary can't."""
    if "torchvision" in sys.modules or _binary_loads():
        return
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)


def _binary_loads() -> bool:
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return True  # not installed: timm's own error says so better than we could
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    # "_C" until torchvision 0.28, "_C_stable" from 0.29 on; to declare what it will register itself
    # would end the process
    files = sorted(Path(package.origin).parent.glob("_C*"))
    binaries = [file for file in files if file.name.endswith(suffixes)]
    try:
        for binary in binaries:
            torch.ops.load_library(str(binary))
    except OSError:
        return False
    return bool(binaries)
