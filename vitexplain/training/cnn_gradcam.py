"""Grad-CAM of a CNN, to compare with the maps of a Vision Transformer.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization" (equations 1 and 2): each channel of the last feature map is weighted by how much it
raises the category's logit, on average over its positions.
"""

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.tokens import TokenLayout, UnsupportedModel
from vitexplain.methods.base import CategoryMethod, Choose, chosen_logits


class CnnGradCam(CategoryMethod):
    """Grad-CAM of a timm CNN, for one category of each image.

    Args:
        model: in evaluation mode; has `forward_features`, which gives (B, C, h, w), and
            `forward_head`. Its explanations have no token layout.

    Raises:
        UnsupportedModel: on the first input, if the model's features are not one map.
    """

    linear = True

    def __init__(self, model: nn.Module):
        self.model = model

    def _layout(self, _images: Tensor) -> TokenLayout | None:
        return None

    def _scores(
        self, images: Tensor, _layout: TokenLayout | None, choose: Choose
    ) -> tuple[list[np.ndarray], Tensor, list[list[int]]]:
        model = self.model
        with torch.no_grad():
            features = model.forward_features(images)
        channels = getattr(model, "num_features", None)
        is_map = isinstance(features, Tensor) and features.ndim == 4
        if not (is_map and features.shape[1] == channels):
            raise UnsupportedModel(model, "Grad-CAM needs a CNN whose features are (B, C, h, w)")
        features = features.requires_grad_()
        logits = model.forward_head(features)
        categories = choose(logits.detach())
        scores = []
        for score, again in chosen_logits(logits, categories):
            (gradient,) = torch.autograd.grad(score, features, retain_graph=again)
            weights = gradient.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
            scores.append((weights * features.detach()).sum(dim=1).float().cpu().numpy())
        return scores, logits, categories
