"""AttnLRP: the logit is passed back from layer to layer, to the patches that it came from.

Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers"
(ICML). Each layer splits the relevance of its outputs among its inputs:

    linear layer       R_i = sum_j x_i W_ji / z_j R_j                    equation 8 (see below)
    non-linearity      R_i = R_j: one input, one output                 equation 9
    softmax            R_i = x_i (R_i - s_i sum_j R_j)                   proposition 3.1
    product A V        A and V get half each, as by equation 8           proposition 3.3
    normalisation      as a linear layer, the deviation being constant   proposition 3.4

All of these can be written as input times a modified gradient, R_i = x_i dy/dx_i, so that one
backward pass finds the relevance: here the forward pass is changed wherever its gradient must be a
different one, and its values stay the same. Parameters take relevance, too (biases, position
embeddings), and softmax does not conserve it, so that the patches' relevance need not sum to the
logit.

Linear layers can have the gamma rule, as in the paper's Vision Transformers (Montavon et al. 2019,
"Layer-Wise Relevance Propagation: An Overview", extended by Andéol et al. 2021 to inputs of either
sign): contributions with the sign of their output count 1 + gamma times. Maps become smoother, and
differ less from category to category. Without it they localise best. On 40 mosaics of four
photographs, the share of the map in the right one is, for gamma 0, 0.05, 0.25 and 1, 0.74, 0.62,
0.46 and 0.31 with the bundled model, 0.60, 0.57, 0.45 and 0.36 with DeiT-tiny.

Relevance is read at the output of the patch embedding, before position embeddings are added, and
summed over the channels. So convolutions before the tokens, as in a hybrid, need no rule. Positive
relevance is evidence for the category, negative relevance is evidence against it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitexplain.attention.capture import forward, inference_state
from vitexplain.attention.tokens import TokenLayout, check_supported
from vitexplain.errors import RequestError
from vitexplain.methods.base import CategoryMethod, Choose, chosen_logits, on_grid

# Smaller inputs take no relevance, because it is divided by them. Smaller than any neuron of a
# trained model: with 1e-6, maps of DeiT-tiny were off by 4e-3 of their maximum.
STABLE = 1e-9

# element-wise functions of one input; their names in torch, for functions and methods alike
NONLINEAR = frozenset(
    "elu gelu hardsigmoid hardswish leaky_relu mish relu relu6 sigmoid silu softplus tanh".split()
)


class AttnLRP(CategoryMethod):
    """AttnLRP of a timm ViT's patches, for one category of each image.

    Args:
        model: any that check_supported lets pass; used in evaluation mode, left as it was found.
            It may be frozen, and no `.grad` appears anywhere.
        gamma: of linear layers, >= 0. 0 is the plain rule (equation 8).

    Raises:
        UnsupportedModel: if the model is of no family that can be explained.
        RequestError: if gamma is negative.
    """

    linear = True

    def __init__(self, model: nn.Module, gamma: float = 0.0):
        model = check_supported(model)
        if not gamma >= 0:
            raise RequestError(f"gamma must be at least 0, not {gamma}")
        self.model, self.gamma = model, gamma

    def _scores(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        tokens: list[Tensor] = []

        def begin(_embedding, _inputs, output: Tensor) -> Tensor:
            tokens.append(output.detach().requires_grad_())
            return tokens[0]

        with ExitStack() as undo:
            undo.enter_context(inference_state(self.model, freeze=True, fused=True))
            undo.callback(self.model.patch_embed.register_forward_hook(begin).remove)
            undo.enter_context(LrpRules(self.gamma))
            logits = forward(self.model, images)
        categories = choose(logits.detach())
        scores = []
        for logit, again in chosen_logits(logits, categories):
            (gradient,) = torch.autograd.grad(logit, tokens, retain_graph=again)
            relevance = (tokens[0].detach() * gradient).sum(dim=-1).flatten(1)  # (B, h*w)
            scores.append(on_grid(relevance, layout.grid))
        return scores, logits, categories


class LrpRules(TorchFunctionMode):
    """In it, functions of tensors that carry relevance have the rules' gradients.

    A tensor carries relevance if it requires a gradient, so parameters must not require one.
    """

    def __init__(self, gamma: float):
        super().__init__()
        self.gamma = gamma

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")  # __mul__, mul_ and mul are one
        if name == "scaled_dot_product_attention":
            return attention(func, *args, **kwargs)
        if name in ("mul", "matmul", "bmm"):
            return product(func, *args, **kwargs)
        if not (args and _carries(args[0])):
            return func(*args, **kwargs)
        if name == "linear" and self.gamma:
            return linear(self.gamma, *args, **kwargs)
        if name in NONLINEAR:
            return nonlinear(func, *args, **kwargs)
        rule = NORMS.get(name)
        return rule(*args, **kwargs) if rule else func(*args, **kwargs)


def linear(gamma: float, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The gamma rule: R_i = sum_j c_ij / sum_i c_ij R_j with c_ij = x_i W_ji + gamma (x_i W_ji)^±.

    ± is the sign of output j; (p)^± = (p ± |p|) / 2, so that two products are enough. The bias
    is one of the contributions. With gamma = 0 the gradient is the rule.
    """
    with torch.no_grad():
        output = F.linear(inputs, weight, bias)
        absolute_bias = None if bias is None else bias.abs()
        absolute = F.linear(inputs.abs(), weight.abs(), absolute_bias)
        size = output.abs()
        whole = size + gamma / 2 * (size + absolute)  # sum_i c_ij, but for its sign
        share = size / whole.clamp(min=torch.finfo(whole.dtype).tiny)
    plain, signed = F.linear(inputs, weight), F.linear(inputs.abs(), weight.abs()) * output.sign()
    return _with_gradient_of(output, (plain + gamma / 2 * (plain + signed)) * share)


def nonlinear(func: Callable[..., Tensor], inputs: Tensor, *more, **other) -> Tensor:
    """Equation 9: all relevance is passed on, so that the gradient is f(x) / x."""
    x = inputs.detach()
    output = func(x.clone(), *more, **other)  # some work in place
    return _with_gradient_of(output, inputs * (output / x).where(x.abs() > STABLE, 0))


def layer_norm(
    inputs: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Proposition 3.4: subtracting the mean is linear, and the deviation is a constant."""
    dims = tuple(range(-len(shape), 0))
    centred = inputs - inputs.mean(dims, keepdim=True)
    normalised = centred * (centred.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    normalised = normalised if weight is None else normalised * weight
    return normalised if bias is None else normalised + bias


def rms_norm(
    inputs: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """As layer_norm, without a mean."""
    dims = tuple(range(-len(shape), 0))
    eps = torch.finfo(inputs.dtype).eps if eps is None else eps
    normalised = inputs * (inputs.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    return normalised if weight is None else normalised * weight


def normalize(inputs: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **_) -> Tensor:
    """As layer_norm: the norm is a constant (queries and keys of cosine attention)."""
    return inputs / inputs.detach().norm(p, dim, keepdim=True).clamp(min=eps)


NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm, "normalize": normalize}


def product(func: Callable[..., Tensor], first, second, **other) -> Tensor:
    """Proposition 3.3: two factors that carry relevance get half each; a constant gets none."""
    if _carries(first) and _carries(second):
        first, second = _part(first, 1 / 2), _part(second, 1 / 2)
    return func(first, second, **other)


def attention(
    func: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *more, **other
) -> Tensor:
    """softmax(Q K^T) V, its products by proposition 3.3 and its softmax by proposition 3.1.

    The value gets half. Of the other half, query and key get what softmax, by its own gradient,
    gives back, half each. (A query that is a parameter, as in attention pooling, gets none.) So
    the fused call can stay, and its matrix need not be held.
    """
    asking = _carries(query) + _carries(key)
    half = 1 / 2 if asking and _carries(value) else 1
    query, key = (_part(t, half / asking) if _carries(t) else t for t in (query, key))
    return func(query, key, _part(value, half) if _carries(value) else value, *more, **other)


def _carries(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _part(tensor: Tensor, part: float) -> Tensor:
    """The tensor, its gradient multiplied by `part`."""
    return _with_gradient_of(tensor, tensor * part)


def _with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """`value` to the last bit, with the gradient of `other`."""
    return value.detach() + (other - other.detach())
