"""All attention of one image in few bits, for the interactive page to calculate with.

An entry a of a row whose largest is s is kept as the code c = round(M sqrt(a / s)), M = 65535 or
255, and read as s (c / M)^2: at most s / M from a. Rollout that discards needs 16 bits: with 8,
many entries near the threshold get one code, and a patch of the map moves by up to 0.5 (with 16,
0.0015; both over 24 settings of four images). So what rollout multiplies is always kept in 16 bits:
the heads where they fit, else the heads' mean, maximum and minimum. Single heads are only looked
at, for which 8 bits will do. Where even that is too much, squares of patches are taken together:

    A' = D^-1 P A P^T,   P (n, N) says which token is in which square, D = diag(rowsum P)

the mean over queries of the sum over keys, whose rows sum to 1 as those of A.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.anatomy import token_norms
from vitexplain.attention.capture import capture_attention, forward
from vitexplain.attention.checks import check_one_image, images_for
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import (
    WINDOWED,
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    check_supported,
    prefix_names,
    token_layout,
)
from vitexplain.choices import HEAD_FUSIONS
from vitexplain.methods.product import fuse_heads

LARGEST = 12 << 20  # bytes of all attention, in base64


class Storage(NamedTuple):
    """How attention is kept.

    Attributes:
        heads: bits of each head's, 16 or 8; 0 where heads are not kept.
        fused: bits of the heads' mean, maximum and minimum; 0 where heads tell them exactly.
        side: of the squares of patches that are taken together, 1 for each patch alone.
    """

    heads: int
    fused: int
    side: int = 1

    def bytes(self, heads: int, blocks: int, layout: TokenLayout) -> int:
        """In base64, of so many heads in so many blocks."""
        rows, columns = (-(-edge // self.side) for edge in layout.grid)
        tokens = layout.prefix_tokens + rows * columns
        bits = self.heads * heads + self.fused * len(HEAD_FUSIONS) * blocks
        return bits // 8 * tokens * tokens * 4 // 3


class Coded(NamedTuple):
    """Matrices (K, n, n) in few bits: scales[..., None] * (codes / M)^2, M the largest code.

    Attributes:
        codes: (K, n, n), uint16 or uint8.
        scales: (K, n) float32, the largest entry of each row.
    """

    codes: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, matrices: Tensor, bits: int) -> "Coded":
        matrices = matrices.float().cpu()
        scales = matrices.amax(dim=-1)
        shares = matrices / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        most = 2**bits - 1
        codes = (shares.clamp(min=0).sqrt() * most).round().numpy()
        return cls(codes.astype(np.uint16 if bits == 16 else np.uint8), scales.numpy())

    def decoded(self) -> np.ndarray:
        """(K, n, n) float32."""
        most = np.iinfo(self.codes.dtype).max
        return self.scales[..., None] * np.square(np.float32(self.codes) / np.float32(most))


class Branch(NamedTuple):
    """The attention of one block; of each branch where several run in parallel.

    Attributes:
        heads: of H heads (H, n, n); None where they are not kept.
        fused: by each of HEAD_FUSIONS (3, n, n); None where the heads are kept in 16 bits.
    """

    heads: Coded | None
    fused: Coded | None


class Norms(NamedTuple):
    """The L2 norms of the tokens after one block, float32.

    Attributes:
        patches: (h, w); of squares of patches the largest, as a mean would hide the few that stand
            out.
        prefix: (P,).
    """

    patches: np.ndarray
    prefix: np.ndarray


@dataclass(frozen=True)
class Exploration:
    """The attention of one image.

    Attributes:
        storage: how it is kept.
        grid: (h, w), the patch grid, or that of the squares of patches.
        prefix_names: of the P tokens before the patches.
        readout: in words, what the classifier reads.
        reads: for each of HEAD_FUSIONS (n,) float32, how much the classifier reads each token. They
            differ only where an attention pool weights them.
        pooled: whether an attention pool reads them.
        blocks: for each block its branches.
        norms: for each block.
    """

    storage: Storage
    grid: tuple[int, int]
    prefix_names: tuple[str, ...]
    readout: str
    reads: Mapping[str, np.ndarray]
    pooled: bool
    blocks: tuple[tuple[Branch, ...], ...]
    norms: tuple[Norms, ...]


def explore(model: nn.Module, tensor: Tensor, largest: int = LARGEST) -> Exploration:
    """All attention of a timm ViT in one image (1, 3, H, W), from one forward pass.

    Args:
        model: left as it was found.
        largest: bytes that it may take in base64.

    Raises:
        UnsupportedModel: if its blocks' attention isn't over one and the same grid.
        RequestError: if the input is not one image, of a size that the model takes.
    """
    model = check_explorable(model)
    images = images_for(model, tensor)
    check_one_image(images)
    layout = token_layout(model, *images.shape[2:])
    shadow = shadow_of(model)
    storage = _storage(shadow, layout, largest)
    members = _members(layout, storage.side)
    reduce = partial(_kept, storage=storage, members=members)
    norms: list[Tensor] = []
    for block in blocks_of(shadow):
        block.register_forward_hook(lambda _b, _i, tokens: norms.append(token_norms(tokens)))
    with torch.inference_mode(), capture_attention(shadow, layout, reduce=reduce) as captured:
        forward(shadow, images)
        blocks = tuple(tuple(branches) for branches in captured.blocks())
        reads = {how: _reads(layout, captured.pool, how, members) for how in HEAD_FUSIONS}
    height, width = layout.grid
    return Exploration(
        storage,
        (-(-height // storage.side), -(-width // storage.side)),
        prefix_names(model, layout),
        layout.readout,
        reads,
        bool(layout.pooled_tokens),
        blocks,
        tuple(_norms(each.cpu().numpy(), layout, storage.side) for each in norms),
    )


def check_explorable(model: nn.Module) -> nn.Module:
    """timm's model within the given one, if the page can show its attention.

    Raises:
        UnsupportedModel: if it can't.
    """
    model = check_supported(model)
    if isinstance(model, WINDOWED):
        raise UnsupportedModel(
            model, "its attention is within windows, which the page can't show: try --anatomy"
        )
    return model


def _storage(model: nn.Module, layout: TokenLayout, largest: int) -> Storage:
    """The best that is small enough."""
    heads = sum(_heads(block) for block in blocks_of(model))
    blocks = len(blocks_of(model))
    side = 1
    while True:
        for storage in (Storage(16, 0, side), Storage(8, 16, side), Storage(0, 16, side)):
            if storage.bytes(heads, blocks, layout) <= largest or side >= max(layout.grid):
                return storage
        side += 1


def _heads(block: nn.Module) -> int:
    """Of all its branches."""
    return sum(getattr(each, "num_heads", 0) for each in block.modules())


def _members(layout: TokenLayout, side: int) -> Tensor | None:
    """P (n, N) of the module's docstring, prefix tokens first; None where squares are patches."""
    if side == 1:
        return None
    height, width = layout.grid
    columns = -(-width // side)
    rows, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squares = (rows // side * columns + across // side).flatten() + layout.prefix_tokens
    places = torch.cat([torch.arange(layout.prefix_tokens), squares])
    return nn.functional.one_hot(places).T.float()


def _kept(attention: Tensor, storage: Storage, members: Tensor | None) -> Branch:
    """(1, H, N, N) in few bits."""
    fused = [fuse_heads(attention, how)[0] for how in HEAD_FUSIONS] if storage.fused else []
    return Branch(
        Coded.of(_merged(attention[0].float(), members), storage.heads) if storage.heads else None,
        Coded.of(_merged(torch.stack(fused), members), storage.fused) if fused else None,
    )


def _merged(matrices: Tensor, members: Tensor | None) -> Tensor:
    """(K, N, N) -> (K, n, n): the mean over queries of the sum over keys."""
    if members is None:
        return matrices
    members = members.to(matrices.device)
    return (members / members.sum(dim=1, keepdim=True)) @ matrices @ members.T


def _norms(norms: np.ndarray, layout: TokenLayout, side: int) -> Norms:
    prefix, patches = np.split(norms, [layout.prefix_tokens])
    height, width = layout.grid
    padded = np.pad(
        patches.reshape(height, width),
        ((0, -height % side), (0, -width % side)),
        constant_values=-np.inf,
    )
    squares = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side)
    return Norms(squares.max(axis=(1, 3)), prefix)


def _reads(
    layout: TokenLayout, pool: Tensor | None, how: str, members: Tensor | None
) -> np.ndarray:
    like = torch.zeros(1) if pool is None else pool
    row = layout.readout_weights(like, None if pool is None else fuse_heads(pool, how))
    return (row if members is None else row @ members.T.to(row.device))[0].float().cpu().numpy()
