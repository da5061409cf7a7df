"""What a head reads is found out from the model, and the maps follow it."""

from types import MethodType

import numpy as np
import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from families import FAMILIES, make
from helpers import LAYOUTS, expected_readout, make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout, rollout
from vitexplain.attention.capture import capture_attention
from vitexplain.attention.readout import Unreadable, means_of, reading_of
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import UnsupportedModel, blocks_of, token_layout
from vitexplain.methods.registry import METHODS

METHODS_HERE = sorted(METHODS)


class MeanOfPatches(VisionTransformer):
    def forward(self, x):
        return self.head(self.forward_features(x)[:, 1:].mean(1))


class PooledInFeatures(VisionTransformer):
    """As the code of masked autoencoders pools."""

    def __init__(self, **settings):
        super().__init__(**settings | {"global_pool": "avg", "fc_norm": True})
        self.global_pool = True

    def forward_features(self, x, **_):
        x = self._pos_embed(self.patch_embed(x))
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x[:, 1:].mean(dim=1))

    def forward_head(self, x):
        return self.head(x)


class Both(VisionTransformer):
    """The class token beside the mean of the patches."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.head = nn.Linear(2 * self.embed_dim, self.num_classes)

    def forward_head(self, x):
        return self.head(torch.cat([x[:, 0], x[:, 1:].mean(1)], dim=1))


class Blend(VisionTransformer):
    def pool(self, x):
        return 0.75 * x[:, 0] + 0.25 * x[:, 1:].mean(1)


class SomePatches(VisionTransformer):
    def pool(self, x):
        return x[:, [3, 7]].mean(1)


class ByContent(VisionTransformer):
    def pool(self, x):
        return (x.mean(-1, keepdim=True).softmax(1) * x).sum(1)


class ClassLast(VisionTransformer):
    """The class token behind the patches."""

    def _pos_embed(self, x):
        return super()._pos_embed(x).roll(-1, dims=1)

    def pool(self, x):
        return x[:, -1]


class Mirrored(VisionTransformer):
    def forward(self, x):
        return super().forward(x.flip(-1))


class Largest(VisionTransformer):
    def pool(self, x):
        return x.amax(1)


class Difference(VisionTransformer):
    def pool(self, x):
        return x[:, 0] - x[:, 1:].mean(1)


class SeveralBlocks(VisionTransformer):
    """The class token of the last two blocks."""

    def forward(self, x):
        x = self._pos_embed(self.patch_embed(x))
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x[:, 0])
        return self.head(sum(seen[-2:]))


def same_weights(model, **changes):
    """timm's own model with another read-out and the weights of `model`."""
    plain = make_vit(**changes)
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def explained(name, model, images):
    method = METHODS[name].make(model)
    return method.explain(images, [3, 4]) if METHODS[name].of_category else method.explain(images)


@pytest.mark.parametrize("name", METHODS_HERE)
@pytest.mark.parametrize("cls", [MeanOfPatches, PooledInFeatures])
def test_maps_are_those_of_timms_own_model_with_that_readout(cls, name, images):
    model = make_vit(cls)
    plain = same_weights(model, global_pool="avg", fc_norm=cls is PooledInFeatures)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images))
    found, expected = explained(name, model, images), explained(name, plain, images)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(found.masks, expected.masks, atol=1e-5)
    assert found.layout == expected.layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_timms_own_heads_read_what_their_attributes_say(layout):
    changes, prefix, _ = LAYOUTS[layout]
    model = make_vit(**changes)
    reading = reading_of(model, lambda m: blocks_of(m)[-1], (3, 32, 32))
    np.testing.assert_allclose(reading.shares, expected_readout(layout, prefix), atol=1e-6)


@pytest.mark.parametrize("name", ["attention_rollout", "relevance", "attention"])
@pytest.mark.parametrize(
    ("cls", "of_class"), [(Both, 0.5), (Blend, 0.75)], ids=["beside each other", "blended"]
)
def test_mixtures_weigh_rows(cls, of_class, name, images):
    model = make_vit(cls)
    layout = token_layout(model, 32, 32)
    weights = layout.readout_weights(images)[0]
    expected = torch.tensor([of_class] + [(1 - of_class) / 16] * 16)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
    assert layout.readout == (
        "class token and mean over 16 patches" if cls is Both else "weighted mean of 17 tokens"
    )
    found = explained(name, model, images)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(images), atol=1e-5, rtol=1e-5)


def test_rollout_of_a_mixture_is_that_of_its_rows(images):
    model = make_vit(Both)
    layout = token_layout(model, 32, 32)
    with torch.no_grad(), capture_attention(shadow_of(model), layout) as captured:
        captured.model(images)
    readout = torch.tensor([[0.5] + [0.5 / 16] * 16] * 2)
    expected = rollout(captured.summed(), 0.5, "max", readout=readout)
    found = VITAttentionRollout(model, head_fusion="max", discard_ratio=0.5).batch(images)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_single_patches_may_be_read(images):
    layout = token_layout(make_vit(SomePatches), 32, 32)
    assert layout.readout_rows == (3, 7)
    assert layout.readout_weights(images)[0, [3, 7]].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (ByContent, "weighs tokens by their content"),
        (Largest, "weighs tokens by their content"),
        (Difference, "subtracts tokens"),
        (SeveralBlocks, "other things beside the last block's tokens"),
        (ClassLast, "not prefix tokens followed by the image's patches"),
        (Mirrored, "not prefix tokens followed by the image's patches"),
    ],
)
def test_what_is_no_mean_is_refused(cls, reason, images):
    for method in (VITAttentionRollout, VITAttentionGradRollout):
        with pytest.raises(UnsupportedModel, match=reason) as caught:
            method(make_vit(cls)).explain(images)
        assert "work" not in str(caught.value)


def test_methods_put_in_an_instance_are_followed(images):
    """In whatever way they refer to the model: bound, by closure, by a global name."""
    global by_name
    bound, closed, by_name = make_vit(), make_vit(), make_vit()
    expected = VITAttentionGradRollout(same_weights(bound, global_pool="avg", fc_norm=False))
    bound.pool = MethodType(lambda _model, x: x[:, 1:].mean(1), bound)
    closed.forward = lambda x: closed.head(closed.forward_features(x)[:, 1:].mean(1))
    by_name.forward = eval(
        "lambda x: by_name.head(by_name.forward_features(x)[:, 1:].mean(1))", globals()
    )
    for model in (bound, closed, by_name):
        found = VITAttentionGradRollout(model).batch(images, [3, 5])
        np.testing.assert_allclose(found, expected.batch(images, [3, 5]), atol=1e-5)


def test_hooks_of_others_see_all_tokens(images):
    model, seen = make_vit(), []
    model.blocks[-1].register_forward_hook(lambda *args: seen.append(args[-1]))
    with torch.no_grad():
        model(images)
    VITAttentionRollout(model).explain(images)
    assert torch.allclose(seen[0], seen[1], atol=1e-5)


def test_a_forward_that_is_random_is_refused(images):
    class Random(VisionTransformer):
        def forward_head(self, x):
            return self.head(nn.functional.dropout(x[:, 0]))

    with pytest.raises(UnsupportedModel, match="random"):
        VITAttentionGradRollout(make_vit(Random)).explain(images)


def test_swin_with_a_forward_of_its_own(images):
    class Own(SwinTransformer):
        def forward(self, x):
            return self.head.fc(self.forward_features(x).mean(dim=(1, 2)))

    torch.manual_seed(0)
    settings = {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 12,
        "num_classes": 5,
        "depths": (2, 2),
        "num_heads": (1, 2),
    }
    own, plain = Own(**settings).eval(), SwinTransformer(**settings).eval()
    plain.load_state_dict(own.state_dict())
    pictures = torch.randn(2, 3, 64, 64)
    assert token_layout(own, 64, 64) == token_layout(plain, 64, 64)
    for name in ("attention_rollout", "grad_rollout"):
        found, expected = explained(name, own, pictures), explained(name, plain, pictures)
        np.testing.assert_allclose(found.masks, expected.masks, atol=1e-5)


def test_an_attention_pool_is_found_in_an_own_forward(images):
    class Own(VisionTransformer):
        def forward(self, x):
            return self.forward_head(self.forward_features(x))

    settings = {"class_token": False, "global_pool": "map"}
    own, plain = make_vit(Own, **settings), make_vit(**settings)
    plain.load_state_dict(own.state_dict())
    for method in ("relevance", "legrad"):
        found, expected = explained(method, own, images), explained(method, plain, images)
        assert found.layout == expected.layout
        np.testing.assert_allclose(found.masks, expected.masks, atol=1e-5)


def test_weights_of_means():
    """Two directions, three and two tokens, one not read."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    gradients = torch.stack([0.1 * first, 0 * first, 3 * second, 0.3 * first, 1 * second])
    heavy, light = means_of(gradients, 1e-6)
    torch.testing.assert_close(heavy, torch.tensor([0, 0, 0.75, 0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(light, torch.tensor([0.25, 0, 0, 0.75, 0], dtype=torch.float64))
    with pytest.raises(Unreadable, match="subtracts"):
        means_of(torch.stack([first, -0.5 * first]), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_own_readout_is_found(name):
    """The same model under a class with a forward of its own has the same layout and maps."""
    plain, own = make(name), make(name)
    own.__class__ = type("Own", (type(own),), {"forward": forward_of_ones_own, "__module__": "own"})
    size = plain.patch_embed.img_size or (64, 64)
    assert token_layout(own, *size).readout_rows == token_layout(plain, *size).readout_rows
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    for method in ("attention_rollout", "relevance", "legrad"):
        found, expected = explained(method, own, images), explained(method, plain, images)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(found.masks, expected.masks, atol=1e-4)


def forward_of_ones_own(model, x):
    return model.forward_head(model.forward_features(x))


@pytest.mark.slow
def test_deit_with_a_mean_in_its_forward():
    """The size that people have: maps as those of timm's own average pooling."""
    torch.manual_seed(0)
    plain = timm.create_model("deit_tiny_patch16_224", global_pool="avg", fc_norm=False).eval()
    model = MeanOfPatches(embed_dim=192, num_heads=3)
    model.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 224, 224)
    found = VITAttentionGradRollout(model)(image, 282)
    expected = VITAttentionGradRollout(plain)(image, 282)
    np.testing.assert_allclose(found, expected, atol=1e-4)
