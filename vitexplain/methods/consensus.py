"""Consensus: the mean of the patches' ranks in the maps of four methods of one category.

Gradient rollout, LeGrad, AttnLRP and Grad-CAM read different things of one model, and err in
different places. Their numbers have no common unit, but their orders have: with r_m(i) the rank of
patch i in the scores of method m, negative ones included, equal ones sharing their mean rank,

    order of the patches = order of mean_m r_m(i)

(a Borda count; that means of several explanations are more robust than each is the point of Rieger
& Hansen 2019, "Aggregating explainability methods for neural networks stabilizes explanations").
Ranks alone would draw a flat map, all shades being equally frequent. So the patch at place k of
this order gets what the four methods give on average to the patch at place k of their own,

    map(i) = mean_m s_m,(k),    s_m,(k): the k-th smallest score of m, its largest size being 1

(quantile normalisation: Bolstad et al. 2003, "A comparison of normalization methods for high
density oligonucleotide array data"). The order stays, and contrast is that of the four.

It takes three forward passes and three backward ones, each as far as its method needs: gradient
rollout and Grad-CAM share theirs.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from torch import Tensor, nn

from vitexplain.attention.tokens import TokenLayout, UnsupportedModel, check_supported
from vitexplain.methods.attnlrp import AttnLRP
from vitexplain.methods.base import CategoryMethod, Choose, on_shadow
from vitexplain.methods.gradcam import GradCam, WatchedFeatures
from vitexplain.methods.legrad import LeGrad
from vitexplain.methods.product import rollout_scores
from vitexplain.methods.weighting import weighted_attention
from vitexplain.targets import Chosen

DISCARD_RATIO = 0.9  # gradient rollout's own default


class Consensus(CategoryMethod):
    """The consensus of four methods about a timm ViT, for one category of each image.

    Args:
        model: a timm VisionTransformer; used in evaluation mode, left as it was found.

    Raises:
        UnsupportedModel: if one of the four can't explain it. With three of them it would be
            another method, of which nothing has been measured.
    """

    def __init__(self, model: nn.Module):
        self.model = check_supported(model)
        try:
            legrad = LeGrad(self.model)
        except UnsupportedModel as error:
            reason = f"LeGrad, one of the four methods, can't: {error.reason}"
            raise UnsupportedModel(self.model, reason, instead="grad_rollout") from error
        self._parts = legrad, AttnLRP(self.model), GradCam(self.model)

    def _scores(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[Chosen]]]:
        rollouts, cams, logits, categories = self._rollouts_and_cams(images, layout, choose)
        legrad, attnlrp, gradcam = map(on_shadow, self._parts)

        def chosen(_logits: Tensor) -> list[list[Chosen]]:
            return categories

        if not cams:
            cams, _, _ = gradcam._scores(images, layout, chosen)
        others = legrad.of_categories(images, layout, categories)
        relevances, _, _ = attnlrp._scores(images, layout, chosen)
        of_categories = zip(rollouts, others, relevances, cams, strict=True)
        return [consensus(parts) for parts in of_categories], logits, categories

    def _rollouts_and_cams(
        self, images: Tensor, layout: TokenLayout, choose: Choose
    ) -> tuple[list[np.ndarray], list[np.ndarray], Tensor, list[list[Chosen]]]:
        """K times the scores of gradient rollout and of Grad-CAM, logits, and categories.

        Those of Grad-CAM are left out where this pass does not see its features.
        """
        rollouts, cams = [], []
        with ExitStack() as undo:
            watched = WatchedFeatures(self.model, undo)
            weighted, logits, categories = weighted_attention(
                self.model, images, layout, choose, "mean"
            )
            for attention in weighted:
                rollouts.append(rollout_scores(attention, layout, DISCARD_RATIO))
                if watched.gradient is not None:
                    cams.append(watched.scores(layout))
        return rollouts, cams, logits, categories


def consensus(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One map's scores (B, h, w) from those of several methods, each in a unit of its own.

    Returns:
        float32, -1 to 1, the patches in the order of their mean ranks.
    """
    flat = np.stack([part.reshape(len(part), -1) for part in parts]).astype(np.float64)  # (M, B, n)
    largest = np.abs(flat).max(axis=2, keepdims=True)
    values = np.sort(flat / np.where(largest > 0, largest, 1), axis=2).mean(axis=0)
    return at_mean_ranks(values, parts)


def at_mean_ranks(by_place: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """(B, h, w) float32: values, moved to where the mean ranks of the parts put them.

    Args:
        by_place: (B, h*w), ascending.
        parts: (B, h, w) each.
    """
    flat = np.stack([part.reshape(len(part), -1) for part in parts])
    mean_ranks = np.apply_along_axis(ranks, 2, flat).mean(axis=0)
    places = np.arange(by_place.shape[1])
    scores = [
        np.interp(ranks(of_image), places, of)
        for of_image, of in zip(mean_ranks, by_place, strict=True)
    ]
    return np.float32(scores).reshape(parts[0].shape)


def ranks(values: np.ndarray) -> np.ndarray:
    """(n,) from 0, the smallest; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]
