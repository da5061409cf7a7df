"""What a transformer does with one image, block by block (drawing/anatomy draws it).

- Position embeddings: the cosine similarity of each patch's embedding with those of all patches
  (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", figure 7).
- Embedding filters: the principal components of the patch projection's C filters, as colours (the
  same figure, left).
- Attention distance: the mean over patches i of sum_j A_ij |p_i - p_j|, p the patches' centres in
  pixels of the input and A_ij summing to 1 over patches (the same figure, right).
- Attention of the pooled tokens: r A_l^h for block l and head h, where r says how much the
  classifier reads each token (TokenLayout.readout_weights); for a class token its own row.
- Token norms: the L2 norm of each token in the residual stream after each block. The few patches
  whose norms are many times the others' hold no local information (Darcet et al. 2024, "Vision
  Transformers Need Registers").
- Growing rollout: r A~_l ... A~_1 for each l (see vit_rollout).

N tokens = P prefix tokens followed by h*w patches in row-major order; block 1 comes first. Swin's
blocks each have a grid of their own, and no prefix; r is the mean over a block's patches there.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.beit import Beit
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn
from torch.nn import functional as F

from vitexplain.attention.capture import CapturedAttention, capture_attention, forward
from vitexplain.attention.checks import check_one_image, check_rollout_options, images_for
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import (
    WINDOWED,
    TokenLayout,
    blocks_of,
    check_supported,
    prefix_names,
    token_layout,
)
from vitexplain.attention.windows import windows_of
from vitexplain.methods.base import largest_is_one, on_grid
from vitexplain.methods.product import discard_weakest_, fuse_heads, paths
from vitexplain.methods.registry import METHODS

# Rows and columns of patches whose position embeddings are compared: all of a 224-pixel image with
# patches of 16 pixels; of finer grids a sample, so that the panels stay large enough to be seen.
MOST_POSITIONS = 14
FILTERS = 28  # as many as in the paper's figure
SMALLEST_FILTER = 4  # pixels: in smaller ones there is nothing to see


@dataclass(frozen=True)
class Positions:
    """Similarity of position embeddings, for all patches or an even sample of them.

    Attributes:
        rows, columns: where the patches are that are compared with all others, from 0 on.
        similarity: (rows, columns, h, w) float32, cosines from -1 to 1.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    similarity: np.ndarray


@dataclass(frozen=True)
class BlockAnatomy:
    """One block. h x w is its own grid, float32 throughout.

    Attributes:
        attention: (H, h, w), attention of the pooled tokens to the patches, in each head. The heads
            of parallel branches follow one another.
        norms: (h, w), of the patches after the block.
        prefix_norms: (P,), of the prefix tokens.
        distances: (H,), how far each head's patches attend on average, in pixels of the input.
    """

    attention: np.ndarray
    norms: np.ndarray
    prefix_norms: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class Anatomy:
    """What the model did with one image; h x w is the patch grid of the input.

    Attributes:
        layout: the tokens of this input, and which of them the classifier pools.
        head_fusion, discard_ratio, start_block: how rollout was computed.
        prefix_names: of the P prefix tokens: "class", "distillation", "register 1", ...
        positions: None without a learned absolute position embedding.
        position_kind: in words, how the model knows where a patch is.
        blocks: one for each block.
        pool: (H, h, w), attention of the pooling query in each of its heads; None without.
        filters: (K, p, p, 3) float32, the first principal components of the patch projection's
            filters, each from 0 to 1; None where no single convolution makes patches.
        growth: (blocks from start_block on, h, w), rollout up to each block, the largest value of
            each 1; the last one is attention rollout's map.
    """

    layout: TokenLayout
    head_fusion: str
    discard_ratio: float
    start_block: int
    prefix_names: tuple[str, ...]
    positions: Positions | None
    position_kind: str
    blocks: tuple[BlockAnatomy, ...]
    pool: np.ndarray | None
    filters: np.ndarray | None
    growth: np.ndarray

    @property
    def rollout(self) -> np.ndarray:
        """(h, w), the map of attention rollout."""
        return self.growth[-1]


def anatomy(
    model: nn.Module,
    tensor: Tensor,
    head_fusion: str = METHODS["attention_rollout"].defaults["head_fusion"],
    discard_ratio: float = 0.9,
    start_block: int = 0,
) -> Anatomy:
    """Look into a timm ViT at one image (1, 3, H, W); the model is left as it was found.

    Args:
        head_fusion: "mean", "max" or "min", for rollout and for an attention pool's heads; by
            default as the command's.
        discard_ratio: share of the patch-column entries of each block set to 0 in rollout.
        start_block: first block of rollout's product.

    Raises:
        UnsupportedModel: if the model's attention can't be rolled out.
        RequestError: if an argument is out of range, or the input is not one image of a size that
            the model takes.
    """
    model = check_supported(model)
    check_rollout_options(discard_ratio, head_fusion, start_block, False, len(blocks_of(model)))
    images = images_for(model, tensor)
    check_one_image(images)
    layout = token_layout(model, *images.shape[2:])
    model = shadow_of(model)
    with torch.inference_mode():
        # two passes: an attention pool's query comes last, and all heads of all blocks would take
        # too much memory until then
        captured, norms = _first_pass(model, images, layout, head_fusion)
        pooled = None if captured.pool is None else fuse_heads(captured.pool, head_fusion)
        attention, distances = _of_heads(model, images, layout, pooled)
        growth = _growth(captured, pooled, discard_ratio, start_block)
    grids = captured.grids or [layout.grid] * len(norms)
    blocks = []
    for heads, far, of_tokens, grid in zip(attention, distances, norms, grids, strict=True):
        blocks.append(_block(heads, far, of_tokens, grid, layout.prefix_tokens))
    pool = None if captured.pool is None else _maps(captured.pool[0, :, 0], layout.grid)
    return Anatomy(
        layout=layout,
        head_fusion=head_fusion,
        discard_ratio=discard_ratio,
        start_block=start_block,
        prefix_names=prefix_names(model, layout),
        positions=_positions(model, layout.grid),
        position_kind=_position_kind(model),
        blocks=tuple(blocks),
        pool=pool,
        filters=_filters(model),
        growth=growth,
    )


def _first_pass(
    model: nn.Module, images: Tensor, layout: TokenLayout, head_fusion: str
) -> tuple[CapturedAttention, list[Tensor]]:
    """Attention (1, N, N) of every block with its heads fused, and all tokens' norms (N,)."""
    norms: list[Tensor] = []

    def measure(_block, _inputs, tokens):
        norms.append(token_norms(tokens))

    with (
        ExitStack() as undo,
        capture_attention(model, layout, reduce=lambda a: fuse_heads(a, head_fusion)) as captured,
    ):
        for block in blocks_of(model):
            undo.callback(block.register_forward_hook(measure).remove)
        forward(model, images)
    return captured, norms


def token_norms(tokens: Tensor) -> Tensor:
    """(N,), of the tokens after a block, (1, N, C), in Swin (1, h, w, C)."""
    return tokens[0].float().norm(dim=-1).flatten()


def _of_heads(
    model: nn.Module, images: Tensor, layout: TokenLayout, pooled: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each block, in each of its heads: what the pooled tokens attend to, (H, N); how far
    patches attend, (H,)."""
    size = tuple(images.shape[2:])
    centres = _centres(layout.grid, size, images.device)
    between = torch.cdist(centres, centres)

    def read(attention: Tensor) -> tuple[Tensor, Tensor]:  # (1, H, N, N)
        row = layout.readout_weights(attention, pooled)
        prefix = layout.prefix_tokens
        far = _distances(attention[:, :, prefix:, prefix:].float(), between)
        return (row @ attention[0].float())[:, 0], far

    windowed = isinstance(model, WINDOWED)
    reduce = (lambda attention: attention) if windowed else read
    with capture_attention(model, layout, reduce=reduce) as captured:
        forward(model, images)
    if not windowed:
        pairs = [zip(*branches, strict=True) for branches in captured.blocks()]
        rows, distances = zip(*(map(torch.cat, pair) for pair in pairs), strict=True)
        return list(rows), list(distances)
    of_blocks = list(zip(blocks_of(model), captured.grids, captured.blocks(), strict=True))
    rows = [_mean_of_windows(block, grid, branches[0]) for block, grid, branches in of_blocks]
    return rows, [_within_windows(b, grid, size, each[0]) for b, grid, each in of_blocks]


def _centres(grid: tuple[int, int], size: tuple[int, int], device: torch.device) -> Tensor:
    """(h*w, 2), of the patches, in pixels of the input of this size."""
    edges = [
        (torch.arange(count, device=device) + 0.5) * (side / count)
        for count, side in zip(grid, size, strict=True)
    ]
    return torch.cartesian_prod(*edges).view(-1, 2)


def _distances(attention: Tensor, between: Tensor) -> Tensor:
    """(H,): the mean distance that queries attend to, from (W, H, Q, K) and (..., Q, K).

    Queries that attend to no patch, as those of padding, don't count.
    """
    between = between if between.ndim == 2 else between[:, None]
    whole = attention.sum(dim=-1)  # (W, H, Q)
    far = (attention * between).sum(dim=-1) / whole.clamp(min=torch.finfo(torch.float32).tiny)
    counted = whole > 0
    return (far * counted).sum(dim=(0, 2)) / counted.sum(dim=(0, 2)).clamp(min=1)


def _within_windows(
    block: nn.Module, grid: tuple[int, int], size: tuple[int, int], attention: Tensor
) -> Tensor:
    """(W, H, A, A) -> (H,): how far the patches of a Swin block attend."""
    windows = windows_of(block, *grid)
    centres = _centres(grid, size, attention.device)
    padded = torch.cat([centres, centres.new_zeros(1, 2)])[windows.places]  # (W, A, 2)
    return _distances(attention.float() * windows.open[:, None], torch.cdist(padded, padded))


def _mean_of_windows(block: nn.Module, grid: tuple[int, int], attention: Tensor) -> Tensor:
    """(W, H, A, A) -> (H, N): what the patches of a Swin block attend to on average."""
    windows = windows_of(block, *grid)
    seen = (attention.float() * windows.open[:, None]).sum(dim=2)  # (W, H, A)
    whole = seen.new_zeros(seen.shape[1], windows.tokens + 1)  # the last one takes the padding
    whole.index_add_(1, windows.places.flatten(), seen.transpose(0, 1).flatten(1))
    return whole[:, :-1] / windows.tokens


def _growth(
    captured: CapturedAttention, pooled: Tensor | None, discard_ratio: float, start_block: int
) -> np.ndarray:
    """(blocks from start_block on, h, w): rollout up to each of them."""
    layout = captured.layout
    prefix = layout.prefix_tokens
    attention = captured.factors(captured.summed(), pooled, start_block)
    matrices, rows = [], []
    for factor in attention.factors:
        if factor.matrix.ndim == 2:  # the merging of tokens between two blocks of Swin
            matrices.append(factor.matrix)
            continue
        matrices.append(discard_weakest_(factor.matrix, discard_ratio, prefix, factor.paths))
        stayed, moved = paths(matrices, _readout(layout, factor.matrix, pooled))
        rows.append(moved if pooled is None else stayed + moved)
    return largest_is_one(on_grid(torch.cat(rows)[:, prefix:], layout.grid))


def _readout(layout: TokenLayout, matrix: Tensor, pooled: Tensor | None) -> Tensor:
    """(1, N), how much each token is read after a block whose matrix is (1, N, N)."""
    if not layout.last_tokens:
        return layout.readout_weights(matrix, pooled)
    tokens = matrix.shape[-1]
    return matrix.new_full((1, tokens), 1 / tokens)


def _block(
    attention: Tensor, distances: Tensor, norms: Tensor, grid: tuple[int, int], prefix_tokens: int
) -> BlockAnatomy:
    prefix_norms = norms[:prefix_tokens].cpu().numpy()
    norms = _maps(norms[None], grid)[0]
    return BlockAnatomy(_maps(attention, grid), norms, prefix_norms, distances.cpu().numpy())


def _filters(model: nn.Module) -> np.ndarray | None:
    """(K, p, p, 3): the principal components of the patch projection's filters, from 0 to 1."""
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.in_channels != 3:
        return None
    height, width = projection.kernel_size
    if min(height, width) < SMALLEST_FILTER:
        return None
    weights = projection.weight.detach().float().cpu().flatten(1).double()  # (C, 3*p*p)
    _, _, components = torch.linalg.svd(weights - weights.mean(dim=0), full_matrices=False)
    components = components[: min(FILTERS, len(components))]
    # a component may be turned round: its largest entry is positive
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    components = components * largest.sign()
    low, high = components.amin(dim=1, keepdim=True), components.amax(dim=1, keepdim=True)
    scaled = (components - low) / (high - low)
    return scaled.view(-1, 3, height, width).permute(0, 2, 3, 1).float().numpy()


def _maps(values: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """(K, N), prefix tokens first -> the patches' (K, h, w)."""
    height, width = grid
    return values[:, -height * width :].float().cpu().numpy().reshape(-1, height, width)


def _positions(model: nn.Module, grid: tuple[int, int]) -> Positions | None:
    embedding = _position_embedding(model, grid)
    if embedding is None:
        return None
    height, width = grid
    rows, columns = sample(height, MOST_POSITIONS), sample(width, MOST_POSITIONS)
    each = F.normalize(embedding.detach().float(), dim=1).view(height, width, -1)
    chosen = each[list(rows)][:, list(columns)]
    similarity = torch.einsum("rcd,hwd->rchw", chosen, each)
    return Positions(rows, columns, similarity.cpu().numpy())


def _position_embedding(model: nn.Module, grid: tuple[int, int]) -> Tensor | None:
    """(h*w, C), the embedding that is added to the patches; None without one."""
    embedding = getattr(model, "pos_embed", None)
    if embedding is None:
        return None
    height, width = grid
    if getattr(model, "dynamic_img_size", False):
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        embedding = resample_abs_pos_embed(
            embedding, grid, model.patch_embed.grid_size, num_prefix_tokens=prefix
        )
    return embedding[0, -height * width :]


def _position_kind(model: nn.Module) -> str:
    kinds = {
        "an embedding added to each patch": getattr(model, "pos_embed", None) is not None,
        "rotary embeddings, which turn queries and keys in every block": (
            getattr(model, "rope", None) is not None
        ),
        "relative positions, added to the attention's scores in every block": isinstance(
            model, (Beit, VisionTransformerRelPos, *WINDOWED)
        ),
    }
    return ", and ".join(kind for kind, there in kinds.items() if there) or "nothing"


def sample(count: int, most: int) -> tuple[int, ...]:
    """All of 0 to count - 1, or at most `most` of them: evenly, the first and the last too."""
    if count <= most:
        return tuple(range(count))
    return tuple(round(place * (count - 1) / (most - 1)) for place in range(most))
