"""Grad-CAM of a CNN, to be held beside the maps of a Vision Transformer.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization" (equations 1 and 2): each channel of the last feature map counts as much as it
raises, on average over its places, the category's logit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitexplain.attention.tokens import UnsupportedModel


def gradcam(model: nn.Module, images: Tensor, categories: Sequence[int]) -> Tensor:
    """Grad-CAM of a timm CNN in evaluation mode, for one category of each image.

    Args:
        model: has `forward_features`, which gives (B, C, h, w), and `forward_head`.
        images: (B, 3, H, W).
        categories: B of them.

    Returns:
        (B, h, w), >= 0, the largest value of each image 1; all 0 where nothing speaks for it.

    Raises:
        UnsupportedModel: the model's features are not one map.
    """
    with torch.no_grad():
        features = model.forward_features(images)
    channels = getattr(model, "num_features", None)
    if not (isinstance(features, Tensor) and features.ndim == 4 and features.shape[1] == channels):
        raise UnsupportedModel(model, "Grad-CAM needs a CNN whose features are (B, C, h, w)")
    with torch.enable_grad():
        features = features.requires_grad_()
        logits = model.forward_head(features)
        score = logits[range(len(images)), list(categories)].sum()
        (gradient,) = torch.autograd.grad(score, features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    masks = (weights * features.detach()).sum(dim=1).clamp(min=0)
    largest = masks.amax(dim=(1, 2), keepdim=True)
    return masks / largest.where(largest > 0, 1)
