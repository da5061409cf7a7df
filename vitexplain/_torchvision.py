"""Let `import timm` survive a torchvision that does not fit the installed torch, and be quick.

timm needs torchvision's Python code only. PyPI's torchvision is compiled for CUDA, so beside a
CPU build of torch its binary cannot be loaded, the operators it would have registered are
missing, and `import torchvision` (hence `import timm`) stops with
"operator torchvision::nms does not exist". Declaring the two operators that torchvision's Python
code refers to at import time is enough. They stay without an implementation: nothing here calls
them. Where torchvision is sound, `repair()` does nothing.

While they are imported, both also import torch's compiler, which takes as long as torch itself:
torchvision to ask it later whether it works here, timm to have it pass over a few functions. With
`lighter()` the compiler is imported when something is compiled.
"""

import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch

_OPERATORS = ("nms", "qnms")
COMPILER = ("torch._dynamo", "torch._dynamo.utils")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def repair() -> None:
    """Declare torchvision's operators where its own binary can't."""
    if "torchvision" in sys.modules or _binary_loads():
        return
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)


def lighter(spec: ModuleSpec | None) -> ModuleSpec | None:
    """The spec of a package, changed so that its import does not import torch's compiler."""
    if spec is None or spec.loader is None:
        return spec
    run = spec.loader.exec_module

    def exec_module(module: ModuleType) -> None:
        with _compiler_later():
            run(module)

    spec.loader.exec_module = exec_module
    return spec


@contextmanager
def _compiler_later() -> Iterator[None]:
    """Inside, who imports the compiler gets a stand-in, which imports it once it is used."""
    standing_in = {name: _StandIn(name) for name in COMPILER if name not in sys.modules}
    sys.modules.update(standing_in)
    try:
        yield
    finally:
        _remove(standing_in)


def _remove(modules: dict[str, ModuleType]) -> None:
    for name, module in modules.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]


class _StandIn(ModuleType):
    """For a module of the compiler, which is imported when any other of its names is used."""

    def is_compile_supported(self, device: str) -> bool:
        return self._module().is_compile_supported(device)

    def disable(self, function: Callable | None = None, *args: object, **options: object):
        """The function, which the compiler, should there be one by then, passes over."""
        if not callable(function):
            return self._module().disable(function, *args, **options)

        @functools.wraps(function)
        def passed_over(*given: object, **named: object) -> object:
            if self.__name__ not in sys.modules:  # nothing is compiled
                return function(*given, **named)
            disabled = self._module().disable(function, *args, **options)
            return disabled(*given, **named)

        passed_over._torchdynamo_disable = True
        return passed_over

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(name)
        return getattr(self._module(), name)

    def _module(self) -> ModuleType:
        stand_ins = {name: sys.modules.get(name) for name in COMPILER}
        _remove({name: each for name, each in stand_ins.items() if isinstance(each, _StandIn)})
        return importlib.import_module(self.__name__)


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
