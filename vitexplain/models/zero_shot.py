"""A classifier made of an image tower and one embedding for each category.

A text, or another image, is a vector w_k; an image's embedding is z(x). As in CLIP (Radford et al.
2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3),

    y_k = scale * cos(z(x), w_k),

so that all that explains a classifier explains what a text finds in an image. With another image's
embedding as the only w, and a scale of 1, it explains why the two are alike.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitexplain.attention.capture import forward
from vitexplain.attention.families import check_classifier
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.wrappers import WRAPPER, input_size
from vitexplain.errors import ModelError, one_line
from vitexplain.models.answers import count_outputs, is_embedding
from vitexplain.models.transform import InputTransform

SCALE = 100.0  # at which CLIP's training ended
SAVE = "save an array (categories, numbers) with numpy.save"

ALIKE = ("different", "similar")  # the two sides of a similarity
Embeddings = str | Path | np.ndarray | Tensor | Sequence[Sequence[float]]


class ZeroShot(nn.Module):
    """(B, C, H, W) -> logits (B, K), by the cosines of embeddings.

    Args:
        tower: gives an embedding (B, D) of images.
        embeddings: (K, D), of any lengths above 0.
        scale: of the cosines.
    """

    def __init__(self, tower: nn.Module, embeddings: Tensor, scale: float):
        super().__init__()
        self.tower = tower
        weight = next(tower.parameters())
        self.register_buffer("embeddings", F.normalize(embeddings, dim=1).to(weight))
        self.register_buffer("scale", torch.tensor(float(scale)).to(weight))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * F.normalize(self.tower(images), dim=1) @ self.embeddings.T


def zero_shot(model: nn.Module, config: dict, embeddings: Embeddings, scale: float) -> ZeroShot:
    """A model's image tower as a classifier of embedded categories.

    A classifier's own head is taken off: its embedding is what that head reads.

    Args:
        model: timm's; its head may be taken off.
        config: timm's pretrained_cfg of it.

    Raises:
        ModelError: if embeddings can't be read, or have another length than the model's.
    """
    if not 0 < scale < float("inf"):
        raise ModelError(f"logit_scale must be above 0, not {scale}")
    weights, tower = read_embeddings(embeddings), image_tower(model, config)
    width = embeddings_of(tower, [torch.zeros(input_size(tower))]).shape[1]
    if weights.shape[1] != width:
        raise ModelError(
            f"the class embeddings have {weights.shape[1]} numbers each, the model's embedding of "
            f"an image {width}: make them with the text tower that belongs to this model"
        )
    return ZeroShot(tower, weights, scale)


def similarity(
    model: nn.Module, config: dict, transform: InputTransform, images: Sequence[Image.Image]
) -> ZeroShot:
    """The cosine of an image's embedding with the mean direction of those of `images`.

    Args:
        model, config: as for zero_shot.
        transform: from an image to the model's input.

    Raises:
        ModelError: if the model gives no embedding, or there are no images.
    """
    if not images:
        raise ModelError("similar_to needs at least one image")
    tower = image_tower(model, config)
    found = embeddings_of(tower, [transform(image) for image in images])
    return ZeroShot(tower, F.normalize(found, dim=1).mean(dim=0, keepdim=True), 1.0)


def image_tower(model: nn.Module, config: dict) -> nn.Module:
    """A model whose outputs are an embedding; a classifier's own head is taken off."""
    if count_outputs(model) and not is_embedding(model, config):
        if not hasattr(model, "reset_classifier"):
            raise ModelError("embeddings are for timm's models and their heads")
        model.reset_classifier(0)
    return model.eval()


def embeddings_of(tower: nn.Module, tensors: Sequence[Tensor]) -> Tensor:
    """(B, D) of B images (C, H, W), normalised, one after the other.

    Raises:
        ModelError: if the tower gives no single embedding of an image.
    """
    shadow = shadow_of(tower)
    weight = next(shadow.parameters())
    with torch.no_grad():
        found = [forward(shadow, tensor[None].to(weight)) for tensor in tensors]
    if found[0].ndim != 2:
        raise ModelError("the model gives no single embedding of an image")
    return torch.cat(found)


def seen_from(model: nn.Module, tensor: Tensor) -> nn.Module:
    """A similarity's model turned round: the cosine with this image's embedding.

    Args:
        model: a ViT within a ZeroShot.
        tensor: (C, H, W), the model's input.
    """
    tower = getattr(model, WRAPPER).tower
    return check_classifier(ZeroShot(tower, embeddings_of(tower, [tensor]), 1.0).eval())


def read_embeddings(source: Embeddings) -> Tensor:
    """(K, D) float32 from a .npy or .safetensors file, or an array.

    Raises:
        ModelError: if it can't be read, or is no array of that kind.
    """
    name = str(source) if isinstance(source, str | Path) else "the class embeddings"
    try:
        found = _from_file(Path(source)) if isinstance(source, str | Path) else source
        weights = torch.as_tensor(np.asarray(found, dtype=np.float32))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ModelError(f"{name} can't be read: {one_line(error, 160)}; {SAVE}") from None
    if weights.ndim != 2 or not weights.numel():
        raise ModelError(f"{name} is {tuple(weights.shape)}, not (categories, numbers); {SAVE}")
    lengths = weights.norm(dim=1)
    if not bool(torch.isfinite(lengths).all()) or not bool((lengths > 0).all()):
        raise ModelError(f"{name} has rows without a direction: zeros, or what is no number")
    return weights


def _from_file(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix != ".safetensors":
        raise ValueError("it must be a .npy or .safetensors file")
    tensors = load_file(path)
    if len(tensors) != 1:
        raise ValueError(f"it must hold one tensor, not {len(tensors)}")
    return next(iter(tensors.values()))
