"""Attention weighted by gradients, fused over its heads during the backward pass.

Gradient rollout reads fuse_heads((A * dy/dA)^+) of each block. The forward pass keeps queries,
keys and values, as fused attention itself does, and the backward pass computes attention and its
gradient again, a few heads at a time (Dao et al. 2022, "FlashAttention", section 3.1 and appendix
B.2, without its tiles), so that (B, H, N, N) never exists here either. With dO the gradient of the
attention's output and S its scores before the softmax,

    dA = dO V^T,    dS = A * (dA - rowsum(A * dA)),    dQ = dS K,    dK = dS^T Q,    dV = A^T dO.
"""

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitexplain.attention.capture import AttentionFactors, inference_state
from vitexplain.attention.chunks import FusedHeads, parts, softmax_of
from vitexplain.attention.intercept import AttentionCall, Interceptor, factors_of
from vitexplain.attention.tokens import TokenLayout

# Tokens from which on gradients may be in bfloat16. The backward pass then takes a second or more,
# and this saves 15 to 20 % of the whole (DINOv2-S at 518 pixels), while maps change by less than a
# hundredth (tests). Smaller inputs are explained in a fraction of a second as it is, and are exact.
LOW_PRECISION_FROM = 1024
MAGNIFIED = 2**10


class WeightedPass:
    """A forward pass that can then be asked for the weighted attention of any number of scores.

    Args:
        model: one for which `can_intercept` is true.
        head_fusion: "mean", "max" or "min".
        exact: keep gradients in the model's own precision, however many tokens there are.
    """

    def __init__(self, model: nn.Module, layout: TokenLayout, head_fusion: str, *, exact: bool):
        self.model, self.layout, self.head_fusion = model, layout, head_fusion
        first = next(model.parameters())
        many = layout.tokens >= LOW_PRECISION_FROM and first.dtype == torch.float32
        low = many and not exact and _has_bf16(first.device)
        # small gradients would become 0 in float16
        self.magnified = MAGNIFIED if first.dtype == torch.float16 else 1
        self.low_precision = torch.bfloat16 if low else None
        self.start: Tensor | None = None  # where autograd begins
        self.queries: list[int] = []  # the tokens that attend, for each attention call
        self.weighted: dict[int, Tensor] = {}  # by number of the call, filled by a backward pass
        self.blocks: list[list[int]] = []  # the calls of each block, one for each branch
        self.pool: list[int] = []  # the call of the attention pool

    def run(self, images: Tensor) -> Tensor:
        """The logits of the pass, which autograd records; parameters are frozen until it ends."""
        interceptor = Interceptor(
            self.model, self.layout, self._attend, low_precision=self.low_precision
        )
        self.blocks, self.pool = interceptor.blocks, interceptor.pool
        with ExitStack() as undo:
            undo.enter_context(inference_state(self.model, freeze=True, fused=True))
            interceptor.install(undo)
            return interceptor.run(images)

    def factors(self, score: Tensor, start_block: int = 0, *, again: bool) -> AttentionFactors:
        """Each block's weighted attention (B, N, N), from one backward pass.

        Args:
            score: a scalar made of the logits.
            again: there will be another backward pass.

        Raises:
            UnsupportedModel: if some block's attention was not seen, or is not finite.
        """
        torch.autograd.grad(score * self.magnified, [self.start], retain_graph=again)
        blocks = [[self._whole(call) for call in calls] for calls in self.blocks]
        pool = self._whole(self.pool[0]) if self.pool else None
        return factors_of(self.model, blocks, pool, start_block)

    def _attend(self, call: AttentionCall) -> tuple[Tensor, int]:
        if self.start is None:
            self.start = torch.zeros((), device=call.query.device, requires_grad=True)
        number = len(self.queries)
        self.queries.append(call.query.shape[2])
        query = call.query[:, :, : call.rows]
        output = _WeightedAttention.apply(
            self.start, query, call.key, call.value, call.bias, call.scale, self, number
        )
        return output, number

    def _whole(self, number: int) -> Tensor:
        """(B, n, N): rows that nobody reads have no gradient, and were left out."""
        weighted = self.weighted.pop(number)
        if self.magnified != 1:
            weighted /= self.magnified
        return F.pad(weighted, (0, 0, 0, self.queries[number] - weighted.shape[1]))


class _WeightedAttention(torch.autograd.Function):
    """Attention whose backward pass also leaves the fused (A * dA)^+ with its WeightedPass."""

    @staticmethod
    def forward(ctx, _start, query, key, value, bias, scale, owner, number):
        bias = None if bias is None else bias[:, :, : query.shape[2]]
        ctx.save_for_backward(query, key, value, bias)
        ctx.scale, ctx.owner, ctx.number = scale, owner, number
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, bias = ctx.saved_tensors
        fused = FusedHeads(ctx.owner.head_fusion, query, key.shape[2])
        needed = any(ctx.needs_input_grad[1:4])  # not in the first block: nothing is before it
        # summed over the pieces, so in float32 at least
        kind = torch.promote_types(query.dtype, torch.float32)
        gradients = [
            torch.zeros_like(t, dtype=kind) if needed else None for t in (query, key, value)
        ]
        low = ctx.owner.low_precision  # for all products after the softmax
        factors = [t.to(low or t.dtype) for t in (query * ctx.scale, key, value, gradient)]
        for part in parts(query, key.shape[2]):
            attention = softmax_of(query, key, bias, ctx.scale, part)
            heads = part[:2]  # all rows of these
            queries, of_output = factors[0][part], factors[3][part]
            keys, values = factors[1][heads], factors[2][heads]
            weighted = (of_output @ values.transpose(-2, -1)).to(attention.dtype)  # dA
            weighted *= attention  # A * dA
            if needed:
                gradients[2][heads] += attention.to(of_output.dtype).transpose(-2, -1) @ of_output
                attention *= weighted.sum(dim=-1, keepdim=True)
                scores = torch.sub(weighted, attention, out=attention).to(of_output.dtype)  # dS
                gradients[0][part] = (scores @ keys).to(gradient.dtype) * ctx.scale
                gradients[1][heads] += scores.transpose(-2, -1) @ queries
            fused.add(weighted.clamp_(min=0), part)
        ctx.owner.weighted[ctx.number] = fused.result()
        gradients = [each if each is None else each.to(query.dtype) for each in gradients]
        return torch.zeros_like(ctx.owner.start), *gradients, None, None, None, None


def _has_bf16(device: torch.device) -> bool:
    """True for a CPU that computes in bfloat16, several times as fast as in float32."""
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
