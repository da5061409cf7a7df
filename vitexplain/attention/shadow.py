"""A shadow of a model: the same weights under modules of its own.

Explaining needs hooks, evaluation mode and frozen parameters. All of these belong to modules, so
they are given to a shadow: the model itself is never touched, and whoever predicts, trains or
explains with it in another thread meanwhile notices nothing.

Weights are shared, not copied: a shadow takes as long as two of a model's layers, and next to no
memory. It is made anew for each pass and shows the model as it then is, hooks of the user's
included.
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from operator import is_
from types import CellType, FunctionType, MethodType

import torch
from torch import Tensor, nn

from vitexplain.errors import RequestError

CONSTANT = frozenset((type(None), bool, int, float, str))
CONTAINERS = frozenset((dict, OrderedDict, set))  # most of what modules hold, and mostly empty


def shadow_of(model: nn.Module, *, own_weights: bool = False) -> nn.Module:
    """The model again, in evaluation mode, frozen, and without compiled code.

    Whatever refers to a module of the model refers to that of the shadow: lists of modules, bound
    methods, functions put in a method's place. Hooks are those of the model; new ones stay apart.

    Args:
        own_weights: copy the weights, so that they can be changed.

    Raises:
        RequestError: if the model has no weights yet (on the "meta" device).
    """
    twins: dict[int, object] = {}  # id of a module or a tensor -> what stands for it
    modules = list(model.modules())
    with torch.inference_mode(False):
        for module in modules:
            twins[id(module)] = object.__new__(type(module))
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and id(tensor) not in twins:
                    twins[id(tensor)] = _twin(tensor, own_weights)
    for module in modules:
        state = vars(twins[id(module)])
        state.update(vars(module))
        for name, value in state.items():
            kind = type(value)
            if kind in CONTAINERS and not value:
                # of its own: a hook of the shadow must not land in the model's dict
                state[name] = kind()
            elif kind not in CONSTANT:
                state[name] = _moved(value, twins)
        state["training"] = False
        if "_compiled_call_impl" in state:
            state["_compiled_call_impl"] = None
    return twins[id(model)]


def _twin(tensor: Tensor, own: bool) -> Tensor:
    """A tensor on the same memory that needs no gradient; a copy where it must be one."""
    if tensor.is_meta:
        raise RequestError("the model has no weights yet: it is on torch's meta device")
    detached = tensor.detach()
    if own or tensor.is_inference():  # autograd can't save tensors of inference mode
        detached = detached.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(detached, requires_grad=False)
    return detached if own else tensor if not tensor.is_inference() else detached


def _moved(value: object, twins: Mapping[int, object]) -> object:
    """The value, with all modules and tensors in it replaced by their twins."""
    kind = type(value)
    if kind in CONSTANT:
        return value
    if isinstance(value, dict):
        new = value.copy()
        for key, each in value.items():
            new[key] = _moved(each, twins)
        return new
    twin = twins.get(id(value))
    if twin is not None:
        return twin
    if kind in (list, tuple, set):
        return kind(_moved(each, twins) for each in value)
    if kind is MethodType and id(value.__self__) in twins:
        return MethodType(value.__func__, twins[id(value.__self__)])
    if kind is partial:
        keywords = {name: _moved(each, twins) for name, each in value.keywords.items()}
        return partial(_moved(value.func, twins), *_moved(value.args, twins), **keywords)
    return _moved_function(value, twins) if kind is FunctionType else value


def _moved_function(function: FunctionType, twins: Mapping[int, object]) -> FunctionType:
    """A function like `model.forward = lambda x: model.head(...)`, about the twin."""
    names, cells = function.__globals__, function.__closure__ or ()
    about = {
        n: twins[id(names[n])] for n in function.__code__.co_names if id(names.get(n)) in twins
    }
    moved_cells = tuple(_moved_cell(cell, twins) for cell in cells)
    if not about and all(map(is_, moved_cells, cells)):
        return function
    moved = FunctionType(
        function.__code__,
        {**names, **about} if about else names,
        function.__name__,
        function.__defaults__,
        moved_cells,
    )
    moved.__kwdefaults__ = function.__kwdefaults__
    return moved


def _moved_cell(cell: CellType, twins: Mapping[int, object]) -> CellType:
    """A variable of an enclosing function, if it is about a twin; else the cell itself."""
    try:
        value = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    if isinstance(value, nn.Module) or type(value) is MethodType:
        moved = _moved(value, twins)
        return cell if moved is value else CellType(moved)
    return cell
