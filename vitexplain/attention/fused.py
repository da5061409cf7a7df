"""Attention fused over its heads in the course of a pass, without ever holding it as a whole.

Rollout reads each block's attention once, fused over the heads; gradient rollout that of A * dA.
For both a few heads at a time are enough: (B, H, N, N) never exists, which at 1370 tokens is the
difference between 50 MB and 540 MB. timm's fused attention is one call,
`scaled_dot_product_attention`; within `fuse_attention` that call is answered here. Its result goes
on into the model, so what is captured is what the model computed with.

Gradients: the forward pass keeps queries, keys and values, as fused attention itself does, and
the backward pass computes attention and its gradient again, head by head (Dao et al. 2022,
"FlashAttention", section 3.1 and appendix B.2, without its tiles).

For models whose blocks all call that function; the others, and whoever has hooks of their own on
the attention, go through vitexplain.attention.capture.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitexplain.attention.capture import Factor, check_all_seen, layers_named, prepare
from vitexplain.attention.tokens import WINDOWED, TokenLayout, UnsupportedModel, blocks_of

CHUNK = 4 * 2**20  # bytes of attention worked on at once: they should stay in the cache
Part = tuple[slice, slice, slice]  # some of the images, of their heads, of the rows
ROUGH_FROM = 1024  # tokens from which on gradients may be in bfloat16


class Enough(Exception):
    """The last attention was seen, and nothing behind it is wanted."""


@dataclass
class FusedAttention:
    """What a pass left behind: of every block, and of the pool if there is one.

    Attributes:
        blocks: the parallel branches of each block (one in almost all models), (B, N, N).
        pool: (B, 1, pooled tokens).
    """

    model: nn.Module
    layout: TokenLayout
    blocks: list[list[Tensor]] = field(default_factory=list)
    pool: Tensor | None = None

    def factors(self, start_block: int = 0) -> list[Factor]:
        """(B, N, N) of the blocks: branches are summed in the residual stream.

        Raises:
            UnsupportedModel: if some block's attention was not seen, or is not finite.
        """
        check_all_seen(self.model, self.blocks)
        summed = [sum(branches[1:], branches[0]) for branches in self.blocks]
        if not all(bool(matrix.sum().isfinite()) for matrix in summed):
            raise UnsupportedModel(self.model, "its attention is not finite")
        return [Factor(matrix) for matrix in summed[start_block:]]


def can_fuse(model: nn.Module, layer_name: str) -> bool:
    """True if all of the model's attention is one call, and nobody else looks at it."""
    if isinstance(model, WINDOWED) or layer_name != "attn_drop":
        return False
    for number, block in enumerate(blocks_of(model)):
        layers = layers_named(block, f"blocks.{number}", layer_name)
        if not layers or not all(map(_is_plain, layers)):
            return False
    return True


def _is_plain(layer: nn.Module) -> bool:
    """A dropout that does what it says, and that nobody hooked."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return isinstance(layer, nn.Dropout | nn.Identity) and not hooks


@contextmanager
def fuse_attention(
    model: nn.Module, layout: TokenLayout, head_fusion: str, *, only_attention: bool = False
) -> Iterator[FusedAttention]:
    """Fill a FusedAttention with fused attention in the course of one forward pass.

    Args:
        only_attention: nothing behind the last attention is wanted: the pass ends there, with
            `Enough`.
    """
    found = FusedAttention(model, layout)
    with ExitStack() as undo:
        prepare(model, undo, freeze=False, fused=True)

        def attend(place: list[Tensor], last: bool, rows: int, *qkv_and_more) -> Tensor:
            end = only_attention and last
            output, fused = _attend(*qkv_and_more, head_fusion, rows=0 if end else rows)
            place.append(fused)
            if end:
                raise Enough
            return output

        pool: list[Tensor] = []
        answer_calls(model, layout, undo, found.blocks, pool, attend)
        try:
            yield found
        finally:
            found.pool = pool[0] if pool else None


class WeightedPass:
    """A forward pass that can be asked for the fused (A * dy/dA)^+ of as many y as one likes."""

    def __init__(self, model: nn.Module, layout: TokenLayout, head_fusion: str, *, exact: bool):
        self.model, self.layout, self.head_fusion = model, layout, head_fusion
        first = next(model.parameters())
        can = layout.tokens >= ROUGH_FROM and first.dtype == torch.float32
        self.rough = torch.bfloat16 if can and not exact and _has_bf16(first.device) else None
        self.start: Tensor | None = None
        self.places: list[list] = []  # of each block, one entry for each of its branches
        self.pool: list = []
        self.queries: list[int] = []  # of each attention, how many tokens ask
        self.fused: dict[int, Tensor] = {}  # of each attention, filled by a backward pass

    @contextmanager
    def recording(self) -> Iterator["WeightedPass"]:
        """In it, one forward pass is recorded; parameters are frozen until it ends."""
        with ExitStack() as undo:
            prepare(self.model, undo, freeze=True, fused=True)

            def attend(place: list, _last: bool, rows: int, query: Tensor, *more) -> Tensor:
                if self.start is None:  # autograd begins at the first attention
                    self.start = torch.zeros((), device=query.device, requires_grad=True)
                number = len(self.queries)
                self.queries.append(query.shape[2])
                place.append(number)
                return _Weighted.apply(self.start, query[:, :, :rows], *more, self, number)

            answer_calls(self.model, self.layout, undo, self.places, self.pool, attend, self.rough)
            yield self

    def weigh(self, score: Tensor, *, again: bool) -> FusedAttention:
        """One backward pass from the scalar `score`; `again`: there will be another one."""
        torch.autograd.grad(score, [self.start], retain_graph=again)
        blocks = [[self._whole(number) for number in numbers] for numbers in self.places]
        pool = self._whole(self.pool[0]) if self.pool else None
        return FusedAttention(self.model, self.layout, blocks, pool)

    def _whole(self, number: int) -> Tensor:
        """(B, N, N): no category depends on rows that nobody reads."""
        fused = self.fused.pop(number)
        return F.pad(fused, (0, 0, 0, self.queries[number] - fused.shape[1]))


def answer_calls(
    model: nn.Module,
    layout: TokenLayout,
    undo: ExitStack,
    blocks: list[list],
    pool: list,
    attend: Callable,
    rough: torch.dtype | None = None,
) -> None:
    """Let `attend` answer the attention calls of the blocks, and of the pool.

    Args:
        rough: precision of the linear layers' backward passes; None for their own.
    """
    places: dict[nn.Module, tuple[list, int, int]] = {}  # module -> place, its calls, query tokens
    for number, block in enumerate(blocks_of(model)):
        blocks.append([])
        calls = len(layers_named(block, f"blocks.{number}", "attn_drop"))
        places[block] = (blocks[-1], calls, layout.tokens)
    last = list(places)[-1]
    read = layout.tokens
    if layout.pooled_tokens:
        last = model.attn_pool
        places[last] = (pool, 1, 1)
    elif len(layout.readout_rows) < layout.tokens // 2 and _can_narrow(last):
        read = len(layout.readout_rows)
        _narrow(last, read, layout.tokens, undo)

    def answer(module: nn.Module, query, key, value, attn_mask=None, scale=None, **other):
        place, calls, queries = places[module]
        keys = layout.pooled_tokens if queries == 1 else layout.tokens
        _check(model, query, key, queries, keys, any(other.values()))
        if len(place) == calls:
            raise UnsupportedModel(model, "a block's attention ran twice in one pass")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        end = module is last and len(place) == calls - 1
        rows = min(read, queries) if module is last else queries
        bias = _as_bias(attn_mask, query)
        output = attend(place, end, rows, query, key, value, bias, scale)
        return F.pad(output, (0, 0, 0, queries - rows)) if rows < queries else output

    mode = _Calls(answer, rough)
    for module in places:
        undo.callback(module.register_forward_pre_hook(mode.enter_module).remove)
        undo.callback(module.register_forward_hook(mode.leave_module).remove)
    undo.enter_context(mode)


def _can_narrow(block: nn.Module) -> bool:
    """True for the ordinary block: attention with a projection, then an MLP."""
    attention = getattr(block, "attn", None)
    parts = (getattr(attention, "proj", None), getattr(block, "mlp", None))
    return all(isinstance(part, nn.Module) for part in parts)


def _narrow(block: nn.Module, read: int, tokens: int, undo: ExitStack) -> None:
    """Behind its attention let the last block compute the tokens that the head reads, no others.

    These are the first ones. Where the others were, zeros go on, which nobody reads.
    """

    def first(_layer, inputs):
        return (inputs[0][:, :read], *inputs[1:])

    def padded(_layer, _inputs, output):
        return F.pad(output, (0, 0, 0, tokens - read))

    for layer in (block.attn.proj, block.mlp):
        undo.callback(layer.register_forward_pre_hook(first).remove)
        undo.callback(layer.register_forward_hook(padded).remove)


class _Calls(TorchFunctionMode):
    """Hands the attention calls that are made within certain modules to `answer`."""

    def __init__(self, answer: Callable[..., Tensor], rough: torch.dtype | None):
        super().__init__()
        self.answer, self.rough, self.module = answer, rough, None

    def enter_module(self, module: nn.Module, _inputs) -> None:
        self.module = module

    def leave_module(self, *_) -> None:
        self.module = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention and self.module is not None:
            return self.answer(self.module, *args, **(kwargs or {}))
        if func is F.linear and self.rough and not kwargs and args[0].requires_grad:
            return _RoughLinear.apply(*args, *[None] * (3 - len(args)), self.rough)
        return func(*args, **(kwargs or {}))


def _check(model, query: Tensor, key: Tensor, queries: int, keys: int, other: bool) -> None:
    """The acceptance test: attention over just these tokens, heads and images apart."""
    fits = query.ndim == key.ndim == 4 and query.shape[:2] == key.shape[:2]
    if other or not fits or (query.shape[2], key.shape[2]) != (queries, keys):
        raise UnsupportedModel(
            model, f"captured attention of {tuple(query.shape)} to {tuple(key.shape)} "
            f"where {queries} tokens to {keys} were due"
        )  # fmt: skip


def _as_bias(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """An attention mask as what is added to the scores, (B or 1, H or 1, N, N)."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, float("-inf"))


def _parts(query: Tensor, keys: int) -> Iterator[Part]:
    """Pieces of the attention: several heads, or some of the rows of one.

    On a CPU of one image for each thread, whose attention then stays in the cache from its
    scores on.
    """
    batch, heads, queries, _ = query.shape
    images = min(torch.get_num_threads(), batch) if query.device.type == "cpu" else batch
    rows = max(1, CHUNK // (images * keys * query.element_size()))
    step = max(1, rows // queries)
    starts = product(range(0, batch, images), range(0, heads, step), range(0, queries, rows))
    for image, head, row in starts:
        yield slice(image, image + images), slice(head, head + step), slice(row, row + rows)


def _softmax(query: Tensor, key: Tensor, bias: Tensor | None, scale: float, part: Part) -> Tensor:
    """Attention (b, h, n, N) of some of the images, heads and rows."""
    images, heads, rows = part
    scores = (query[part] * scale) @ key[images, heads].transpose(-2, -1)
    if bias is not None:
        bias = bias[images] if bias.shape[0] > 1 else bias
        scores += (bias[:, heads] if bias.shape[1] > 1 else bias)[:, :, rows]
    return scores.softmax(dim=-1)


class _Heads:
    """Fuses heads that come in pieces, the first head's before the others'."""

    OF_SEVERAL: ClassVar = {"mean": torch.sum, "max": torch.amax, "min": torch.amin}
    OF_TWO: ClassVar = {"mean": torch.add, "max": torch.maximum, "min": torch.minimum}

    def __init__(self, head_fusion: str, query: Tensor, keys: int):
        batch, self.count, queries, _ = query.shape
        self.head_fusion = head_fusion
        self.fused = query.new_empty(batch, queries, keys, dtype=torch.float32)

    def add(self, values: Tensor, part: Part) -> None:
        """values: (b, h, n, N)."""
        images, heads, rows = part
        into = self.fused[images, rows]
        fuse = self.OF_SEVERAL[self.head_fusion]
        values = values.float()
        if heads.start == 0:
            fuse(values, dim=1, out=into)
        else:
            values = fuse(values, dim=1) if values.shape[1] > 1 else values[:, 0]
            self.OF_TWO[self.head_fusion](into, values, out=into)

    def result(self) -> Tensor:
        return self.fused.div_(self.count) if self.head_fusion == "mean" else self.fused


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, head_fusion: str,
    *, rows: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first `rows` of attention's output (B, H, rows, d), and the fused matrix (B, N, N)."""
    fused = _Heads(head_fusion, query, key.shape[2])
    batch, heads = query.shape[:2]
    # heads beside each other in memory, as the projection behind it wants them
    output = query.new_empty(batch, rows, heads, value.shape[3]).transpose(1, 2)
    for part in _parts(query, key.shape[2]):
        attention = _softmax(query, key, bias, scale, part)
        here = output[part]
        here.copy_(attention[:, :, : here.shape[2]] @ value[part[:2]])
        fused.add(attention, part)
    return output, fused.result()


class _Weighted(torch.autograd.Function):
    """Attention whose backward pass also leaves the fused (A * dA)^+ with its WeightedPass."""

    @staticmethod
    def forward(ctx, _start, query, key, value, bias, scale, owner, number):
        bias = None if bias is None else bias[:, :, : query.shape[2]]
        ctx.save_for_backward(query, key, value, bias)
        ctx.scale, ctx.owner, ctx.number = scale, owner, number
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)

    @staticmethod
    def backward(ctx, slope):
        query, key, value, bias = ctx.saved_tensors
        fused = _Heads(ctx.owner.head_fusion, query, key.shape[2])
        wanted = any(ctx.needs_input_grad[1:4])  # not for the first one: nothing is before it
        slopes = [torch.zeros_like(t) if wanted else None for t in (query, key, value)]
        rough = ctx.owner.rough  # lower precision for all products behind the softmax
        products = [t.to(rough or t.dtype) for t in (query * ctx.scale, key, value, slope)]
        for part in _parts(query, key.shape[2]):
            attention = _softmax(query, key, bias, ctx.scale, part)
            whole = part[:2]  # all rows of its heads
            asked, up = products[0][part], products[3][part]
            keys, values = products[1][whole], products[2][whole]
            weighted = (up @ values.transpose(-2, -1)).to(attention.dtype)
            weighted *= attention  # A * dA
            if wanted:
                slopes[2][whole] += attention.to(up.dtype).transpose(-2, -1) @ up
                attention *= weighted.sum(dim=-1, keepdim=True)
                scores = torch.sub(weighted, attention, out=attention).to(up.dtype)
                slopes[0][part] = (scores @ keys).to(slope.dtype) * ctx.scale
                slopes[1][whole] += scores.transpose(-2, -1) @ asked
            fused.add(weighted.clamp_(min=0), part)
        ctx.owner.fused[ctx.number] = fused.result()
        return torch.zeros_like(ctx.owner.start), *slopes, None, None, None, None


class _RoughLinear(torch.autograd.Function):
    """A linear layer with frozen weights whose backward pass is in lower precision."""

    @staticmethod
    def forward(ctx, inputs, weight, bias, rough):
        ctx.save_for_backward(weight)
        ctx.rough = rough
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx, slope):
        (weight,) = ctx.saved_tensors
        return (slope.to(ctx.rough) @ weight.to(ctx.rough)).to(slope.dtype), None, None, None


def _has_bf16(device: torch.device) -> bool:
    """True for a processor that calculates in bfloat16, several times as fast as in float32."""
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
