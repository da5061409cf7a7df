"""Read a file of weights, and never the code in it.

A pickle may ask for any function of any module to be called. torch's reader of weights refuses all
but its own few. What people keep beside weights (settings, counters, paths, histories) is let
through: numbers and arrays of numpy as they are, and objects of unknown classes as empty stand-ins,
whose modules are never imported. Whatever names a module that could do something is refused.
"""

import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from vitexplain.errors import ModelError, one_line

SAVE = "save model.state_dict() with torch.save, and pass that file"
# of the standard library, modules whose objects are data; the others might do something
PLAIN = {
    "argparse",
    "array",
    "collections",
    "copyreg",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "pathlib",
    "types",
    "typing",
    "uuid",
}
BUILTINS = (bool, bytearray, complex, dict, float, frozenset, int, list, range, set, slice, str,
            tuple, object)  # fmt: skip
WHOLE = ("torch.nn.modules.", "timm.", "torchvision.models.", "transformers.models.", "torch.jit")
# the beginnings of files that people pass for weights
OTHERS = {
    (b"version https://git-lfs",): "is a pointer of Git LFS, not the file itself: git lfs pull",
    (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"): "is a web page: download the file itself",
    (b"\x89HDF",): f"is of Keras or HDF5: copy its weights into timm's model; {SAVE}",
}
OTHERS_BY_NAME = {
    (".onnx",): f"is of ONNX, which keeps no names of weights that fit timm's: {SAVE}",
    (".npz",): f"is of numpy: for Google's, call the model's load_pretrained(path); then {SAVE}",
    (".tflite", ".pb", ".mlmodel", ".engine"): f"is compiled for another program: {SAVE}",
}
MOST = 200  # classes that a file may name
LONGEST = 240  # characters of torch's own words within a message


class CheckpointError(ModelError):
    """The file can't be read, or doesn't hold the weights of the model; the message says why."""


class StandIn:
    """In place of an object that is not needed, whatever its class."""

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


def read_file(path: Path) -> dict:
    """What a file of weights holds: tensors by name, or nested in other entries.

    Raises:
        CheckpointError: if it is none, can't be read, or holds code.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is no file")
    other = _other_format(path)
    if other:
        raise CheckpointError(f"checkpoint {path} can't be read: it {other}")
    try:
        found = _safetensors(path) if _is_safetensors(path) else _pickled(path)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # the readers raise almost anything on damaged files
        raise CheckpointError(f"checkpoint {path} can't be read: {_reason(error)}") from error
    if isinstance(found, list | tuple) and len(found) and isinstance(found[0], dict):
        found = found[0]  # (weights, settings)
    if isinstance(found, StandIn) or not isinstance(found, dict):
        raise CheckpointError(f"checkpoint {path} holds no tensors by name: {SAVE}")
    return dict(found)


def _other_format(path: Path) -> str:
    """What a file is that is none of torch's, and what helps, as the end of a sentence."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        return "is empty: it was not written, or not downloaded, to its end"
    for beginnings, told in OTHERS.items():
        if start.startswith(beginnings):
            return told
    suffix = path.suffix.lower()
    return next((told for suffixes, told in OTHERS_BY_NAME.items() if suffix in suffixes), "")


def _reason(error: Exception) -> str:
    """What is wrong, without torch's advice on how to run code from files."""
    if not isinstance(error, UnpicklingError):
        return one_line(error, LONGEST)
    _, found, reason = str(error).partition("WeightsUnpickler error:")
    reason = one_line(reason.partition("Check the documentation")[0], LONGEST)
    return f"it is no file of weights ({reason})" if found else "it is no file of weights"


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**27


def _safetensors(path: Path) -> dict:
    try:
        return load_file(path)
    except SafetensorError:
        with safe_open(path, "pt"):  # says it in its own words
            raise


def _pickled(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CheckpointError(
                    f"checkpoint {path} is a TorchScript archive, which is code: {SAVE}"
                )
    named: dict[str, Callable] = {}
    kind: Callable = StandIn
    while True:
        try:
            with (
                torch.serialization.safe_globals([*_data(), *((v, k) for k, v in named.items())]),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # of storages that torch will read differently
                return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            text = str(error)
            other = _other_kind(text)
            if other is not None and kind is StandIn and named:
                kind = other
                named = dict.fromkeys(named, kind)
                continue
            unknown = _unknown_global(text)
            if unknown is None or unknown in named or len(named) >= MOST:
                raise
            named[_harmless(unknown, path)] = kind


def _data() -> list:
    """What is let through as it is."""
    numbers = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDGSUOMm"]
    return [
        *BUILTINS,
        *dict.fromkeys(numbers),
        np.dtype,
        np.ndarray,
        (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
        (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
        (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        (np._core.multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
        (_ordinary_dict, "collections.defaultdict"),
        *((each, f"builtins.{each.__name__}") for each in BUILTINS),
    ]


def _ordinary_dict(*_) -> OrderedDict:
    return OrderedDict()


def _other_kind(text: str) -> Callable | None:
    """What a stand-in must be, as a file fills it with entries."""
    if "StandIn" not in text:
        return None
    if "SETITEM" in text:
        return OrderedDict
    return list if "append" in text or "extend" in text else None


def _unknown_global(text: str) -> str | None:
    found = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", text)
    return found and found[1]


def _harmless(name: str, path: Path) -> str:
    """The name of a class that may be stood in for, or CheckpointError."""
    if name.startswith(WHOLE):
        raise CheckpointError(f"checkpoint {path} holds a whole model, which is code: {SAVE}")
    root = name.partition(".")[0]
    if (root in sys.stdlib_module_names and root not in PLAIN) or root in ("torch", "numpy"):
        raise CheckpointError(
            f"checkpoint {path} can't be read: it names {name}, which may be code, beside its "
            f"weights; {SAVE}"
        )
    return name
