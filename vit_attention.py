"""Capture the attention of a timm ViT, and say what its tokens mean.

timm computes attention either fused (`scaled_dot_product_attention`: there is no matrix to see)
or explicitly, where the softmaxed matrix passes through the module `attn_drop`. In evaluation
mode dropout is the identity, so what passes there is softmax(QK^T / sqrt(d)) itself. Inside
`capture_attention` the explicit path is on and hooked; afterwards, also after an error, the model
is as it was found.

Shapes: B pictures, H heads, N tokens = P prefix tokens (class, distillation, registers) followed
by h*w patches in row-major order. An attention matrix is (B, H, N, N), rows = queries, columns =
keys, every row summing to 1. Block 1 comes first.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import vit_torchvision  # noqa: F401

import torch
from timm.layers import AttentionPoolLatent, DiffAttention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MODELS_THAT_WORK = "deit_tiny_patch16_224, vit_base_patch16_224, vit_small_patch14_dinov2"


class UnsupportedModel(ValueError):
    """The model's attention can't be captured, or doesn't mean what rollout needs it to mean."""

    def __init__(self, model: nn.Module, reason: str):
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        kind = type(model).__name__
        name = f"{name} ({kind})" if name else kind
        super().__init__(
            f"{name} can't be explained: {reason}. Models that work: {MODELS_THAT_WORK}"
        )


@dataclass(frozen=True)
class TokenLayout:
    """What the N tokens of one input are, and which of them the classifier reads.

    Attributes:
        prefix_tokens: P, how many tokens stand before the patches.
        grid: (h, w), the patch grid that the model made of this very input.
        readout_rows: rows of the rollout that the classifier reads, averaged; empty for
            attention pooling, whose own attention is the read-out.
        readout: the same in words.
        pooled_tokens: how many of the last tokens an attention pool looks at (0: no such pool).
    """

    prefix_tokens: int
    grid: tuple[int, int]
    readout_rows: tuple[int, ...]
    readout: str
    pooled_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    @classmethod
    def of_matrix(
        cls, tokens: int, prefix_tokens: int = 1, grid: tuple[int, int] | None = None
    ) -> "TokenLayout":
        """The layout of `tokens` tokens that come without their model.

        The grid is taken to be square unless given. The first token is read; without prefix
        tokens, the mean over the patches.

        Raises:
            ValueError: if prefix tokens and grid don't make up `tokens`.
        """
        patches = tokens - prefix_tokens
        side = round(max(patches, 0) ** 0.5)
        height, width = grid or (side, side)
        if prefix_tokens < 0 or patches < 1 or height * width != patches:
            raise ValueError(
                f"{tokens} tokens are not {prefix_tokens} prefix tokens and {height}x{width} "
                "patches: give prefix_tokens and grid=(h, w)"
            )
        rows, readout = ((0,), "first token") if prefix_tokens else (range(patches), "mean")
        return cls(prefix_tokens, (height, width), tuple(rows), readout)

    def readout_weights(self, like: Tensor, pooled: Tensor | None = None) -> Tensor:
        """(B, N): how much the classifier reads each token; batch and device as in `like`.

        Args:
            pooled: (B, 1, pooled tokens), the fused attention of the pooling query if there is one.
        """
        if pooled is not None:
            return nn.functional.pad(pooled[:, 0], (self.tokens - self.pooled_tokens, 0))
        weights = torch.zeros(len(like), self.tokens, device=like.device)
        weights[:, list(self.readout_rows)] = 1 / len(self.readout_rows)
        return weights


def check_supported(model: nn.Module) -> None:
    """Raise UnsupportedModel unless `model` is a timm VisionTransformer that can be explained."""
    if not isinstance(model, VisionTransformer):
        raise UnsupportedModel(
            model, "only timm's VisionTransformer family (ViT, DeiT, DINOv2, SigLIP) is supported"
        )
    if any(isinstance(m, DiffAttention | DiffParallelScalingBlock) for m in model.modules()):
        raise UnsupportedModel(
            model, "differential attention subtracts two maps, so its weights are signed"
        )
    attention_pool = model.attn_pool
    if attention_pool is not None and not (
        isinstance(attention_pool, AttentionPoolLatent) and attention_pool.latent_len == 1
    ):
        raise UnsupportedModel(
            model, f"its pooling ({type(attention_pool).__name__}) has no single read-out row"
        )
    if attention_pool is None and "max" in model.global_pool:
        raise UnsupportedModel(model, "max pooling reads a different token for every channel")


def token_layout(model: nn.Module, height: int, width: int) -> TokenLayout:
    """The tokens that `model` makes of a height x width input, and the row its head reads.

    Raises:
        UnsupportedModel: see `check_supported`.
    """
    check_supported(model)
    # grid_size is that of the size the model was built for; this one follows the input at hand
    grid = tuple(model.patch_embed.dynamic_feat_size((height, width)))
    prefix, patches = model.num_prefix_tokens, grid[0] * grid[1]
    all_rows = tuple(range(prefix + patches))
    if isinstance(model, VisionTransformerDistilled):
        return TokenLayout(prefix, grid, (0, 1), "mean of the class and distillation tokens")
    if model.attn_pool is not None:
        pooled = prefix + patches if model.pool_include_prefix else patches
        return TokenLayout(prefix, grid, (), f"attention pooling over {pooled} tokens", pooled)
    if model.global_pool == "token" or (not model.global_pool and model.has_class_token):
        return TokenLayout(prefix, grid, (0,), "class token")
    if model.pool_include_prefix and prefix:
        return TokenLayout(prefix, grid, all_rows, f"mean over all {len(all_rows)} tokens")
    return TokenLayout(prefix, grid, all_rows[prefix:], f"mean over {patches} patches")


@dataclass
class CapturedAttention:
    """What one forward pass inside `capture_attention` left behind.

    Attributes:
        branches: for each block, what `reduce` made of the attention of each of its parallel
            branches (one in almost all models).
        pool: the pooling query's attention (B, H, 1, pooled tokens); None without such a pool.
    """

    model: nn.Module
    layout: TokenLayout
    branches: list[list[Tensor]] = field(default_factory=list)
    pool: Tensor | None = None

    def blocks(self) -> list[list[Tensor]]:
        """The branches of every block, checked to be complete.

        Raises:
            UnsupportedModel: if the attention of some block did not pass the hook exactly once.
        """
        if not all(self.branches):
            seen = sum(map(bool, self.branches))
            reason = f"the attention of only {seen} of its {len(self.branches)} blocks was seen"
            raise UnsupportedModel(self.model, reason)
        if self.layout.pooled_tokens and self.pool is None:
            raise UnsupportedModel(self.model, "the attention of its pooling was not seen")
        return self.branches


@contextmanager
def capture_attention(
    model: nn.Module,
    layout: TokenLayout,
    layer_name: str = "attn_drop",
    *,
    reduce: Callable[[Tensor], Tensor] = lambda attention: attention,
    track_gradient: bool = False,
) -> Iterator[CapturedAttention]:
    """Record the attention of one forward pass of `model`, and leave the model as it was.

    Args:
        model: a timm VisionTransformer.
        layout: what `token_layout` says of the input that will be passed.
        layer_name: part of the name of the modules that the softmaxed attention passes through.
        reduce: applied at once to each (B, H, N, N), so that rollout need not keep all heads.
        track_gradient: make every captured matrix differentiable. Autograd then starts at the
            first attention matrix, and the parameters are frozen meanwhile.

    Yields:
        CapturedAttention, filled by the forward pass.

    Raises:
        UnsupportedModel: if a matrix is not softmaxed attention over the tokens of `layout`.
        ValueError: if no module of the blocks is called `layer_name`.
    """
    captured = CapturedAttention(model, layout)
    with ExitStack() as undo:
        _prepare(model, undo, freeze=track_gradient)
        for number, block in enumerate(model.blocks):
            layers = _layers_named(block, f"blocks.{number}", layer_name)
            if not layers:
                raise ValueError(
                    f"attention_layer_name={layer_name!r} names no module of block {number}; "
                    "timm's attention passes through 'attn_drop'"
                )
            kept: list[Tensor] = []
            captured.branches.append(kept)

            def see(_layer, _inputs, attention, kept=kept, branches=layers):
                _check_is_attention(model, attention, layout)
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


def forward(model: nn.Module, pictures: Tensor) -> Tensor:
    """model(pictures), where a size that timm refuses is a ValueError in its own words."""
    try:
        return model(pictures)
    except AssertionError as error:
        height, width = pictures.shape[2:]
        raise ValueError(f"the model does not take {width}x{height} pictures: {error}") from error


def _layers_named(block: nn.Module, prefix: str, layer_name: str) -> list[nn.Module]:
    return [m for name, m in block.named_modules(prefix=prefix) if layer_name in name]


def _prepare(model: nn.Module, undo: ExitStack, *, freeze: bool) -> None:
    """Evaluation mode, explicit attention, no checkpointing; `undo` puts everything back."""

    def set_(owner, name, value):
        undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    for module in model.modules():
        # train mode would give attention after dropout: not what the model sees at inference
        set_(module, "training", False)
        if isinstance(getattr(module, "fused_attn", None), bool):
            set_(module, "fused_attn", False)
        if getattr(module, "grad_checkpointing", False):
            set_(module, "grad_checkpointing", False)  # it would run the blocks a second time
    if freeze:
        for parameter in model.parameters():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)


def _check_is_attention(model: nn.Module, attention: Tensor, layout: TokenLayout) -> None:
    """The acceptance test: nothing but softmaxed attention over these very tokens passes."""
    n = layout.tokens
    if not (
        isinstance(attention, Tensor) and attention.ndim == 4 and attention.shape[2:] == (n, n)
    ):
        shape = tuple(attention.shape) if isinstance(attention, Tensor) else type(attention)
        raise UnsupportedModel(model, f"captured {shape} where attention (B, H, {n}, {n}) was due")
    tolerance = 1e-3 if attention.dtype == torch.float32 else 2e-2
    row_sums = attention.detach().sum(-1, dtype=torch.float32)
    if not bool(((row_sums - 1).abs() <= tolerance).all()):  # NaN and inf fail here too
        raise UnsupportedModel(model, "rows of the captured attention do not sum to 1")


def _capture_pool(pool: AttentionPoolLatent, captured: CapturedAttention, undo: ExitStack) -> None:
    """Record the attention of the pooling query, which passes no module that could be hooked."""
    pool.fused_attn = True  # restored by _prepare's undo; the fused call is what can be replaced
    forward = pool.forward

    def visible_forward(*args, **kwargs):
        with _ExplicitAttention(captured):
            return forward(*args, **kwargs)

    pool.forward = visible_forward  # shadows the class's method; removing it restores that
    undo.callback(delattr, pool, "forward")


class _ExplicitAttention(TorchFunctionMode):
    """Computes scaled_dot_product_attention in the open and keeps the matrix."""

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
