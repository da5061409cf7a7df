"""The maps there are of a model: both rollouts of a Vision Transformer, Grad-CAM of a CNN."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.methods.registry import METHODS
from vitexplain.training.cnn_gradcam import gradcam

DISCARD = 0.9
OF_CATEGORY = ("grad_rollout", "gradcam")  # the others don't know of categories

# one image (1, 3, H, W) and K categories -> (K, h, w)
Explainer = Callable[[Tensor, Sequence[int]], np.ndarray]


def explainers_of(model: nn.Module, height: int, width: int) -> dict[str, Explainer]:
    """By name; empty for a model of which there is no map."""
    try:
        rollout = METHODS["attention_rollout"].make(model, discard_ratio=DISCARD)
    except UnsupportedModel:
        return _of_cnn(model, height, width)
    graded = METHODS["grad_rollout"].make(model, discard_ratio=DISCARD)
    return {
        "rollout": lambda x, categories: rollout.batch(x).repeat(len(categories), axis=0),
        "grad_rollout": lambda x, categories: np.concatenate(
            [found.masks for found in graded.explain_several(x, [categories])]
        ),
    }


def _of_cnn(model: nn.Module, height: int, width: int) -> dict[str, Explainer]:
    try:
        device = next(model.parameters()).device
        gradcam(model, torch.zeros(1, 3, height, width, device=device), [0])
    except UnsupportedModel:
        return {}
    return {
        "gradcam": lambda x, categories: gradcam(
            model, x.to(device).expand(len(categories), -1, -1, -1), categories
        ).numpy(force=True)
    }
