"""Rollout of what attention carries: a weight counts as much as the value it multiplies is large.

Some tokens draw much attention and have next to nothing to give (attention sinks). Kobayashi et
al. 2020, "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms" (EMNLP),
therefore measure the vectors that attention sums up,

    F_ij = || sum_h A^h_ij u^h_j ||,    u^h_j = V^h_j W_O^h,

V^h_j being the value of head h with its bias, W_O^h the head's part of the output layer,
LayerScale included. Their norms take the place of attention in the product of Abnar & Zuidema
2020, as Modarressi et al. 2022, "GlobEnc" (NAACL), roll out norms:

    N_l = rownorm(rownorm(F_l) + I),    R = N_L ... N_1.

The map is the row of R that the classifier pools, at the patches' columns. An attention pool is
weighted in the same way. MLPs and layer norms are left out. GlobEnc adds the token itself within
the norm, || sum_h A^h_ij u^h_j + [i = j] x_i ||; on 300 images with boxes that pointed at the
object less often (DeiT-tiny 0.50 instead of 0.56, bundled model 0.77 instead of 0.80).

The norms need only the scalar products of the u: || sum_h A^h_ij u^h_j ||^2 =
sum_h,g A^h_ij A^g_ij <u^h_j, u^g_j>, so that (B, N, N, C) is never made.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos
from torch import Tensor, nn
from torch.nn import functional as F

from vitexplain.attention.capture import inference_state
from vitexplain.attention.checks import check_start_block
from vitexplain.attention.chunks import rows_at_once
from vitexplain.attention.intercept import AttentionCall, Interceptor
from vitexplain.attention.readout import has_hooks, is_from_timm
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import (
    WINDOWED,
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    check_supported,
)
from vitexplain.methods.base import ImageMethod
from vitexplain.methods.product import rollout_scores

# blocks whose attention adds scale * proj(A V) to a token, and nothing else
PLAIN = (
    vision_transformer.Block,
    vision_transformer.ParallelScalingBlock,
    vision_transformer_relpos.RelPosBlock,
    eva.EvaBlock,
    beit.Block,
)


class ValueRollout(ImageMethod):
    """Rollout of a timm ViT's attention, weighted by the norms of what it carries.

    Args:
        model: a timm VisionTransformer; used in evaluation mode, left as it was found.
        start_block: first block of the product, 0 for all of them.

    Raises:
        UnsupportedModel: if what attention adds to a token is not a sum over tokens.
        RequestError: if start_block is out of range.
    """

    def __init__(self, model: nn.Module, start_block: int = 0):
        model = check_supported(model)
        check_start_block(start_block, len(blocks_of(model)))
        if isinstance(model, WINDOWED):
            raise UnsupportedModel(model, "values are weighted only where attention has no windows")
        for block in blocks_of(model):
            reason = _why_not(block)
            if reason:
                raise UnsupportedModel(model, reason)
        self.model, self.start_block = model, start_block

    def _scores(
        self, images: Tensor, layout: TokenLayout, *, with_logits: bool
    ) -> tuple[np.ndarray, Tensor | None]:
        # before anybody hooks them
        weights = [output_weight(block) for block in blocks_of(self.model)]
        norms = _Norms(self.start_block, weights)
        interceptor = Interceptor(self.model, layout, norms.attend, only_attention=not with_logits)
        with ExitStack() as undo:
            undo.enter_context(inference_state(self.model, freeze=False, fused=True))
            for number, block in enumerate(blocks_of(self.model)):
                undo.callback(block.register_forward_pre_hook(norms.enter(number)).remove)
            if layout.pooled_tokens:
                pooling = self.model.attn_pool
                undo.callback(pooling.register_forward_pre_hook(norms.enter_pool).remove)
            # values are seen in the attention calls alone, whoever has hooks elsewhere
            interceptor.install(undo)
            logits = interceptor.run(images)
        norms_of_blocks = interceptor.factors(self.start_block)
        return rollout_scores(norms_of_blocks, layout, discard_ratio=0), logits


class _Norms:
    """Answers the attention calls of one pass, and keeps rownorm(F) of each.

    Attributes:
        wanted: whether the block at work is part of the product.
        weight: (C, H*d), the output layer of the attention at work.
    """

    def __init__(self, start_block: int, weights: Sequence[Tensor]):
        self.start_block, self.weights = start_block, weights
        self.wanted = True
        self.weight: Tensor | None = None

    def enter(self, number: int):
        def hook(_block: nn.Module, _inputs) -> None:
            self.wanted, self.weight = number >= self.start_block, self.weights[number]

        return hook

    def enter_pool(self, pool: nn.Module, _inputs) -> None:
        width = pool.num_heads * pool.head_dim
        given = getattr(pool.proj, "weight", None)
        self.wanted = True
        self.weight = torch.eye(width, device=pool.latent.device) if given is None else given

    def attend(self, call: AttentionCall) -> tuple[Tensor | None, Tensor]:
        """The output (B, H, rows, d) of an attention call, and rownorm(F) (B, n, N)."""
        tokens, query = call.query.shape[2], call.query[:, :, : call.rows]
        bias = None if call.bias is None else call.bias[:, :, : call.rows]
        if self.wanted:
            matrix = _carried(query, call.key, call.value, bias, call.scale, self.weight.float())
            # rows that nobody reads are not computed
            matrix = F.pad(matrix, (0, 0, 0, tokens - call.rows))
        else:
            matrix = torch.zeros(())  # left out of the product, but the attention was seen
        if call.is_final:
            return None, matrix
        output = F.scaled_dot_product_attention(
            query, call.key, call.value, attn_mask=bias, scale=call.scale
        )
        return output, matrix


def _carried(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, weight: Tensor
) -> Tensor:
    """rownorm(F), (B, n, N), of n queries: a few of them at once, so that they fit the cache."""
    products = value_products(value, weight)
    step = rows_at_once(key.shape[:3].numel() * 4, key.device)
    norms = []
    for start in range(0, query.shape[2], step):
        part = slice(start, start + step)
        scores = (query[:, :, part] * scale) @ key.transpose(-2, -1)
        scores = scores if bias is None else scores + bias[:, :, part]
        norms.append(norms_of_sums(scores.softmax(dim=-1), products))
    matrix = torch.cat(norms, dim=1)
    sums = matrix.sum(dim=-1, keepdim=True)
    return matrix / sums.where(sums != 0, 1)  # where nothing is carried, the residual is left


def value_products(value: Tensor, weight: Tensor) -> Tensor:
    """The scalar products <u^h_j, u^g_j> of the vectors of a token's heads, (B, N, H, H).

    Args:
        value: (B, H, N, d).
        weight: (C, H*d), the output layer; u^h_j is V^h_j times its columns of head h.
    """
    value = value.float().transpose(1, 2)  # (B, N, H, d)
    heads, size = value.shape[2:]
    between = (weight.T @ weight).view(heads, size, heads * size)
    rows = []
    for head in range(heads):  # u itself would be (B, N, H, C)
        with_all_heads = (value[:, :, head] @ between[head]).view(value.shape)
        rows.append((with_all_heads * value).sum(dim=-1))
    return torch.stack(rows, dim=2)


def norms_of_sums(attention: Tensor, products: Tensor) -> Tensor:
    """F_ij = || sum_h A^h_ij u^h_j ||: (B, H, n, N) and (B, N, H, H) -> (B, n, N)."""
    weights = attention.float().permute(0, 3, 2, 1)  # (B, N, n, H)
    squared = ((weights @ products) * weights).sum(dim=-1)
    return squared.transpose(1, 2).clamp(min=0).sqrt()


def output_weight(block: nn.Module) -> Tensor:
    """(C, H*d): the layer that a block applies to its heads' values, LayerScale included."""
    if isinstance(block, vision_transformer.ParallelScalingBlock):
        layer = block.out_proj if block.attn_out_proj is None else block.attn_out_proj
        weight = layer.weight[:, : block.num_heads * block.head_dim]  # the MLP's follow
        scale = getattr(block.ls, "gamma", None)
    else:
        weight = linear_weight(block.attn.proj)
        scale = getattr(block, "gamma_1", None)
        scale = getattr(getattr(block, "ls1", None), "gamma", scale)
    return weight if scale is None else weight * scale[:, None]


def linear_weight(layer: nn.Module) -> Tensor | None:
    """(C, inputs): what a layer multiplies its inputs with; None if it is not linear.

    A linear layer that adds to its weight, such as one with low-rank adapters, is asked for what it
    does.
    """
    if type(layer).forward is nn.Linear.forward and not has_hooks(layer):
        return layer.weight
    width = next((m.in_features for m in layer.modules() if hasattr(m, "in_features")), None)
    if width is None:
        return None
    like = next(layer.parameters())
    some = torch.randn(4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    units = torch.cat([torch.zeros_like(some[:1]), torch.eye(width).to(some), some])
    with torch.no_grad():
        outputs = shadow_of(layer)(units.to(like)[None])[0].float()
    weight = (outputs[1 : 1 + width] - outputs[0]).T
    expected = some.to(weight) @ weight.T + outputs[0]
    return weight if torch.allclose(outputs[1 + width :], expected, 1e-3, 1e-3) else None


def _why_not(block: nn.Module) -> str | None:
    """Why a block's attention does not add a plain sum over tokens; None if it does."""
    own = "forward" in vars(block) or not is_from_timm(type(block).forward)
    if not isinstance(block, PLAIN) or own:
        return f"what attention adds in its blocks ({type(block).__name__}) is not a plain sum"
    attention = getattr(block, "attn", None)
    if not isinstance(getattr(attention, "norm", None), nn.Identity | None):
        return "its attention is normalised before the output layer, which is not linear"
    if getattr(attention, "gate", None) is not None:
        return "its attention is gated, which is not linear"
    proj = getattr(attention, "proj", None)
    if attention is not None and (proj is None or linear_weight(proj) is None):
        return "its attention has no linear output layer"
    if attention is not None and not is_from_timm(type(attention).forward):
        return f"its attention ({type(attention).__name__}) is not timm's"
    return None
