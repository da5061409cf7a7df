"""Capture the attention matrices of a timm ViT.

timm computes attention either fused (`scaled_dot_product_attention`: there is no matrix to see)
or explicitly, where the softmaxed matrix passes through the module `attn_drop`. In evaluation
mode dropout is the identity, so what passes there is softmax(QK^T / sqrt(d)) itself. Inside
`capture_attention` the explicit path is on and hooked; afterwards, also after an error, the model
is as it was found. (vitexplain.attention.intercept captures the fused path, with less memory.)

Shapes: B images, H heads, N tokens = P prefix tokens (class, distillation, registers) followed
by h*w patches in row-major order. An attention matrix is (B, H, N, N), rows = queries, columns =
keys, every row summing to 1. Block 1 comes first. Swin's is of windows: (B*W, H, A, A).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitexplain.attention.tokens import WINDOWED, TokenLayout, UnsupportedModel, blocks_of
from vitexplain.attention.windows import merging, windows_of
from vitexplain.errors import RequestError

ATTENTION_LAYER = "attn_drop"  # through which timm's attention passes


@dataclass(frozen=True)
class Factor:
    """One factor of the rollout's product.

    Attributes:
        matrix: a block's attention, heads fused, (B, N, N); or (N', N), how N tokens are merged
            into fewer, which has no residual connection.
        paths: how many entries of a block's matrix can be other than 0; None for all.
    """

    matrix: Tensor
    paths: int | None = None


@dataclass(frozen=True)
class AttentionFactors:
    """The attention of one pass as rollout multiplies it, however it was captured.

    Attributes:
        factors: the first block's first.
        pool: (B, 1, pooled tokens), the pooling query's attention, heads fused; None without an
            attention pool.
    """

    factors: list[Factor]
    pool: Tensor | None = None


@dataclass
class CapturedAttention:
    """The attention of one forward pass inside `capture_attention`.

    Attributes:
        branches: for each block, the attention of each of its parallel branches (one in almost
            all models), as `reduce` made it.
        pool: (B, H, 1, pooled tokens), the pooling query's attention; None without such a pool.
        grids: the grid (h, w) of each block's input, in models with windows.
    """

    model: nn.Module
    layout: TokenLayout
    branches: list[list[Tensor]] = field(default_factory=list)
    pool: Tensor | None = None
    grids: list[tuple[int, int]] = field(default_factory=list)
    sound: list[Tensor] = field(default_factory=list)  # whether the rows of each matrix sum to 1

    def blocks(self) -> list[list[Tensor]]:
        """The branches of every block, checked to be complete.

        Raises:
            UnsupportedModel: if the attention of some block did not pass the hook exactly once, or
                is not softmaxed.
        """
        check_all_seen(self.model, self.branches, "at its attn_drop")
        if self.sound:  # read here, together: within the pass a GPU would have to wait each time
            check_sound(self.model, torch.stack(self.sound))
            self.sound.clear()
        if self.layout.pooled_tokens and self.pool is None:
            raise UnsupportedModel(self.model, "the attention of its pooling was not seen")
        return self.branches

    def summed(self) -> list[Tensor]:
        """One matrix for each block, checked as by `blocks`."""
        return sum_branches(self.blocks())

    def gradients(self, score: Tensor, *, again: bool) -> tuple[list[list[Tensor]], Tensor | None]:
        """The gradients of a scalar with respect to all that was captured.

        Args:
            score: made of the logits of a pass with `track_gradient`.
            again: there will be another backward pass.

        Returns:
            as `blocks` gives the attention of each block's branches, and as in `pool`.
        """
        blocks = self.blocks()
        matrices = [matrix for branches in blocks for matrix in branches]
        if self.pool is not None:
            matrices.append(self.pool)
        gradients = iter(torch.autograd.grad(score, matrices, retain_graph=again))
        of_blocks = [[next(gradients) for _ in branches] for branches in blocks]
        return of_blocks, next(gradients, None)

    def factors(
        self, matrices: Sequence[Tensor], pool: Tensor | None = None, start_block: int = 0
    ) -> AttentionFactors:
        """The rollout's factors, from one matrix for each block, heads fused, block 1 first.

        Blocks before `start_block` are left out, but not the merging of tokens after them.

        Args:
            matrices: (B, N, N) each; (B*W, A, A) of windows.
            pool: (B, 1, pooled tokens).
        """
        if not self.grids:
            return AttentionFactors([Factor(matrix) for matrix in matrices[start_block:]], pool)
        factors: list[Factor] = []
        before = self.grids[0]
        for number, (grid, block) in enumerate(zip(self.grids, blocks_of(self.model), strict=True)):
            if grid != before:
                factors.append(Factor(merging(*before, matrices[number].device)))
                before = grid
            if number >= start_block:
                windows = windows_of(block, *grid)
                factors.append(Factor(windows.spread(matrices[number]), windows.paths))
        return AttentionFactors(factors, pool)


def sum_branches(blocks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """One matrix for each block, from those of its parallel branches.

    What the branches add is summed in the residual stream, so their attention is summed, too.
    """
    return [sum(branches[1:], branches[0]) for branches in blocks]


def check_all_seen(model: nn.Module, branches: Sequence[Sequence], where: str) -> None:
    """Raise UnsupportedModel unless the attention of every block was seen."""
    if not all(branches):
        seen = sum(map(bool, branches))
        reason = f"the attention of only {seen} of its {len(branches)} blocks was seen {where}"
        raise UnsupportedModel(model, reason)


@contextmanager
def capture_attention(
    model: nn.Module,
    layout: TokenLayout,
    layer_name: str = ATTENTION_LAYER,
    *,
    reduce: Callable[[Tensor], Tensor] = lambda attention: attention,
    track_gradient: bool = False,
) -> Iterator[CapturedAttention]:
    """Record the attention of one forward pass of `model`, and leave the model as it was.

    Args:
        model: one that `vitexplain.attention.tokens.check_supported` lets pass.
        layout: of the input that will be passed, see `token_layout`.
        layer_name: part of the name of the modules that the softmaxed attention passes through.
        reduce: applied at once to each (B, H, N, N), so that rollout need not keep all heads.
        track_gradient: make every captured matrix differentiable. Autograd then starts at the
            first attention matrix, and the parameters are frozen meanwhile.

    Yields:
        CapturedAttention, filled by the forward pass.

    Raises:
        UnsupportedModel: if a matrix is not softmaxed attention over the tokens of `layout`.
        RequestError: if no module of the blocks is named `layer_name`.
    """
    captured = CapturedAttention(model, layout)
    with ExitStack() as undo:
        undo.enter_context(inference_state(model, freeze=track_gradient))
        for number, block in enumerate(blocks_of(model)):
            tokens = layout.tokens
            if isinstance(model, WINDOWED):
                tokens = block.window_area
                undo.callback(block.register_forward_pre_hook(_see_grid(captured)).remove)
            layers = layers_named(block, f"blocks.{number}", layer_name)
            if not layers and layer_name == ATTENTION_LAYER:
                raise UnsupportedModel(
                    model, f"the attention of its block {number} passes no {ATTENTION_LAYER}"
                )
            if not layers:
                raise RequestError(
                    f"attention_layer_name={layer_name!r} names no module of block {number}; "
                    "timm's attention passes through 'attn_drop'"
                )
            kept: list[Tensor] = []
            captured.branches.append(kept)

            def see(_layer, _inputs, attention, kept=kept, branches=layers, tokens=tokens):
                captured.sound.append(sums_to_1(model, attention, (tokens, tokens)))
                if len(kept) == len(branches):
                    raise UnsupportedModel(model, "a block's attention ran twice in one pass")
                if track_gradient and not attention.requires_grad:
                    attention = attention.detach().requires_grad_()
                kept.append(reduce(attention))
                return attention

            for layer in layers:
                undo.callback(layer.register_forward_hook(see).remove)
        if layout.pooled_tokens:
            _capture_pool(model.attn_pool, captured, undo)
        yield captured


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """model(images), where a size that timm refuses is a RequestError in timm's words."""
    try:
        return model(images)
    except AssertionError as error:
        height, width = images.shape[2:]
        raise RequestError(f"the model does not take {height}x{width} images: {error}") from error


def layers_named(block: nn.Module, prefix: str, layer_name: str) -> list[nn.Module]:
    """The modules of a block whose names, from the model on, contain `layer_name`."""
    found: dict[nn.Module, None] = {}

    def walk(module: nn.Module, name: str) -> None:  # in half the time of named_modules
        if layer_name in name:
            found[module] = None
        for key, child in module._modules.items():
            if child is not None:
                walk(child, f"{name}.{key}")

    walk(block, prefix)
    return list(found)


@contextmanager
def inference_state(model: nn.Module, *, freeze: bool, fused: bool = False) -> Iterator[None]:
    """In it the model is in evaluation mode; afterwards all is as it was found.

    Args:
        freeze: parameters need no gradients meanwhile.
        fused: attention is computed fused, not explicitly.
    """
    with ExitStack() as undo:

        def set_(owner, name, value):
            if vars(owner)[name] is not value:
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)

        for module in model.modules():
            state = vars(module)  # many times as fast as getattr, which asks for weights, too
            # train mode would give attention after dropout: not what the model sees at inference
            set_(module, "training", False)
            if isinstance(state.get("fused_attn"), bool):
                set_(module, "fused_attn", fused)
            if state.get("grad_checkpointing"):
                set_(module, "grad_checkpointing", False)  # it would run the blocks a second time
        if freeze:
            for parameter in filter(_needs_gradient, model.parameters()):
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
        yield


def _needs_gradient(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def _see_grid(captured: CapturedAttention) -> Callable:
    def see_grid(_block, inputs):
        captured.grids.append(tuple(inputs[0].shape[1:3]))  # (B, h, w, C)

    return see_grid


def check_sound(model: nn.Module, sound: Tensor) -> None:
    """The acceptance test: nothing but softmaxed attention passes; see sums_to_1."""
    if not bool(sound.all()):
        raise UnsupportedModel(model, "rows of the captured attention do not sum to 1")


def sums_to_1(model: nn.Module, attention: Tensor, shape: tuple[int, int]) -> Tensor:
    """Whether the rows of attention (B, H, *shape) do, a tensor without dimensions.

    Raises:
        UnsupportedModel: if it has another shape.
    """
    if not (isinstance(attention, Tensor) and attention.ndim == 4 and attention.shape[2:] == shape):
        found = tuple(attention.shape) if isinstance(attention, Tensor) else type(attention)
        due = f"(B, H, {shape[0]}, {shape[1]})"
        raise UnsupportedModel(model, f"captured {found} where attention {due} was due")
    tolerance = 1e-3 if attention.dtype == torch.float32 else 2e-2
    row_sums = attention.detach().sum(-1, dtype=torch.float32)
    return ((row_sums - 1).abs() <= tolerance).all()  # False for NaN and inf, too


def _capture_pool(pool: AttentionPoolLatent, captured: CapturedAttention, undo: ExitStack) -> None:
    """Record the attention of the pooling query, which passes no module that could be hooked."""
    pool.fused_attn = True  # the fused call can be replaced; inference_state restores the flag
    forward = pool.forward

    def visible_forward(*args, **kwargs):
        with _ExplicitAttention(captured):
            return forward(*args, **kwargs)

    pool.forward = visible_forward  # shadows the class's method; removing it restores that
    undo.callback(delattr, pool, "forward")


class _ExplicitAttention(TorchFunctionMode):
    """Computes scaled_dot_product_attention explicitly and keeps the matrix."""

    def __init__(self, captured: CapturedAttention):
        super().__init__()
        self.captured = captured

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args  # (B, H, 1, d), (B, H, K, d), (B, H, K, d)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        attention = scores.softmax(dim=-1)  # (B, H, 1, K)
        if torch.is_grad_enabled() and not attention.requires_grad:
            attention = attention.detach().requires_grad_()
        self.captured.pool = attention
        return attention @ value
