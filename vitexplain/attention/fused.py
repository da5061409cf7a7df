"""Fuse attention over its heads during the pass; the full (B, H, N, N) never exists.

Rollout reads each block's attention once, fused over the heads, and a few heads at a time are
enough for that: at 1370 tokens 50 MB instead of 540 MB.
"""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from vitexplain.attention.capture import AttentionFactors, inference_state
from vitexplain.attention.chunks import FusedHeads, parts, softmax_of
from vitexplain.attention.intercept import AttentionCall, Interceptor
from vitexplain.attention.tokens import TokenLayout


def fused_factors(
    model: nn.Module,
    images: Tensor,
    layout: TokenLayout,
    head_fusion: str,
    start_block: int = 0,
    *,
    with_logits: bool = True,
) -> tuple[AttentionFactors, Tensor | None]:
    """Each block's attention (B, N, N), heads fused, and the logits, from one forward pass.

    Args:
        model: one for which `can_intercept` is true.
        head_fusion: "mean", "max" or "min".
        with_logits: if they are not wanted, the pass stops at the last attention.

    Raises:
        UnsupportedModel: if what is called is not attention over the tokens of `layout`, or is not
            finite.
        RequestError: if the model does not take images of this size.
    """
    memory = _OneMemory()
    attend = partial(fused_attention, head_fusion=head_fusion, memory=memory)
    interceptor = Interceptor(model, layout, attend, only_attention=not with_logits)
    memory.count = interceptor.block_calls
    with ExitStack() as undo:
        undo.enter_context(inference_state(model, freeze=False, fused=True))
        interceptor.install(undo)
        logits = interceptor.run(images)
    return interceptor.factors(start_block), logits


class _OneMemory:
    """The matrices of all blocks, in one piece: among what a pass frees, they would leave gaps."""

    count = 0  # of the matrices

    def __init__(self):
        self._rest: list[Tensor] = []

    def of(self, query: Tensor, keys: int) -> Tensor | None:
        """Room for the next matrix (B, n, N) float32; None for one that is not of a block."""
        if self.count:
            shape = self.count, len(query), query.shape[2], keys
            self._rest = list(query.new_empty(shape, dtype=torch.float32))
            self.count = 0
        return self._rest.pop(0) if self._rest else None


def fused_attention(
    call: AttentionCall, head_fusion: str, memory: _OneMemory | None = None
) -> tuple[Tensor, Tensor]:
    """The output (B, H, rows, d) of an attention call, and its fused matrix (B, n, N)."""
    query, key, value = call.query, call.key, call.value
    into = memory.of(query, key.shape[2]) if memory else None
    fused = FusedHeads(head_fusion, query, key.shape[2], into)
    batch, heads = query.shape[:2]
    rows = 0 if call.is_final else call.rows
    # heads beside each other in memory, as the projection that follows wants them
    output = query.new_empty(batch, rows, heads, value.shape[3]).transpose(1, 2)
    for part in parts(query, key.shape[2]):
        attention = softmax_of(query, key, call.bias, call.scale, part)
        here = output[part]
        here.copy_(attention[:, :, : here.shape[2]] @ value[part[:2]])
        fused.add(attention, part)
    return output, fused.result()
