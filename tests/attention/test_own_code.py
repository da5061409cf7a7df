"""Attention, layers and forward passes that people put into timm's models."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from helpers import make_vit
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.errors import RequestError
from vitexplain.methods.registry import METHODS

# those that need to know where its tokens are
OF_TOKENS = sorted({*METHODS} - {"integrated_gradients", "occlusion"})
OF_ATTENTION = ("attention_rollout", "attention", "grad_rollout", "relevance", "legrad")


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    """timm's attention written out, passing no module."""

    def __init__(self, timms):
        super().__init__()
        self.qkv, self.proj, self.heads = timms.qkv, timms.proj, timms.num_heads
        self.attn_drop = nn.Identity()

    def forward(self, x, **_):
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(query, key, value).transpose(1, 2).flatten(2))

    def attend(self, query, key, value):
        return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value


class Hookable(Attention):
    def attend(self, query, key, value):
        return self.attn_drop((query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)) @ value


class Fused(Attention):
    def forward(self, x, **_):
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class LowRank(nn.Linear):
    """A linear layer with an adapter, as fine-tuning adds them."""

    def __init__(self, layer, rank=2):
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        torch.manual_seed(3)
        self.down, self.up = (nn.Parameter(torch.randn(24, rank)) for _ in range(2))

    def forward(self, x):
        return super().forward(x) + x @ self.down @ self.up.T

    def merged(self):
        layer = nn.Linear(24, 24)
        layer.weight = nn.Parameter(self.weight + self.up @ self.down.T)
        layer.bias = self.bias
        return layer


def with_attention(kind):
    model = make_vit()
    for block in model.blocks:
        block.attn = kind(block.attn)
    return model


class Skipping(VisionTransformer):
    """Its head reads the middle block beside the last one."""

    def forward(self, x):
        x = self._pos_embed(self.patch_embed(x))
        middle = x = self.blocks[1](self.blocks[0](x))
        return self.head(self.norm(self.blocks[2](x) + middle)[:, 0])


@pytest.mark.parametrize("name", OF_TOKENS)
def test_what_earlier_blocks_give_to_the_head_is_not_left_out(name, images):
    model = make_vit(Skipping)
    with pytest.raises(UnsupportedModel, match="reads other things beside the last block's tokens"):
        METHODS[name].make(model).explain(images)


@pytest.mark.parametrize("name", OF_ATTENTION)
def test_attention_of_ones_own_is_seen_where_it_passes(name, images):
    expected = METHODS[name].make(make_vit()).batch(images)
    np.testing.assert_allclose(
        METHODS[name].make(with_attention(Hookable)).batch(images), expected, atol=1e-5
    )
    with pytest.raises(UnsupportedModel, match=r"0 of its 3 blocks was seen"):
        METHODS[name].make(with_attention(Attention)).batch(images)
    if name not in ("attention", "legrad"):
        fused = METHODS[name].make(with_attention(Fused)).batch(images)
        np.testing.assert_allclose(fused, expected, atol=1e-5)


def test_a_consensus_needs_attention_that_all_of_its_methods_see(images):
    found = METHODS["consensus"].make(with_attention(Hookable)).batch(images)
    np.testing.assert_allclose(
        found, METHODS["consensus"].make(make_vit()).batch(images), atol=1e-4
    )
    with pytest.raises(UnsupportedModel, match="of its block 0 was not seen by LeGrad"):
        METHODS["consensus"].make(with_attention(Fused)).batch(images)


@pytest.mark.parametrize("name", ["gradcam", "attnlrp", "integrated_gradients"])
def test_methods_without_attention_need_not_see_it(name, images):
    found = METHODS[name].make(with_attention(Attention)).batch(images, [1, 2])
    expected = METHODS[name].make(make_vit()).batch(images, [1, 2])
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_adapters_count(name, images):
    """A layer with a low-rank addition is as the layer with the sum as its weight."""
    adapted, merged = make_vit(), make_vit()
    for block, twin in zip(adapted.blocks, merged.blocks, strict=True):
        block.attn.proj = LowRank(block.attn.proj)
        twin.attn.proj = block.attn.proj.merged()
    found, expected = (METHODS[name].make(model).batch(images) for model in (adapted, merged))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - METHODS[name].make(make_vit()).batch(images)).max() > 0.01


@pytest.mark.parametrize("name", sorted(METHODS))
def test_nan_in_weights_is_refused(name, images):
    model = make_vit()
    with torch.no_grad():
        model.blocks[2].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(UnsupportedModel, match="not finite"):
        METHODS[name].make(model).explain(images)


def test_quantised_layers_are_refused():
    model = torch.ao.quantization.quantize_dynamic(make_vit(), {nn.Linear})
    with pytest.raises(UnsupportedModel, match="quantised"):
        METHODS["grad_rollout"].make(model)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_other_precisions_of_the_process_and_of_the_model(name, images):
    expected = METHODS[name].make(make_vit()).batch(images)
    model = make_vit()
    torch.set_default_dtype(torch.float64)
    try:
        found = METHODS[name].make(model).batch(images)
        double = METHODS[name].make(model.double()).batch(images)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(double, expected, atol=1e-3)


class Pair(VisionTransformer):
    def forward(self, x):
        return super().forward(x), x


class Dictionary(VisionTransformer):
    def forward(self, x):
        return {"logits": super().forward(x)}


class WithAge(VisionTransformer):
    def forward(self, x, age):
        return super().forward(x) * age


class Prompted(VisionTransformer):
    """Learned tokens between the class token and the patches."""

    def _pos_embed(self, x):
        x = super()._pos_embed(x)
        return torch.cat([x[:, :1], torch.ones(len(x), 2, x.shape[2]), x[:, 1:]], dim=1)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Pair, "returns a tuple where logits"),
        (Dictionary, "returns a dict where logits"),
        (WithAge, "fails.* 'age'"),
    ],
)
def test_forward_passes_that_cannot_be_followed(cls, reason, name, images):
    with pytest.raises(UnsupportedModel, match=reason):
        METHODS[name].make(make_vit(cls)).explain(images)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_tokens_that_are_no_patches_are_refused(name, images):
    with pytest.raises(UnsupportedModel, match="19 tokens where 17 were due"):
        METHODS[name].make(make_vit(Prompted)).explain(images)


@pytest.mark.parametrize("cls", [Skipping, Prompted])
def test_what_needs_no_tokens_explains_any_forward_pass(cls, images):
    """Covering a patch by hand is what occlusion's score is."""
    model = make_vit(cls)
    found = METHODS["occlusion"].make(model).explain(images, [2] * len(images))
    covered = images.clone()
    height, width = (
        pixels // count
        for pixels, count in zip(images.shape[2:], found.scores.shape[1:], strict=True)
    )
    covered[:, :, height : 2 * height, :width] = 0
    with torch.no_grad():
        lost = (model(images) - model(covered))[:, 2]
    np.testing.assert_allclose(found.scores[:, 1, 0], lost, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.zeros((1, 3, 32, 32), np.float32), "not ndarray: vitexplain.explain takes images"),
        (torch.zeros(3, 32, 32), r"not \(3, 32, 32\): add the batch, x\[None\]"),
        (torch.zeros(1, 1, 32, 32), "takes images of 3 channels, not 1"),
    ],
)
def test_inputs_that_are_no_batch_of_images(given, reason):
    with pytest.raises(RequestError, match=reason):
        METHODS["attention_rollout"].make(make_vit()).batch(given)
