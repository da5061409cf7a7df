"""The tokens of a timm model, and which of them its classifier pools.

B images, N tokens = P prefix tokens (class, distillation, registers) followed by h*w patches in
row-major order.
"""

from dataclasses import dataclass, replace

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitexplain.attention.families import (
    WINDOWED,
    UnsupportedModel,
    blocks_of,
    check_supported,
    pooling_of,
)
from vitexplain.attention.order import check_order, is_ordered
from vitexplain.attention.readout import (
    Reading,
    Unreadable,
    channels_of,
    is_timms_own,
    reading_of,
)
from vitexplain.errors import RequestError


@dataclass(frozen=True)
class TokenLayout:
    """The N tokens of one input, and which of them the classifier pools.

    Attributes:
        prefix_tokens: P, how many tokens stand before the patches.
        grid: (h, w), the patch grid that the model made of this very input.
        readout_rows: the tokens whose mean the classifier reads; empty for attention pooling,
            where the pooling query's attention weights them.
        readout: the same in words.
        readout_shares: how much it reads each of these, summing to 1; empty if all alike.
        pooled_tokens: how many tokens, the last ones, an attention pool attends to (0: no pool).
        last_tokens: how many tokens the last block has, where merging makes them fewer (0: N).
    """

    prefix_tokens: int
    grid: tuple[int, int]
    readout_rows: tuple[int, ...]
    readout: str
    pooled_tokens: int = 0
    last_tokens: int = 0
    readout_shares: tuple[float, ...] = ()

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
        tokens = self.last_tokens or self.tokens
        weights = torch.zeros(tokens, dtype=torch.float32)
        shares = self.readout_shares or [1 / len(self.readout_rows)] * len(self.readout_rows)
        weights[list(self.readout_rows)] = torch.tensor(shares, dtype=torch.float32)
        return weights.to(like.device, non_blocking=True).expand(len(like), -1)


def token_layout(model: nn.Module, height: int, width: int) -> TokenLayout:
    """The tokens that `model` makes of a height x width input, and those that its head pools.

    Raises:
        UnsupportedModel: see `check_supported`.
    """
    model = check_supported(model)
    # grid_size is for the size that the model was built for; this follows the input at hand
    grid = tuple(model.patch_embed.dynamic_feat_size((height, width)))
    if is_timms_own(model) and is_ordered(model):
        return _layout_by_attributes(model, grid)
    size, windowed = (channels_of(model), height, width), isinstance(model, WINDOWED)
    try:
        first = "layers.0.blocks.0" if windowed else "blocks.0"
        check_order(model, first, size, grid, 0 if windowed else model.num_prefix_tokens)
        reading = reading_of(model, _last_block, size)
    except Unreadable as error:
        raise UnsupportedModel(model, str(error)) from error
    return _layout_as_read(model, grid, reading)


def layout_if_any(model: nn.Module, height: int, width: int) -> TokenLayout | None:
    """The same; None for a model whose attention can't be explained."""
    try:
        return token_layout(model, height, width)
    except UnsupportedModel:
        return None


def prefix_names(model: nn.Module, layout: TokenLayout) -> tuple[str, ...]:
    """The names of the tokens before the patches: "class", "distillation", "register 1", ..."""
    names = ["class"] if getattr(model, "cls_token", None) is not None else []
    if isinstance(model, VisionTransformerDistilled):
        names.append("distillation")
    registers = layout.prefix_tokens - len(names)
    return (*names, *(f"register {number}" for number in range(1, registers + 1)))


def _layout_by_attributes(model: nn.Module, grid: tuple[int, int]) -> TokenLayout:
    """Of a model whose head is timm's own."""
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
    pooling, has_class_token = pooling_of(model), model.cls_token is not None
    if pooling == "token" or (not pooling and has_class_token):
        readout = "class token" if has_class_token else "first token"
        return TokenLayout(prefix, grid, (0,), readout)
    if include_prefix and prefix:
        return TokenLayout(prefix, grid, all_rows, f"mean over all {len(all_rows)} tokens")
    return TokenLayout(prefix, grid, all_rows[prefix:], f"mean over {patches} patches")


def _layout_as_read(model: nn.Module, grid: tuple[int, int], reading: Reading) -> TokenLayout:
    """Of a model whose head was seen reading."""
    windowed = isinstance(model, WINDOWED)
    prefix = 0 if windowed else model.num_prefix_tokens
    plain = (
        _merged_layout(grid, len(model.layers) - 1)
        if windowed
        else TokenLayout(
            prefix, grid, (), f"attention pooling over {reading.pooled} tokens", reading.pooled
        )
    )
    if reading.shares is None:
        return plain
    tokens = plain.last_tokens or plain.tokens
    if len(reading.shares) != tokens:
        raise UnsupportedModel(
            model, f"its last block has {len(reading.shares)} tokens where {tokens} were due"
        )
    rows = tuple(reading.shares.nonzero()[:, 0].tolist())
    shares = tuple(reading.shares[list(rows)].tolist())
    shares = () if len(set(shares)) == 1 else shares
    if rows == plain.readout_rows and not shares:
        return plain
    words = _in_words(rows, prefix, tokens, reading.means, alike=not shares)
    if getattr(model, "cls_token", None) is not None:
        words = words.replace("first token", "class token")
    return replace(plain, readout_rows=rows, readout=words, readout_shares=shares, pooled_tokens=0)


def _in_words(rows: tuple[int, ...], prefix: int, tokens: int, means: int, *, alike: bool) -> str:
    """What is read, such as "first token and mean over 196 patches"."""
    before = tuple(row for row in rows if row < prefix)
    patches = len(rows) - len(before)
    if rows == (0,):
        return "first token"
    if means == 1 and not alike:
        return f"weighted mean of {len(rows)} tokens"
    if not before:
        return f"mean over {patches} patches"
    if len(rows) == tokens and means == 1:
        return f"mean over all {tokens} tokens"
    first = "first token" if before == (0,) else f"{len(before)} prefix tokens"
    return f"{first} and mean over {patches} patches" if patches else first


def _last_block(model: nn.Module) -> nn.Module:
    return blocks_of(model)[-1]


def _merged_layout(grid: tuple[int, int], merges: int) -> TokenLayout:
    height, width = grid
    for _ in range(merges):
        height, width = (height + 1) // 2, (width + 1) // 2
    last = height * width
    readout = f"mean over {last} patches, merged from {grid[0] * grid[1]}"
    return TokenLayout(0, grid, tuple(range(last)), readout, last_tokens=last)
