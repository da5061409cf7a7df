"""What the widely used script of 2021 does for a map, restated to be timed against.

Its arithmetic is that of vitexplain/methods/as_published, written here a second time and on its own
so that one checks the other, and its way of working is kept:

- attention is computed in the open, and hooks keep all matrices (1, H, N, N) of all blocks, until
  the next image;
- a category's map runs a whole backward pass by `loss.backward()`, to every parameter;
- heads are fused, weak entries dropped and blocks multiplied as whole matrices, of the first image
  of a batch alone: a batch is a loop.

What gets hooked is the dropout after the softmax. It does nothing in evaluation mode, so that a
module's backward hook sees what lies before it: the gradient of the scores that the softmax takes.
Backward hooks are called from the last block to the first, attention's from the first to the last,
and the script pairs them in these orders.
"""

import warnings
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn

LAYER = "attn_drop"
FUSIONS = {
    "mean": lambda heads: heads.mean(dim=1),
    "max": lambda heads: heads.max(dim=1).values,
    "min": lambda heads: heads.min(dim=1).values,
}


class OlderRollout:
    """Attention rollout as the script makes it.

    Args:
        model: a timm ViT with a class token alone before its patches; its attention is no longer
            fused by torch afterwards, and its hooks stay.
    """

    def __init__(self, model: nn.Module, head_fusion: str = "mean", discard_ratio: float = 0.9):
        self.model, self.head_fusion, self.discard_ratio = model, head_fusion, discard_ratio
        self.attentions: list[Tensor] = []
        for layer in _attention_layers(model):
            layer.register_forward_hook(self._keep_attention)

    def _keep_attention(self, _module, _inputs, output: Tensor) -> None:
        self.attentions.append(output.cpu())

    def __call__(self, image: Tensor) -> np.ndarray:
        """The map (h, w) of one image (1, 3, H, W), largest value 1."""
        self.attentions = []
        with torch.no_grad():
            self.model(image)
            fused = [FUSIONS[self.head_fusion](heads) for heads in self.attentions]
            return _map_of([_without_weakest(m, self.discard_ratio, spare=True) for m in fused])


class OlderGradRollout:
    """Gradient attention rollout as the script makes it.

    Args:
        model: as for OlderRollout; its parameters require gradients, as timm makes them, and have
            `.grad` afterwards.
    """

    def __init__(self, model: nn.Module, discard_ratio: float = 0.9):
        self.model, self.discard_ratio = model, discard_ratio
        self.attentions: list[Tensor] = []
        self.gradients: list[Tensor] = []
        for layer in _attention_layers(model):
            layer.register_forward_hook(self._keep_attention)
            layer.register_backward_hook(self._keep_gradient)

    def _keep_attention(self, _module, _inputs, output: Tensor) -> None:
        self.attentions.append(output.cpu())

    def _keep_gradient(self, _module, inputs: Sequence[Tensor], _outputs) -> None:
        self.gradients.append(inputs[0].cpu())

    def __call__(self, image: Tensor, category: int) -> np.ndarray:
        """The map (h, w) of one image (1, 3, H, W), largest value 1."""
        self.attentions, self.gradients = [], []
        self.model.zero_grad()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using a non-full backward hook")  # it is the point
            logits = self.model(image)
        of_category = torch.zeros_like(logits)
        of_category[:, category] = 1
        (logits * of_category).sum().backward()
        with torch.no_grad():
            weighted = [
                (heads * gradient).mean(dim=1).clamp(min=0)
                for heads, gradient in zip(self.attentions, self.gradients, strict=True)
            ]
            return _map_of([_without_weakest(m, self.discard_ratio, spare=False) for m in weighted])


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The script's picture, (H, W, 3) uint8 BGR, of an image (H, W, 3) uint8 BGR and its map."""
    mask = cv2.resize(mask, image.shape[1::-1])
    heat = cv2.applyColorMap(np.uint8(255 * mask), cv2.COLORMAP_JET)
    both = np.float32(heat) / 255 + np.float32(image) / 255
    return np.uint8(255 * both / both.max())


def _attention_layers(model: nn.Module) -> list[nn.Module]:
    """What attention passes through after its softmax, once torch does not fuse it."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return [module for name, module in model.named_modules() if LAYER in name]


def _without_weakest(fused: Tensor, ratio: float, *, spare: bool) -> Tensor:
    """(1, N, N) -> (N, N): its lowest entries 0; `spare` the very first one."""
    entries = fused.reshape(-1)
    lowest = entries.topk(int(len(entries) * ratio), largest=False).indices
    entries[lowest[lowest != 0] if spare else lowest] = 0
    return entries.reshape(fused.shape[1:])


def _map_of(matrices: Sequence[Tensor]) -> np.ndarray:
    """What the class token takes from each patch, through the product of all blocks."""
    identity = torch.eye(len(matrices[0]))
    product = identity
    for matrix in matrices:
        with_skip = (matrix + identity) / 2
        # as it stands there: this divides columns, by the sums of the rows of the same numbers
        product = with_skip / with_skip.sum(dim=-1) @ product
    patches = product[0, 1:]
    side = int(len(patches) ** 0.5)
    mask = patches.reshape(side, side).numpy()
    return mask / mask.max()
