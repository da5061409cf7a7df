"""Maps that might be better than those of the product: what benchmarks.candidates measures.

Each is a method as in vitexplain.methods, so that one that proves itself can move there. They are
written for a ViT whose classifier reads the class token. "Later blocks" are the second half.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

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
from vitexplain.methods.base import (
    CategoryMethod,
    Choose,
    chosen_logits,
    contrasts,
    on_grid,
    on_shadow,
)
from vitexplain.methods.consensus import DISCARD_RATIO, consensus, ranks
from vitexplain.methods.product import rollout_scores
from vitexplain.methods.registry import METHODS, Method
from vitexplain.methods.weighting import gradient_weighted
from vitexplain.targets import AUTO, Chosen

Mix = Callable[[Mapping[str, np.ndarray]], np.ndarray]
Scores = tuple[list[np.ndarray], Tensor, list[list[Chosen]]]  # what CategoryMethod._scores returns
FOUR = ("grad_rollout", "legrad", "attnlrp", "gradcam")
FIVE = (*FOUR, "relevance")


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


def of_later_blocks(model: nn.Module, method: str) -> CategoryMethod:
    """A method of METHODS for which the later blocks alone count."""
    return METHODS[method].make(model, start_block=middle(model))


def named(name: str) -> Method:
    """The method of a name in METHODS or CANDIDATES."""
    return METHODS[name] if name in METHODS else CANDIDATES[name].method


class Mixture(CategoryMethod):
    """Scores made of those of several methods, each from passes of its own.

    Args:
        model: one that all of them explain; left as it was found.
        parts: names of METHODS or CANDIDATES.
        mix: name -> (B, h, w) in, (B, h, w) out.
    """

    def __init__(self, model: nn.Module, parts: Sequence[str], mix: Mix):
        self.model, self.mix = check_supported(model), mix
        self.parts = {name: named(name).make(model) for name in parts}

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        found = {}
        for name, part in self.parts.items():
            found[name], logits, categories = on_shadow(part)._scores(images, layout, choose)
        of_categories = (
            dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)
        )
        return [self.mix(parts) for parts in of_categories], logits, categories


def all_agree(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The consensus of all parts."""
    return consensus(list(parts.values()))


def multiplied(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The product of all parts."""
    return np.prod(list(parts.values()), axis=0)


def geometric(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The geometric mean of all parts' positive parts."""
    positive = [part.clip(min=0) for part in parts.values()]
    return multiplied(dict(enumerate(positive))) ** (1 / len(positive))


def relevance_in_order(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Relevance's own values, in the order of the mean ranks of all the parts but relevance.

    Quantile normalisation, see vitexplain.methods.consensus. To have relevance's own ranks among
    these, see `relevance_half_in_order`.
    """
    return in_order(
        parts["relevance"], [part for name, part in parts.items() if name != "relevance"]
    )


def relevance_half_in_order(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Relevance's own values, in the order of the mean ranks of relevance and the other parts."""
    return in_order(parts["relevance"], list(parts.values()))


def in_order(values: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The values (B, h, w) of each image, moved to where the mean ranks of the parts put them."""
    flat = np.stack([part.reshape(len(part), -1) for part in parts]).astype(np.float64)
    mean_ranks = np.apply_along_axis(ranks, 2, flat).mean(axis=0)
    by_place = np.sort(values.reshape(len(values), -1), axis=1)
    places = np.arange(by_place.shape[1])
    moved = [
        np.interp(ranks(of_image), places, of)
        for of_image, of in zip(mean_ranks, by_place, strict=True)
    ]
    return np.float32(moved).reshape(values.shape)


class AgainstRivals(CategoryMethod):
    """What speaks for a category and against those whose logits are nearest, as `--against auto`.

    Args:
        method: name of one in METHODS.
    """

    def __init__(self, model: nn.Module, method: str):
        self.model, self.method = check_supported(model), METHODS[method].make(model)

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        def contrasted(logits: Tensor) -> list[list[Chosen]]:
            return contrasts(choose, AUTO, logits, both=True, likely=False)

        both, logits, chosen = on_shadow(self.method)._scores(images, layout, contrasted)
        scores = [there - back for there, back in zip(both[::2], both[1::2], strict=True)]
        return scores, logits, [[target.index for target in of[::2]] for of in chosen]


class Shifted(CategoryMethod):
    """The mean of a method's scores over 2 x 2 shifts of the image by half a patch.

    Args:
        method: name of one in METHODS or CANDIDATES.
    """

    def __init__(self, model: nn.Module, method: str):
        self.model, self.method = check_supported(model), named(method).make(model)

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        half = images.shape[2] // layout.grid[0] // 2
        method = on_shadow(self.method)
        scores, logits, categories = method._scores(images, layout, choose)
        moved = [[moved_back(each, 0, 0) for each in scores]]
        for down, across in ((0, 1), (1, 0), (1, 1)):
            shown = F.pad(images, (across * half, 0, down * half, 0), mode="replicate")
            shown = shown[..., : images.shape[2], : images.shape[3]]
            scores, _, _ = method._scores(shown, layout, lambda _: categories)
            moved.append([moved_back(each, down, across) for each in scores])
        means = [mean_of_shifts(of_shifts) for of_shifts in zip(*moved, strict=True)]
        return means, logits, categories


def moved_back(scores: np.ndarray, down: int, across: int) -> np.ndarray:
    """(B, 2h, 2w): scores (B, h, w) of an image that was shifted by so many half patches.

    NaN where the shifted image does not show the image.
    """
    fine = scores.repeat(2, axis=1).repeat(2, axis=2)
    height, width = fine.shape[1:]
    moved = np.full_like(fine, np.nan)
    moved[:, : height - down, : width - across] = fine[:, down:, across:]
    return moved


def mean_of_shifts(moved: Sequence[np.ndarray]) -> np.ndarray:
    """(B, h, w) from several (B, 2h, 2w): of each half patch the mean of what shows it."""
    images, height, width = moved[0].shape
    fine = np.nanmean(moved, axis=0)
    return fine.reshape(images, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


class Cdam(CategoryMethod):
    """CDAM: each token's features times their gradients, sum_d T_id dy_c/dT_id.

    Brocki, Binda & Chung 2024, "Class-Discriminative Attention Maps for Vision Transformers"; T is
    the input of the last attention, as in Grad-CAM, whose weights are means over the places.
    """

    linear = True

    def __init__(self, model: nn.Module):
        self.model = plain(model)

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        with ExitStack() as undo:
            undo.enter_context(inference_state(self.model, freeze=True, fused=True))
            tokens = watched([blocks_of(self.model)[-1].attn], undo)
            logits = forward(self.model, images)
        return times_gradients(tokens, logits, layout, choose)


class GradEclip(CategoryMethod):
    """Grad-ECLIP: the values that attention sums up, their channels weighted by gradients.

    Zhao, Wang, Zeng, Zhao & Chan 2024, "Gradient-based Visual Explanation for Transformer-based
    CLIP" (ICML): with o the output of an attention at the class token, before its last linear
    layer, v_i the values, all heads side by side,

        S_i = sum_d dy_c/do_d v_id lambda_i,

    lambda_i the similarity of the class token's query and key i, "loosened": cos(q, k_i), scaled to
    0 to 1 over the patches. Of several blocks, their sum. As in the paper's equations, q and k are
    taken as they are; the authors' code passes them through that linear layer first.

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


class LibraGrad(CategoryMethod):
    """LibraGrad: tokens times gradients that are balanced, summed over the later blocks.

    Mehri, Fayyaz, Soleymani Baghshah & Pilehvar 2025, "LibraGrad: Balancing Gradient Flow for
    Universally Better Vision Transformer Attributions" (CVPR). Backward paths are pruned and scaled
    until what arrives at the inputs, and at the biases, sums to the logit, see LibraRules. Then

        S_i = sum_l sum_d z_l,id dy_c/dz_l,id,    z_l the tokens before block l.
    """

    linear = True

    def __init__(self, model: nn.Module):
        self.model = plain(model)

    def _scores(self, images: Tensor, layout: TokenLayout, choose: Choose) -> Scores:
        with ExitStack() as undo:
            undo.enter_context(inference_state(self.model, freeze=True, fused=True))
            tokens = watched(blocks_of(self.model)[middle(self.model) :], undo)
            undo.enter_context(LibraRules())
            logits = forward(self.model, images)
        return times_gradients(tokens, logits, layout, choose)


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


def times_gradients(
    tokens: Sequence[Tensor], logits: Tensor, layout: TokenLayout, choose: Choose
) -> Scores:
    """sum_l sum_d z_l,id dy_c/dz_l,id at the patches, from tokens (B, N, C) of one pass."""
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


@dataclass(frozen=True)
class Candidate:
    """A method, and those that it has to beat.

    Attributes:
        others: names of METHODS or CANDIDATES.
    """

    method: Method
    others: tuple[str, ...]


def _of(name: str, title: str, place: str, others: Sequence[str], paper: str = "", **options: Any):
    method = Method(
        name, title, paper, True, ("benchmarks.candidate_maps", place), defaults=options
    )
    return name, Candidate(method, tuple(others))


def _mixed(name: str, title: str, mix: Mix, parts: Sequence[str], others: Sequence[str]):
    return _of(name, title, "Mixture", others, parts=tuple(parts), mix=mix)


BOTH = ("relevance", "consensus")
CANDIDATES = dict(
    [
        ("consensus", Candidate(METHODS["consensus"], FIVE)),
        _mixed("consensus_of_five", "consensus of the four and relevance", all_agree, FIVE, BOTH),
        _mixed("consensus_times_relevance", "consensus times relevance", multiplied, BOTH, BOTH),
        _mixed(
            "consensus_with_libragrad",
            "consensus with LibraGrad in AttnLRP's place",
            all_agree,
            ("grad_rollout", "legrad", "libragrad", "gradcam"),
            ("consensus", "libragrad"),
        ),
        _mixed(
            "relevance_by_consensus",
            "relevance, its values in the order of the consensus",
            relevance_in_order,
            BOTH,
            BOTH,
        ),
        _mixed(
            "relevance_by_both",
            "relevance, its values in the order of its and the consensus' mean ranks",
            relevance_half_in_order,
            BOTH,
            BOTH,
        ),
        _mixed(
            "geometric_mean",
            "geometric mean of relevance, gradient rollout and the positive part of Grad-CAM",
            geometric,
            ("relevance", "grad_rollout", "gradcam"),
            BOTH,
        ),
        _of(
            "grad_rollout_against",
            "gradient rollout of `--against auto`",
            "AgainstRivals",
            ["grad_rollout"],
            method="grad_rollout",
        ),
        _of(
            "consensus_against",
            "consensus of `--against auto`",
            "AgainstRivals",
            ["consensus"],
            method="consensus",
        ),
        _of(
            "legrad_later",
            "LeGrad of the later blocks",
            "of_later_blocks",
            ["legrad"],
            method="legrad",
        ),
        _of(
            "relevance_later",
            "relevance of the later blocks",
            "of_later_blocks",
            ["relevance"],
            method="relevance",
        ),
        (
            "attnlrp_gamma",
            Candidate(
                Method(
                    "attnlrp_gamma",
                    "AttnLRP with gamma 0.05",
                    METHODS["attnlrp"].paper,
                    True,
                    METHODS["attnlrp"].place,
                    defaults={"gamma": 0.05},
                ),
                ("attnlrp",),
            ),
        ),
        _of("cdam", "CDAM", "Cdam", ["gradcam"], "Brocki, Binda & Chung 2024"),
        _of("grad_eclip", "Grad-ECLIP", "GradEclip", ["gradcam"], "Zhao et al. 2024"),
        _of(
            "grad_eclip_later",
            "Grad-ECLIP, sum of the later blocks",
            "GradEclip",
            ["gradcam", "legrad"],
            "Zhao et al. 2024",
            later=True,
        ),
        _of(
            "libragrad",
            "LibraGrad, tokens times gradients of the later blocks",
            "LibraGrad",
            ["attnlrp"],
            "Mehri et al. 2025",
        ),
        _of(
            "libragrad_rollout",
            "gradient rollout of the later blocks with LibraGrad",
            "LibraRollout",
            ["grad_rollout"],
            "Mehri et al. 2025",
        ),
        _of(
            "grad_rollout_shifted",
            "gradient rollout, mean of 4 shifts by half a patch",
            "Shifted",
            ["grad_rollout"],
            method="grad_rollout",
        ),
        _of(
            "libragrad_shifted",
            "LibraGrad, mean of 4 shifts by half a patch",
            "Shifted",
            ["libragrad"],
            method="libragrad",
        ),
    ]
)
