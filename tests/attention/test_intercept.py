"""What is asked of the model while its attention calls are answered."""

import numpy as np
import pytest
import torch

from families import hooked
from helpers import make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention.fused import fused_attention
from vitexplain.attention.intercept import AttentionCall, as_bias
from vitexplain.attention.tokens import UnsupportedModel


def test_a_boolean_mask_is_minus_infinity():
    """Eva takes masks; what is masked is not attended to."""
    query, key, value = torch.randn(3, 2, 3, 5, 4).unbind(0)
    mask = torch.rand(2, 1, 5, 5) > 0.3
    mask[..., 0] = True
    call = AttentionCall(query, key, value, as_bias(mask, query), 0.5, rows=5, is_final=False)
    output, whole = fused_attention(call, "max")
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.5)
    torch.testing.assert_close(output, expected)
    assert not whole[~mask[:, 0]].any()


def test_nothing_after_the_last_attention_is_computed_for_maps_alone(images):
    model = make_vit()
    seen = []
    for name in ("blocks.1.mlp", "blocks.2.norm1", "blocks.2.mlp", "norm", "head"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    masks = VITAttentionRollout(model).batch(images)
    assert seen == ["blocks.1.mlp", "blocks.2.norm1"]
    explanation = VITAttentionRollout(model).explain(images)
    assert seen[2:] == ["blocks.1.mlp", "blocks.2.norm1", "blocks.2.mlp", "norm", "head"]
    np.testing.assert_array_equal(explanation.masks, masks)
    with torch.no_grad():
        torch.testing.assert_close(explanation.logits, model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("explainer", [VITAttentionRollout, VITAttentionGradRollout])
def test_attention_that_is_not_finite_is_refused(explainer, images):
    model = make_vit()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[:] = torch.nan
    with pytest.raises(UnsupportedModel, match="not finite"):
        explainer(model).batch(images)


def test_attention_over_other_tokens_is_refused(images):
    model = make_vit()
    attention = model.blocks[1].attn
    forward = attention.forward
    attention.forward = lambda x, **kwargs: torch.cat([forward(x[:, :9], **kwargs), x[:, 9:]], 1)
    with pytest.raises(UnsupportedModel, match=r"where .*17.* w(as|ere) due"):
        VITAttentionRollout(model).batch(images)


def test_fewer_patches_than_prefix_tokens():
    """Pooled are the last tokens, then, not the first ones of the last block."""
    images = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(6))
    settings = {"img_size": (8, 16), "reg_tokens": 5, "global_pool": "avg"}
    for explainer in (VITAttentionRollout, VITAttentionGradRollout):
        made = explainer(make_vit(**settings), discard_ratio=0.3).explain(images)
        captured = explainer(hooked(make_vit(**settings)), discard_ratio=0.3).explain(images)
        np.testing.assert_allclose(made.logits, captured.logits, atol=1e-5)
        np.testing.assert_allclose(made.masks, captured.masks, atol=1e-4)
