"""Each rule against its formula, all together against a slow LRP without any gradient."""

import math
from contextlib import ExitStack

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from families import FAMILIES, SMALL, assert_well_formed, make
from helpers import LAYOUTS, make_vit
from vitexplain.attention.capture import inference_state
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.methods.attnlrp import NONLINEAR, AttnLRP, LrpRules

MORE_FAMILIES = {  # not among those whose rollout is tested against recorded softmaxes
    "vit_base_patch16_clip_quickgelu_224": SMALL,
    "vit_small_patch16_18x2_224": SMALL,
    "swin_tiny_patch4_window7_224": {"depths": (2, 2), "embed_dim": 24, "num_heads": (3, 6)},
    "swinv2_tiny_window8_256": {"depths": (2, 2), "embed_dim": 24, "num_heads": (3, 6)},
}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relevance(function, inputs, relevance_out, gamma=0.0):
    """What the rules give each of `inputs`: input times modified gradient."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    with LrpRules(gamma):
        output = function(*inputs)
    gradients = torch.autograd.grad(output, inputs, relevance_out / output.detach())
    return [(t * g).detach() for t, g in zip(inputs, gradients, strict=True)]


@pytest.mark.parametrize("gamma", [0, 0.25, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_rule(gamma, biased):
    inputs, weight, given = random(5, 4), random(3, 4, seed=1), random(5, 3, seed=2)
    bias = random(3, seed=3) if biased else None
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for row in range(5):
        for j in range(3):
            parts = [float(inputs[row, i] * weight[j, i]) for i in range(4)]
            parts += [float(bias[j])] if biased else []
            sign = 1 if sum(parts) > 0 else -1
            parts = [p * (1 + gamma) if p * sign > 0 else p for p in parts]
            for i in range(4):
                expected[row, i] += parts[i] / sum(parts) * given[row, j]
    (found,) = relevance(lambda x: F.linear(x, weight, bias), [inputs], given, gamma)
    torch.testing.assert_close(found, expected)
    assert biased or torch.allclose(found.sum(), given.sum())


@pytest.mark.parametrize("name", sorted(NONLINEAR))
def test_nonlinearity_hands_on_all_relevance(name):
    function = getattr(F, name, None) or getattr(torch, name)
    inputs = random(40)
    given = random(40, seed=1) * (function(inputs) != 0)  # an output of 0 has none
    (found,) = relevance(function, [inputs], given)
    torch.testing.assert_close(found.nan_to_num(), given)  # 0 / 0 in the test's own division


@pytest.mark.parametrize(("name", "at_zero"), [("gelu", 0.5), ("silu", 0.5), ("tanh", 1.0)])
def test_small_neurons_hand_on_their_relevance(name, at_zero):
    """f(x) / x has a limit at 0, of which the smallest neurons are no exception."""
    neurons = torch.tensor([3e-7, -2e-8, 5e-9, 0.0], requires_grad=True)
    function = getattr(F, name)
    with LrpRules(0):
        (gradient,) = torch.autograd.grad(function(neurons).sum(), neurons)
    expected = [at_zero] * 3 + [0.0]  # 0 / 0 has no relevance to hand on
    torch.testing.assert_close(gradient, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_nonlinearity_in_place(name):
    function, inputs = getattr(F, name), random(40)
    leaf = inputs.clone().requires_grad_()
    with LrpRules(0):
        torch.testing.assert_close(function(leaf * 1, inplace=True), function(inputs))
    found = relevance(lambda x: function(x * 1, inplace=True), [inputs], function(inputs))
    torch.testing.assert_close(found[0].nan_to_num(), function(inputs))


def test_quick_gelu_hands_on_all_relevance():
    """Made of a product and a sigmoid: half of it goes by the one, half by the other."""
    inputs, given = random(40), random(40, seed=1)
    (found,) = relevance(lambda x: x * torch.sigmoid(1.702 * x), [inputs], given)
    torch.testing.assert_close(found, given)


@pytest.mark.parametrize("function", [torch.softmax, F.softmax])
def test_softmax_rule(function):
    inputs, given = random(2, 5), random(2, 5, seed=1)
    softmax = inputs.softmax(dim=-1)
    expected = torch.empty_like(inputs)
    for row, i in np.ndindex(2, 5):
        expected[row, i] = inputs[row, i] * (given[row, i] - softmax[row, i] * given[row].sum())
    (found,) = relevance(lambda x: function(x, dim=-1), [inputs], given)
    torch.testing.assert_close(found, expected)


def product_rule(first, second, given):
    """Proposition 3.3, entry by entry."""
    output = first @ second
    parts = torch.zeros_like(first), torch.zeros_like(second)
    for j, p in np.ndindex(*output.shape):
        for i in range(first.shape[1]):
            share = first[j, i] * second[i, p] / (2 * output[j, p]) * given[j, p]
            parts[0][j, i] += share
            parts[1][i, p] += share
    return parts


def test_matrix_product_rule():
    first, second, given = random(4, 3), random(3, 5, seed=1), random(4, 5, seed=2)
    expected = product_rule(first, second, given)
    for found in (
        relevance(torch.matmul, [first, second], given),
        relevance(lambda a, b: a @ b, [first, second], given),
        relevance(lambda a, b: torch.bmm(a[None], b[None])[0], [first, second], given),
    ):
        torch.testing.assert_close(found, list(expected))


def test_product_rule():
    first, second, given = random(7), random(7, seed=1), random(7, seed=2)
    torch.testing.assert_close(relevance(torch.mul, [first, second], given), [given / 2] * 2)
    torch.testing.assert_close(relevance(lambda x: x * second, [first], given), [given])
    (found,) = relevance(lambda x: first[:, None].T @ x[:, None], [second], given[:1, None])
    torch.testing.assert_close(found.sum(), given[0])


def test_fused_attention_equals_its_parts():
    shape = (1, 2, 4, 3)
    inputs, given = [random(*shape, seed=seed) for seed in range(3)], random(*shape, seed=3)
    found = relevance(F.scaled_dot_product_attention, inputs, given)
    for head in range(2):
        query, key, value = (t[0, head] for t in inputs)
        scores = query @ key.T / math.sqrt(3)
        softmax = scores.softmax(dim=-1)
        of_softmax, of_value = product_rule(softmax, value, given[0, head])
        of_scores = scores * (of_softmax - softmax * of_softmax.sum(dim=-1, keepdim=True))
        of_query, of_key = product_rule(query, key.T, of_scores)
        for part, expected in zip(found, (of_query, of_key.T, of_value), strict=True):
            torch.testing.assert_close(part[0, head], expected)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm", "normalize"])
def test_norm_rules(kind):
    """Proposition 3.4: the deviation, or norm, is a constant of a linear layer."""
    inputs, given = random(2, 5), random(2, 5, seed=1)
    weight, bias, eps = random(5, seed=2), random(5, seed=3), 1e-3
    functions = {
        "layer_norm": lambda x: F.layer_norm(x, (5,), weight, bias, eps),
        "rms_norm": lambda x: F.rms_norm(x, (5,), weight, eps),
        "normalize": lambda x: F.normalize(x, dim=-1),
    }
    (found,) = relevance(functions[kind], [inputs], given)
    for row in range(2):
        x = inputs[row].tolist()
        mean = sum(x) / 5 if kind == "layer_norm" else 0.0
        size = sum((value - mean) ** 2 for value in x) / (1 if kind == "normalize" else 5)
        deviation = math.sqrt(size + (0 if kind == "normalize" else eps))
        expected = torch.zeros(5, dtype=torch.float64)
        for i in range(5):
            scale = (1 if kind == "normalize" else float(weight[i])) / deviation
            output = scale * (x[i] - mean) + (float(bias[i]) if kind == "layer_norm" else 0)
            for k in range(5):
                entry = scale * ((i == k) - (1 / 5 if kind == "layer_norm" else 0))
                expected[k] += x[k] * entry / output * given[row, i]
        torch.testing.assert_close(found[row], expected)


class SlowLrp:
    """LRP of one image through a plain ViT with a class token, relevance by relevance.

    Attributes:
        absorbed: the relevance that did not go on: to biases, and by the softmaxes.
    """

    def __init__(self, model, gamma):
        self.model, self.gamma, self.absorbed = model, gamma, 0.0

    def linear(self, layer, inputs, given, gamma=None):
        return self.contributions(inputs[:, None] * layer.weight, layer.bias, given, gamma)

    def contributions(self, parts, bias, given, gamma=None):
        """Relevance of inputs i, from parts (n, j, i) of outputs j, bias (j), and given (n, j)."""
        gamma = self.gamma if gamma is None else gamma
        parts = torch.cat((parts, bias.expand(len(parts), -1)[..., None]), dim=2)
        sign = parts.sum(dim=2, keepdim=True).sign()
        parts = parts + gamma * parts.where(parts * sign > 0, 0.0)
        shares = parts / parts.sum(dim=2, keepdim=True) * given[..., None]
        self.absorbed += shares[..., -1].sum()
        return shares[..., :-1].sum(dim=1)

    def norm(self, layer, inputs, given):
        deviation = (inputs.var(dim=1, unbiased=False) + layer.eps).sqrt()
        matrix = layer.weight[:, None] * (torch.eye(inputs.shape[1]) - 1 / inputs.shape[1])
        parts = inputs[:, None] * matrix / deviation[:, None, None]
        return self.contributions(parts, layer.bias, given, gamma=0)

    def residual(self, stream, branch, given):
        share = given / (stream + branch)
        return stream * share, branch * share

    def attention(self, layer, inputs, given):
        dim = inputs.shape[1] // layer.num_heads
        projected = layer.qkv(inputs)
        heads = projected.view(len(inputs), 3, layer.num_heads, dim)
        back = torch.zeros_like(heads)
        outputs, parts = [], []
        for head in range(layer.num_heads):
            query, key, value = heads[:, :, head].unbind(1)
            scores = query @ key.T / math.sqrt(dim)
            parts.append((query, key, value, scores, scores.softmax(dim=1)))
            outputs.append(parts[-1][-1] @ value)
        given = self.linear(layer.proj, torch.cat(outputs, dim=1), given)
        for head, (query, key, value, scores, softmax) in enumerate(parts):
            here = given[:, head * dim : (head + 1) * dim]
            of_softmax, back[:, 2, head] = product_rule(softmax, value, here)
            of_scores = scores * (of_softmax - softmax * of_softmax.sum(dim=1, keepdim=True))
            self.absorbed += of_softmax.sum() - of_scores.sum()
            back[:, 0, head], of_key = product_rule(query, key.T, of_scores)
            back[:, 1, head] = of_key.T
        return self.linear(layer.qkv, inputs, back.flatten(1))

    def mlp(self, layer, inputs, given):
        hidden = layer.fc1(inputs)
        given = self.linear(layer.fc2, F.gelu(hidden), given)
        return self.linear(layer.fc1, inputs, given)

    def of_tokens(self, image, category):
        """(relevance of the patches, of class token and position embeddings, logit)."""
        model, kept = self.model, []
        patches = model.patch_embed(image[None])[0]
        embedded = torch.cat((model.cls_token[0], patches)) + model.pos_embed[0]
        stream = embedded
        for block in model.blocks:
            attended = block.attn(block.norm1(stream)[None])[0]
            middle = stream + attended
            kept.append((block, stream, attended, middle, block.mlp(block.norm2(middle))))
            stream = middle + kept[-1][-1]
        logits = model.head(model.norm(stream)[0])
        given = torch.zeros_like(logits)
        given[category] = logits[category]
        first = self.linear(model.head, model.norm(stream)[:1], given[None])
        given = torch.zeros_like(stream)
        given[:1] = self.norm(model.norm, stream[:1], first)
        for block, stream, attended, middle, added in reversed(kept):
            given, branch = self.residual(middle, added, given)
            branch = self.mlp(block.mlp, block.norm2(middle), branch)
            given = given + self.norm(block.norm2, middle, branch)
            given, branch = self.residual(stream, attended, given)
            branch = self.attention(block.attn, block.norm1(stream), branch)
            given = given + self.norm(block.norm1, stream, branch)
        of_patches = (given[1:] * patches / embedded[1:]).sum(dim=1)
        return of_patches, given.sum() - of_patches.sum(), logits[category]


@pytest.mark.parametrize("gamma", [0, 0.2])
def test_model_equals_slow_calculation(gamma, images):
    torch.set_default_dtype(torch.float64)
    try:
        model = make_vit(depth=2, embed_dim=12)
        categories = [5, 0, 3]
        masks = AttnLRP(model, gamma).batch(images, categories)
        for image, category, mask in zip(images.double(), categories, masks, strict=True):
            slow = SlowLrp(model, gamma)
            with torch.no_grad():
                patches, rest, logit = slow.of_tokens(image, category)
            # nothing is lost: what the patches don't get, others got
            torch.testing.assert_close(patches.sum() + rest + slow.absorbed, logit)
            expected = patches.clamp(min=0).view(4, 4) / patches.max()
            np.testing.assert_allclose(mask, expected, atol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


class ConstantSoftmax(TorchFunctionMode):
    """In it attention is a constant: softmax is the only rule that keeps relevance back."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            args = (args[0].detach(), args[1].detach(), *args[2:])
        result = func(*args, **(kwargs or {}))
        return result.detach() if name == "softmax" else result


def family(name):
    if name in FAMILIES:
        return make(name), (SMALL | FAMILIES[name][0])["img_size"]
    torch.manual_seed(0)
    model = timm.create_model(name, **{"img_size": 64, "num_classes": 5} | MORE_FAMILIES[name])
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "patch_embed" not in parameter_name:
                parameter.normal_(std=0.15)
    return model.eval(), 64


@pytest.mark.parametrize("gamma", [0, 0.25])
@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "eva_large_patch14_196",
        "beit_base_patch16_224",
        "aimv2_large_patch14_224",
        "vit_relpos_small_patch16_224",
        "vit_small_patch16_rope_mixed_224",
        "vit_pe_core_tiny_patch16_384",
        "vit_base_patch16_siglip_224",
        "vit_pwee_patch16_reg1_gap_256",
        *MORE_FAMILIES,
    ],
)
def test_nothing_escapes_the_rules(name, gamma):
    """Without biases and additive embeddings all of the logit's relevance reaches the patches."""
    model, side = family(name)
    model.double()
    tokens = []
    with torch.no_grad():
        for parameter_name, tensor in (*model.named_parameters(), *model.named_buffers()):
            added = parameter_name.endswith("bias") or "pos_embed" in parameter_name
            if "patch_embed" not in parameter_name and (added or "_token" in parameter_name):
                tensor.zero_()

    def begin(_layer, _inputs, output):
        tokens.append(output.detach().requires_grad_())
        return tokens[0]

    with ExitStack() as undo:
        undo.enter_context(inference_state(model, freeze=True, fused=True))
        undo.callback(model.patch_embed.register_forward_hook(begin).remove)
        undo.enter_context(LrpRules(gamma))
        undo.enter_context(ConstantSoftmax())
        logits = model(random(2, 3, side, side))[:, 1]
    (gradient,) = torch.autograd.grad(logits.sum(), tokens)
    found = (tokens[0] * gradient).flatten(1).sum(dim=1)
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224", "test_vit3", *MORE_FAMILIES],
)
def test_family(name):
    model, side = family(name)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    found = AttnLRP(model).explain(images)
    assert_well_formed(found, model, images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_categories_do_not_mix(layout):
    model = make_vit(**LAYOUTS[layout][0] | {"img_size": (24, 40)}).requires_grad_(False)
    images = torch.randn(3, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    explainer = AttnLRP(model, gamma=0.1)
    several = explainer.explain_several(images, [[5, 1], [0, 2], [3, 3]])
    for number, categories in enumerate(([5, 0, 3], [1, 2, 3])):
        for index, category in enumerate(categories):
            alone = explainer(images[index : index + 1], category)
            assert alone.shape == (3, 5)
            np.testing.assert_allclose(several[number].masks[index], alone, atol=1e-4)


def test_parameters_take_no_share_of_products(images):
    """LayerScale and the pooling query are constants, whether they are being trained or not."""
    trained = make_vit(init_values=0.5, global_pool="map")
    masks = AttnLRP(trained).batch(images, [1, 2, 3])
    frozen = make_vit(init_values=0.5, global_pool="map").requires_grad_(False)
    np.testing.assert_allclose(AttnLRP(frozen).batch(images, [1, 2, 3]), masks, atol=1e-6)


def test_grid_follows_the_input():
    """With dynamic sizes timm's embedding gives (B, h, w, C), and the grid is not that built."""
    model = make_vit(dynamic_img_size=True, dynamic_img_pad=True)
    assert AttnLRP(model)(torch.randn(1, 3, 30, 52)).shape == (4, 7)


def test_model_is_left_as_it_was(images):
    model = make_vit().train()
    model.head.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    explainer = AttnLRP(model)
    explainer.batch(images, [1, 2, 3])
    with pytest.raises(ValueError, match="does not take 40x40"):
        explainer.batch(torch.randn(1, 3, 40, 40), [1])
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not model.patch_embed._forward_hooks


def test_refusals(images):
    with pytest.raises(UnsupportedModel, match="talking heads"):
        AttnLRP(timm.create_model("cait_xxs24_224"))
    for gamma in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="gamma must be at least 0"):
            AttnLRP(make_vit(), gamma)
    with pytest.raises(ValueError, match="no categories"):
        AttnLRP(make_vit(num_classes=0)).explain(images)
