"""A pretended GPU: tensors that say they are on a device, and calculate on the CPU.

Mixing devices raises, as on a GPU. Kernel launches, synchronisations and copies between host and
device are counted, with the line of this project that caused them.

Factories, autograd and dispatch reach it through torch's own backend for Python, "PrivateUse1".
"""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
PACKAGE = str(Path(__file__).resolve().parent.parent)
# calls that only make another view, or memory without contents: no kernel runs
NO_KERNEL = frozenset(
    "detach alias view _unsafe_view t transpose permute expand slice select unsqueeze squeeze "
    "split unbind as_strided lift_fresh _reshape_alias split_with_sizes unfold diagonal chunk "
    "empty _fused_sdp_choice empty_like new_empty empty_strided new_empty_strided".split()
)
# what the host must wait for: values that it reads, or a result whose size depends on them
WAITS = frozenset("_local_scalar_dense is_nonzero nonzero masked_select equal".split())
INDEXING = frozenset("index index_put index_put_ _index_put_impl_".split())


class OnDevice(torch.Tensor):
    """A tensor on the pretended device; `elem` holds its values."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device(NAME, 0),
        )
        made.elem = elem
        return made

    def tolist(self):
        PretendedDevice.current.note("waits", "tolist")
        return self.elem.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        device = PretendedDevice.current
        with device:  # also in a backward pass, where modes are off
            return device.__torch_dispatch__(func, types, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class PretendedDevice(TorchDispatchMode):
    """Answers every operation on the device, and counts.

    Attributes:
        launches, waits, to_device, to_host: name of the operation and line -> how often.
    """

    current: "PretendedDevice"

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self):
        self.launches, self.waits = Counter(), Counter()
        self.to_device, self.to_host = Counter(), Counter()

    def note(self, kind, name):
        getattr(self, kind)[name, _line()] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        there = [each for each in tensors if isinstance(each, OnDevice)]
        device = kwargs.get("device")
        device = None if device is None else torch.device(device)
        to_device = device is not None and device.type == NAME
        if not there and not to_device:
            return func(*args, **kwargs)
        name = func.overloadpacket._qualified_op_name.partition("::")[2]
        if name not in ("_to_copy", "scaled_dot_product_attention"):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if name == "_fused_sdp_choice":
            return 0
        self._count(name, args, there, device)
        self._check(func, name, args, tensors)
        stays = to_device or (there and device is None)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if name == "_to_copy" and any(result is _values(each) for each in tensors):
            result = result.clone()
        known = {id(each.elem): each for each in there}
        return tree_map(lambda t: _wrapped(t, known), result) if stays else result

    def _count(self, name, args, there, device):
        if name in WAITS:
            self.note("waits", name)
        elif name == "_to_copy" and there and device is not None and device.type == "cpu":
            self.note("to_host", name)
            self.note("waits", name)
        if (name == "_to_copy" and not there) or (
            name == "copy_" and not isinstance(args[1], OnDevice)
        ):
            self.note("to_device", name)
        if name not in NO_KERNEL:
            self.note("launches", name)

    def _check(self, func, name, args, tensors):
        """Raise RuntimeError where tensors of both devices meet; scalars may."""
        elsewhere = [each for each in tensors if not isinstance(each, OnDevice) and each.ndim]
        if name in INDEXING and isinstance(args[0], OnDevice):
            if elsewhere:
                self.note("to_device", "index")
            return
        if elsewhere and name not in ("_to_copy", "copy_", "lift_fresh"):
            shapes = [tuple(each.shape) for each in elsewhere]
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {func} {shapes} at {_line()}"
            )


def _values(value):
    return value.elem if isinstance(value, OnDevice) else value


def _wrapped(value, known):
    if not isinstance(value, torch.Tensor):
        return value
    return known.get(id(value)) if id(value) in known else OnDevice(value)


def _line():
    """File and line of this project's code, not of its tests, that is at work."""
    frame = sys._getframe(2)
    while frame:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE) and "/tests/" not in name:
            return f"{name[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def moved(model):
    """The model, its weights on the pretended device."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                there = nn.Parameter(OnDevice(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = there
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = OnDevice(buffer.detach())
    return model


@contextmanager
def pretended_device():
    """Inside there is a device; it is yielded, to be asked what it did."""
    _register()
    device = PretendedDevice()
    PretendedDevice.current = device
    before = torch.inference_mode.__enter__
    # a Python backend can't make views of its tensors
    torch.inference_mode.__enter__ = _without_gradients
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with ExitStack() as undo:
            # in a thread of its own, a backward pass would not see the mode
            undo.enter_context(torch.autograd.set_multithreading_enabled(False))
            undo.enter_context(device)
            yield device
    finally:
        torch.inference_mode.__enter__ = before
        torch._C._set_only_lift_cpu_tensors(False)


def _without_gradients(inference_mode):
    context = torch.no_grad() if inference_mode.mode else nullcontext()
    inference_mode._inference_mode_context = context
    context.__enter__()


@cache
def _register():
    _setup_privateuseone_for_python_backend(NAME)
