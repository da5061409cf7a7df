"""Answer a model's attention calls, so that attention is captured while the model computes.

timm's fused attention is one call, `torch.nn.functional.scaled_dot_product_attention`. An
`Interceptor` answers that call in torch's place; the model continues with its answer, so that what
is captured is what the model computed with.

This works where all blocks make that call; models whose blocks don't, and models with hooks of
somebody else's on the attention, are captured by vitexplain.attention.capture.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitexplain.attention.capture import (
    AttentionFactors,
    Factor,
    check_all_seen,
    forward,
    layers_named,
    sum_branches,
)
from vitexplain.attention.readout import has_hooks, is_from_timm, is_timms_own
from vitexplain.attention.tokens import WINDOWED, TokenLayout, UnsupportedModel, blocks_of

FUSED_CALL = "scaled_dot_product_attention"


class AttentionCall(NamedTuple):
    """One attention call of a model.

    Attributes:
        query: (B, H, n, d); n = N in blocks, 1 in an attention pool.
        key, value: (B, H, N, d).
        bias: (B or 1, H or 1, n, N), added to the scores; None for none.
        scale: of the scores.
        rows: how many of the first queries' outputs are used further on.
        is_final: nothing after this attention is wanted, not even its output.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    scale: float
    rows: int
    is_final: bool


# answers a call: (output (B, H, rows, d), what is to be kept of it); no output if it is final
Attend = Callable[[AttentionCall], tuple[Tensor | None, Any]]


class ForwardStopped(Exception):
    """Raised to stop the forward pass once the last attention has been captured."""


@dataclass
class _Source:
    """A module that makes attention calls: a block, or the attention pool.

    Attributes:
        calls: how many calls it makes in a pass, one for each of its parallel branches.
        queries, keys: how many tokens attend, to how many.
        kept: what was kept of its calls so far.
    """

    calls: int
    queries: int
    keys: int
    kept: list = field(default_factory=list)


class Interceptor(TorchFunctionMode):
    """Has `attend` answer the attention calls of a model's blocks and pool, in one forward pass.

    The last block only computes the tokens that the classifier pools, as far as its layers allow.

    Args:
        model: one for which `can_intercept` is true, with fused attention on.
        attend: answers each call.
        only_attention: stop the pass at the last attention.
        low_precision: for the linear layers' backward passes; None for their own precision.

    Attributes:
        blocks: for each block, what `attend` kept of each of its parallel branches.
        block_calls: how many calls the blocks will make.
        pool: the same for the attention pool; empty without one.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: TokenLayout,
        attend: Attend,
        *,
        only_attention: bool = False,
        low_precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.model, self.layout, self.attend = model, layout, attend
        self.only_attention, self.low_precision = only_attention, low_precision
        self._sources: dict[nn.Module, _Source] = {}
        for number, block in enumerate(blocks_of(model)):
            calls = len(layers_named(block, f"blocks.{number}", "attn_drop"))
            self._sources[block] = _Source(calls, layout.tokens, layout.tokens)
        self.blocks = [source.kept for source in self._sources.values()]
        self.block_calls = sum(source.calls for source in self._sources.values())
        self.pool: list = []
        if layout.pooled_tokens:
            source = _Source(1, 1, layout.pooled_tokens, self.pool)
            self._sources[model.attn_pool] = source
        self._last = list(self._sources)[-1]
        self._rows = self._rows_of_last()
        self._at_work: nn.Module | None = None  # the source that is computing

    def install(self, undo: ExitStack) -> None:
        """Begin to answer calls; `undo` ends it."""
        if self._rows < self._sources[self._last].queries:
            _narrow(self._last, self._rows, self.layout.tokens, undo)
        for module in self._sources:
            undo.callback(module.register_forward_pre_hook(self._enter).remove)
            undo.callback(module.register_forward_hook(self._leave).remove)
        undo.enter_context(self)

    def run(self, images: Tensor) -> Tensor | None:
        """The logits of one forward pass; None if it stopped at the last attention."""
        with suppress(ForwardStopped):
            return forward(self.model, images)
        return None

    def factors(self, start_block: int = 0) -> AttentionFactors:
        """The rollout's factors, where `attend` kept fused matrices (B, N, N)."""
        pool = self.pool[0] if self.pool else None
        return factors_of(self.model, self.blocks, pool, start_block)

    def _rows_of_last(self) -> int:
        """How many of the last source's queries, from the first on, need an output."""
        queries, pooled = self._sources[self._last].queries, self.layout.readout_rows
        if self.layout.pooled_tokens or len(pooled) >= queries // 2:
            return queries  # all of them, or too many to gain much by leaving others out
        after = (self.model, getattr(self.model, "norm", None))
        if not is_timms_own(self.model) or any(has_hooks(m) for m in after if m is not None):
            return queries  # whoever else may look at them
        are_first = pooled == tuple(range(len(pooled)))
        return len(pooled) if are_first and _can_narrow(self._last) else queries

    def _enter(self, module: nn.Module, _inputs) -> None:
        self._at_work = module

    def _leave(self, *_) -> None:
        self._at_work = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention and self._at_work is not None:
            return self._answer(self._at_work, *args, **(kwargs or {}))
        if func is F.linear and self.low_precision and not kwargs and args[0].requires_grad:
            return _LowPrecisionLinear.apply(*args, *[None] * (3 - len(args)), self.low_precision)
        return func(*args, **(kwargs or {}))

    def _answer(self, module, query, key, value, attn_mask=None, scale=None, **other) -> Tensor:
        source = self._sources[module]
        self._check(source, query, key, other)
        place = len(source.kept)
        if place == source.calls:
            raise UnsupportedModel(self.model, "a block's attention ran twice in one pass")
        is_last = module is self._last
        rows = self._rows if is_last else source.queries
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        is_final = self.only_attention and is_last and place == source.calls - 1
        bias = as_bias(attn_mask, query)
        call = AttentionCall(query, key, value, bias, scale, rows, is_final)
        output, kept = self.attend(call)
        source.kept.append(kept)
        if is_final:
            raise ForwardStopped
        # nobody reads the outputs of the remaining queries, but their shape must fit
        return F.pad(output, (0, 0, 0, source.queries - rows)) if rows < source.queries else output

    def _check(self, source: _Source, query: Tensor, key: Tensor, other: dict) -> None:
        """The acceptance test: attention over just these tokens, heads and images apart."""
        fits = query.ndim == key.ndim == 4 and query.shape[:2] == key.shape[:2]
        expected = (source.queries, source.keys)
        if any(other.values()) or not fits or (query.shape[2], key.shape[2]) != expected:
            raise UnsupportedModel(
                self.model,
                f"captured attention of {tuple(query.shape)} to {tuple(key.shape)} "
                f"where {expected[0]} tokens to {expected[1]} were due",
            )


def can_intercept(model: nn.Module, layer_name: str = "attn_drop") -> bool:
    """True if all of the model's attention is fused calls, and nobody else looks at it.

    Args:
        layer_name: part of the name of the modules through which attention is to be captured; any
            other than timm's own means the explicit path.
    """
    if isinstance(model, WINDOWED) or layer_name != "attn_drop":
        return False
    for number, block in enumerate(blocks_of(model)):
        layers = layers_named(block, f"blocks.{number}", layer_name)
        if not layers or not all(map(_is_plain, layers)) or not _attends_as_timm(block):
            return False
    return True


def _is_plain(layer: nn.Module) -> bool:
    """True for a dropout that nobody replaced or hooked."""
    return isinstance(layer, nn.Dropout | nn.Identity) and not has_hooks(layer)


def _attends_as_timm(block: nn.Module) -> bool:
    """True if the modules that attend, those with a dropout for it, make fused calls."""
    attend = [module for module in block.modules() if "attn_drop" in module._modules]
    forwards = [vars(module).get("forward", type(module).forward) for module in attend]
    return all(is_from_timm(each) or FUSED_CALL in names_in(each) for each in forwards)


def names_in(function: Callable) -> tuple[str, ...]:
    """The names that a function's code mentions."""
    code = getattr(function, "__code__", None)
    return code.co_names if code else ()


def factors_of(
    model: nn.Module, blocks: list[list[Tensor]], pool: Tensor | None, start_block: int
) -> AttentionFactors:
    """The rollout's factors, from each block's parallel branches (B, N, N), heads fused.

    What is not finite in them makes scores that are not finite, see methods.base.finite.

    Raises:
        UnsupportedModel: if some block's attention was not seen.
    """
    check_all_seen(model, blocks, "in fused calls")
    matrices = sum_branches(blocks)
    return AttentionFactors([Factor(matrix) for matrix in matrices[start_block:]], pool)


def as_bias(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """An attention mask as a bias of the scores, (B or 1, H or 1, N, N); False becomes -inf."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, float("-inf"))


def _can_narrow(block: nn.Module) -> bool:
    """True for timm's ordinary block: attention with a projection, then an MLP.

    Nobody else may look at its tokens, nor may a layer mix them.
    """
    attention = getattr(block, "attn", None)
    layers = (getattr(attention, "proj", None), getattr(block, "mlp", None))
    return all(isinstance(layer, nn.Module) for layer in layers) and not any(
        has_hooks(module) or "forward" in vars(module) or not _is_known(module)
        for module in block.modules()
    )


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("timm.", "torch.nn.modules."))


def _narrow(block: nn.Module, rows: int, tokens: int, undo: ExitStack) -> None:
    """After its attention, let a block compute the first `rows` tokens only.

    The others become zeros, which nobody reads in the last block.
    """

    def first(_layer, inputs):
        return (inputs[0][:, :rows], *inputs[1:])

    def padded(_layer, _inputs, output):
        return F.pad(output, (0, 0, 0, tokens - rows))

    for layer in (block.attn.proj, block.mlp):
        undo.callback(layer.register_forward_pre_hook(first).remove)
        undo.callback(layer.register_forward_hook(padded).remove)


class _LowPrecisionLinear(torch.autograd.Function):
    """A linear layer with frozen weights whose backward pass is in lower precision."""

    @staticmethod
    def forward(ctx, inputs, weight, bias, precision):
        ctx.save_for_backward(weight)
        ctx.precision = precision
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        product = gradient.to(ctx.precision) @ weight.to(ctx.precision)
        return product.to(gradient.dtype), None, None, None
