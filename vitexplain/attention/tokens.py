"""The tokens of a timm model, and which of them its classifier pools.

This module decides which models can be explained. All others are refused with the reason, because
a map of something other than attention over patches would look as convincing as a true one.

B images, N tokens = P prefix tokens (class, distillation, registers) followed by h*w patches in
row-major order.
"""

from dataclasses import dataclass

import torch
from timm.layers import AttentionPoolLatent, DiffAttention
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import DiffParallelScalingBlock, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from vitexplain.errors import RequestError

# every token attends to every other token, from the first block to the last
GLOBAL = (VisionTransformer, Eva, Beit, VisionTransformerRelPos)
# attention in windows, on ever fewer tokens
WINDOWED = (SwinTransformer, SwinTransformerV2)

# why a family is refused, by the name of its class; UNKNOWN for all others
REASONS = {
    "Cait": "its talking heads are mixed after the softmax",
    "ConVit": "its gated attention mixes content with position after the softmax",
    "Xcit": "its attention is between channels, not between patches",
    "EdgeNeXt": "its attention is between channels, not between patches",
    "DaVit": "half of its attention is between channels, not between patches",
    "NaFlexVit": "its patches come as a list without a grid",
    "Levit": "its grid shrinks within attention, which passes no hook",
    "LevitDistilled": "its grid shrinks within attention, which passes no hook",
    "MaxxVit": "it attends in windows and grids in turn, between convolutions",
    "CrossVit": "two grids of patches attend to each other",
    "VisionTransformerSAM": "its attention is in windows, with heads and images in one dimension",
}

MODELS_THAT_WORK = "deit_tiny_patch16_224, vit_base_patch16_224, swin_tiny_patch4_window7_224"

UNKNOWN = "its layers are not blocks of attention over one grid of patches"


class UnsupportedModel(RequestError):
    """The model's attention can't be captured, or doesn't mean what rollout needs it to mean."""

    def __init__(self, model: nn.Module, reason: str):
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        kind = type(model).__name__
        self.reason = reason
        name = f"{name} ({kind})" if name else kind
        super().__init__(
            f"{name} can't be explained: {reason}. Models that work: {MODELS_THAT_WORK}"
        )


@dataclass(frozen=True)
class TokenLayout:
    """The N tokens of one input, and which of them the classifier pools.

    Attributes:
        prefix_tokens: P, how many tokens stand before the patches.
        grid: (h, w), the patch grid that the model made of this very input.
        readout_rows: the tokens whose mean the classifier reads; empty for attention pooling,
            where the pooling query's attention weights them.
        readout: the same in words.
        pooled_tokens: how many tokens, the last ones, an attention pool attends to (0: no pool).
        last_tokens: how many tokens the last block has, where merging makes them fewer (0: N).
    """

    prefix_tokens: int
    grid: tuple[int, int]
    readout_rows: tuple[int, ...]
    readout: str
    pooled_tokens: int = 0
    last_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    @classmethod
    def of_matrix(
        cls, tokens: int, prefix_tokens: int = 1, grid: tuple[int, int] | None = None
    ) -> "TokenLayout":
        """The layout of `tokens` tokens whose model is not known.

        The grid is taken to be square unless given. The first token is read; without prefix
        tokens, the mean over the patches.

        Raises:
            RequestError: if prefix tokens and grid don't make up `tokens`.
        """
        patches = tokens - prefix_tokens
        side = round(max(patches, 0) ** 0.5)
        height, width = grid or (side, side)
        if prefix_tokens < 0 or patches < 1 or height * width != patches:
            raise RequestError(
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
        weights = torch.zeros(len(like), self.last_tokens or self.tokens, device=like.device)
        weights[:, list(self.readout_rows)] = 1 / len(self.readout_rows)
        return weights


def check_supported(model: nn.Module) -> None:
    """Raise UnsupportedModel unless `model` can be explained."""
    if not isinstance(model, GLOBAL + WINDOWED):
        raise UnsupportedModel(model, REASONS.get(type(model).__name__, UNKNOWN))
    if any(isinstance(m, DiffAttention | DiffParallelScalingBlock) for m in model.modules()):
        raise UnsupportedModel(
            model, "differential attention subtracts two maps, so its weights are signed"
        )
    attention_pool = getattr(model, "attn_pool", None)
    if attention_pool is not None and not (
        isinstance(attention_pool, AttentionPoolLatent) and attention_pool.latent_len == 1
    ):
        raise UnsupportedModel(
            model, f"its pooling ({type(attention_pool).__name__}) has no single query"
        )
    pooling = _pooling(model)
    if attention_pool is None and "max" in pooling:
        raise UnsupportedModel(model, "max pooling reads a different token for every channel")
    if isinstance(model, WINDOWED) and pooling != "avg":
        raise UnsupportedModel(model, f"its pooling ({pooling or 'none'}) reads no token")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks with attention, the first one first."""
    if isinstance(model, WINDOWED):
        return [block for stage in model.layers for block in stage.blocks]
    return list(model.blocks)


def token_layout(model: nn.Module, height: int, width: int) -> TokenLayout:
    """The tokens that `model` makes of a height x width input, and those that its head pools.

    Raises:
        UnsupportedModel: see `check_supported`.
    """
    check_supported(model)
    # grid_size is for the size that the model was built for; this follows the input at hand
    grid = tuple(model.patch_embed.dynamic_feat_size((height, width)))
    if isinstance(model, WINDOWED):
        return _merged_layout(grid, merges=len(model.layers) - 1)
    prefix, patches = model.num_prefix_tokens, grid[0] * grid[1]
    all_rows = tuple(range(prefix + patches))
    include_prefix = getattr(model, "pool_include_prefix", False)
    if isinstance(model, VisionTransformerDistilled):
        return TokenLayout(prefix, grid, (0, 1), "mean of the class and distillation tokens")
    if getattr(model, "attn_pool", None) is not None:
        # only VisionTransformer can leave the prefix out
        everything = include_prefix or not isinstance(model, VisionTransformer)
        pooled = prefix + patches if everything else patches
        return TokenLayout(prefix, grid, (), f"attention pooling over {pooled} tokens", pooled)
    pooling, has_class_token = _pooling(model), model.cls_token is not None
    if pooling == "token" or (not pooling and has_class_token):
        readout = "class token" if has_class_token else "first token"
        return TokenLayout(prefix, grid, (0,), readout)
    if include_prefix and prefix:
        return TokenLayout(prefix, grid, all_rows, f"mean over all {len(all_rows)} tokens")
    return TokenLayout(prefix, grid, all_rows[prefix:], f"mean over {patches} patches")


def _merged_layout(grid: tuple[int, int], merges: int) -> TokenLayout:
    height, width = grid
    for _ in range(merges):
        height, width = (height + 1) // 2, (width + 1) // 2
    last = height * width
    readout = f"mean over {last} patches, merged from {grid[0] * grid[1]}"
    return TokenLayout(0, grid, tuple(range(last)), readout, last_tokens=last)


def _pooling(model: nn.Module) -> str:
    """How the head pools the tokens: "token", "avg", ...; "" if it doesn't."""
    return getattr(model, "global_pool", None) or ""
