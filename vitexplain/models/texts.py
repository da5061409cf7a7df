"""Embeddings of texts, by the text tower that belongs to an image tower: open_clip's, if installed.

timm has image towers of CLIP and its like; open_clip has both towers under names of its own.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vitexplain.errors import MissingPackage, ModelError, one_line
from vitexplain.models.hub import weights_at_hand

# timm's name of an image tower -> open_clip's names of the model and of its weights
PAIRS = {
    "vit_base_patch32_clip_quickgelu_224.openai": ("ViT-B-32-quickgelu", "openai"),
    "vit_base_patch16_clip_quickgelu_224.openai": ("ViT-B-16-quickgelu", "openai"),
    "vit_large_patch14_clip_quickgelu_224.openai": ("ViT-L-14-quickgelu", "openai"),
    "vit_large_patch14_clip_quickgelu_336.openai": ("ViT-L-14-336-quickgelu", "openai"),
    "vit_base_patch32_clip_224.laion2b": ("ViT-B-32", "laion2b_s34b_b79k"),
    "vit_base_patch16_clip_224.laion2b": ("ViT-B-16", "laion2b_s34b_b88k"),
    "vit_large_patch14_clip_224.laion2b": ("ViT-L-14", "laion2b_s32b_b82k"),
    "vit_huge_patch14_clip_224.laion2b": ("ViT-H-14", "laion2b_s32b_b79k"),
    "vit_base_patch32_clip_224.datacompxl": ("ViT-B-32", "datacomp_xl_s13b_b90k"),
    "vit_base_patch16_clip_224.datacompxl": ("ViT-B-16", "datacomp_xl_s13b_b90k"),
    "vit_large_patch14_clip_224.datacompxl": ("ViT-L-14", "datacomp_xl_s13b_b90k"),
}
INSTEAD = "or pass embeddings of your own: --class_embeddings FILE"


def text_embeddings(model: str, texts: list[str]) -> Tensor:
    """(K, D) float32 of length 1, of K texts.

    Args:
        model: timm's name of an image tower, with its tag.

    Raises:
        MissingPackage: without open_clip.
        ModelError: if no text tower is known for the model, or it can't be had.
    """
    if model not in PAIRS:
        raise ModelError(
            f"no text tower is known for {model}; --text works with {', '.join(PAIRS)}; {INSTEAD}"
        )
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"--text needs open_clip: pip install open_clip_torch, {INSTEAD}"
        ) from error
    name, weights = PAIRS[model]
    try:
        where = open_clip.get_pretrained_cfg(name, weights)
        with weights_at_hand(where.get("hf_hub", "").strip("/"), where.get("url")):
            tower = open_clip.create_model(name, pretrained=weights).eval()
    except Exception as error:  # the hub client and the readers of weights raise almost anything
        reason = one_line(error, 200)
        raise ModelError(f"open_clip can't load {name} {weights}: {reason}; {INSTEAD}") from error
    with torch.no_grad():
        return F.normalize(tower.encode_text(open_clip.get_tokenizer(name)(texts)).float(), dim=1)
