"""Methods that might be better than those of the product: see benchmarks.candidate_list.

Each is one as in vitexplain.methods, so that what proves itself can move there. They are written
for a ViT with a class token. "Later blocks" are the second half.
"""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitexplain.attention.capture import AttentionFactors, Factor, forward, inference_state
from vitexplain.attention.intercept import FUSED_CALL
from vitexplain.attention.tokens import (
    WINDOWED,
    TokenLayout,
    UnsupportedModel,
    blocks_of,
    check_supported,
)
from vitexplain.methods.attnlrp import LrpRules
from vitexplain.methods.base import CategoryMethod, Choose, chosen_logits, on_grid
from vitexplain.methods.consensus import DISCARD_RATIO
from vitexplain.methods.product import rollout_scores
from vitexplain.methods.weighting import gradient_weighted
from vitexplain.targets import Chosen

Scores = tuple[list[np.ndarray], Tensor, list[list[Chosen]]]  # what CategoryMethod._scores returns


def middle(model: nn.Module) -> int:
    """The first of the later blocks."""
    return len(blocks_of(model)) // 2


def plain(model: nn.Module) -> nn.Module:
    """The model without what wraps it.

    Raises:
        UnsupportedModel: if its blocks are not one attention over all tokens each, and an MLP.
    """
    model = check_supported(model)
    if isinstance(model, WINDOWED) or not all(hasattr(each, "attn") for each in blocks_of(model)):
        raise UnsupportedModel(model, "candidates are written for blocks with one attention each")
    return model


class TimesGradients(CategoryMethod):
    """Tokens times their gradients, summed over channels, and over the layers that read them.

    S_i = sum_l sum_d z_l,id dy_c/dz_l,id,    z_l the tokens (B, N, C) before layer l
    """

    linear = True

    def __init__(self, model: nn.Module):
        self.model = plain(model)

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """Those whose tokens count."""

    def rules(self) -> AbstractContextManager:
        """What changes the gradients."""
        return nullcontext()

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        with ExitStack() as undo:
            undo.enter_context(inference_state(self.model, freeze=True, fused=True))
            tokens = watched(self.layers, undo)
            undo.enter_context(self.rules())
            logits = forward(self.model, images)
        categories = choose(logits.detach())
        scores = []
        for logit, again in chosen_logits(logits, categories):
            gradients = torch.autograd.grad(logit, tokens, retain_graph=again)
            products = [
                (each.detach() * gradient).sum(dim=-1)
                for each, gradient in zip(tokens, gradients, strict=True)
            ]
            scores.append(on_grid(sum(products)[:, layout.prefix_tokens :], layout.grid))
        return scores, logits, categories


class Cdam(TimesGradients):
    """CDAM: each token's features times their gradients, sum_d T_id dy_c/dT_id.

    Brocki, Binda & Chung 2024, "Class-Discriminative Attention Maps for Vision Transformers"; T is
    the input of the last attention, as in Grad-CAM, whose weights are means over the places.
    """

    @property
    def layers(self) -> Sequence[nn.Module]:
        return [blocks_of(self.model)[-1].attn]


class GradEclip(CategoryMethod):
    """Grad-ECLIP: the values that attention sums up, their channels weighted by gradients.

    Zhao, Wang, Zeng, Zhao & Chan 2024, "Gradient-based Visual Explanation for Transformer-based
    CLIP" (ICML): with o the output of an attention at the class token, before its last linear
    layer, v_i the values, all heads side by side,

        S_i = sum_d dy_c/do_d v_id lambda_i,

    lambda_i the similarity of the class token's query and key i, "loosened": cos(q, k_i), scaled to
    0 to 1 over the patches. Of several blocks, their sum. Here q and k are taken as they are; the
    authors' code passes them through that linear layer first.

    Args:
        later: of the later blocks; else of the last one.
    """

    linear = True

    def __init__(self, model: nn.Module, later: bool = False):
        self.model = plain(model)
        self.start = middle(self.model) if later else len(blocks_of(self.model)) - 1

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        if layout.readout_rows != (0,):
            raise UnsupportedModel(self.model, "its classifier does not read the class token alone")
        with ExitStack() as undo:
            undo.enter_context(inference_state(self.model, freeze=True, fused=True))
            seen = undo.enter_context(SeenAttention(self.start))
            logits = forward(self.model, images)
        categories = choose(logits.detach())
        scores = []
        for logit, again in chosen_logits(logits, categories):
            gradients = torch.autograd.grad(logit, seen.outputs, retain_graph=again)
            of_blocks = [
                eclipsed(*call, gradient, layout.prefix_tokens)
                for call, gradient in zip(seen.calls, gradients, strict=True)
            ]
            scores.append(on_grid(sum(of_blocks), layout.grid))
        return scores, logits, categories


def eclipsed(query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, prefix: int) -> Tensor:
    """Grad-ECLIP's S (B, h*w) of one attention.

    Args:
        query, key, value: (B, H, N, d).
        gradient: (B, H, N, d), with respect to the output.
        prefix: tokens before the patches.
    """
    query, key, value, gradient = (
        t.transpose(1, 2).flatten(2) for t in (query, key, value, gradient)
    )
    similar = F.cosine_similarity(query[:, :1], key[:, prefix:], dim=-1)  # (B, h*w)
    similar = similar - similar.amin(dim=1, keepdim=True)
    similar = similar / similar.amax(dim=1, keepdim=True)
    return (gradient[:, :1] * value[:, prefix:]).sum(dim=-1) * similar


class SeenAttention(TorchFunctionMode):
    """In it, the attention calls of blocks are kept, and autograd begins at the first of these.

    Args:
        start: number of the first call that is kept.

    Attributes:
        calls: query, key and value (B, H, N, d) of each.
        outputs: (B, H, N, d) of each.
    """

    def __init__(self, start: int):
        super().__init__()
        self.start, self.count = start, 0
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        self.outputs: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") != FUSED_CALL:
            return output
        self.count += 1
        if self.count > self.start:
            output = output if self.outputs else output.detach().requires_grad_()
            self.calls.append(tuple(each.detach() for each in args[:3]))
            self.outputs.append(output)
        return output


class LibraGrad(TimesGradients):
    """LibraGrad: tokens times gradients that are balanced, summed over the later blocks.

    Mehri, Baghshah & Pilehvar 2025, "LibraGrad: Balancing Gradient Flow for Universally Better
    Vision Transformer Attributions" (CVPR). Backward paths are pruned and scaled until what arrives
    at the inputs, and at the biases, sums to the logit, see LibraRules.
    """

    @property
    def layers(self) -> Sequence[nn.Module]:
        return blocks_of(self.model)[middle(self.model) :]

    def rules(self) -> AbstractContextManager:
        return LibraRules()


class LibraRollout(CategoryMethod):
    """Gradient rollout of the later blocks, with LibraGrad's gradients of their attention."""

    def __init__(self, model: nn.Module):
        self.model = plain(model)

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        with ExitStack() as undo:
            undo.enter_context(inference_state(self.model, freeze=True, fused=True))
            watched(blocks_of(self.model)[middle(self.model) :], undo)
            rules = undo.enter_context(LibraRules())
            logits = forward(self.model, images)
        categories = choose(logits.detach())
        scores = []
        for logit, again in chosen_logits(logits, categories):
            gradients = torch.autograd.grad(logit, rules.attentions, retain_graph=again)
            factors = [
                Factor(gradient_weighted(attention.detach(), gradient, "mean"))
                for attention, gradient in zip(rules.attentions, gradients, strict=True)
            ]
            scores.append(rollout_scores(AttentionFactors(factors), layout, DISCARD_RATIO))
        return scores, logits, categories


class LibraRules(LrpRules):
    """In it, functions of tensors that carry relevance have LibraGrad's gradients.

    They are AttnLRP's (a norm's deviation is constant, a non-linearity's gradient is f(x) / x, and
    two factors get half each), but for attention, whose weights are constants: the values get all.

    Attributes:
        attentions: (B, H, N, N) of each call, of which there are gradients, too.
    """

    def __init__(self):
        super().__init__(gamma=0)
        self.attentions: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        is_attention = getattr(func, "__name__", "") == FUSED_CALL
        if not (is_attention and args[2].requires_grad):
            return super().__torch_function__(func, types, args, kwargs)
        query, key, value, *more = args
        each = torch.eye(value.shape[-2]).to(value).expand(*value.shape[:-2], -1, -1)
        # attention to one token each: whatever masks and scales it is in it
        weights = func(query.detach(), key.detach(), each, *more, **(kwargs or {}))
        self.attentions.append(weights.requires_grad_())
        return weights @ value


def watched(modules: Sequence[nn.Module], undo: ExitStack) -> list[Tensor]:
    """The inputs of modules, filled by a forward pass; autograd begins at the first one's."""
    inputs: list[Tensor] = []

    def see(_module, given):
        tokens = given[0] if inputs else given[0].detach().requires_grad_()
        inputs.append(tokens)
        return (tokens, *given[1:])

    for module in modules:
        undo.callback(module.register_forward_pre_hook(see).remove)
    return inputs
