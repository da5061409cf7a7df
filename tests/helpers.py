"""What several tests build on: small random models, and where things are."""

from pathlib import Path

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def make_vit(cls=VisionTransformer, **changes):
    """A small random ViT in evaluation mode, its weights large enough for uneven attention."""
    torch.manual_seed(0)
    settings = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 3,
        "num_heads": 3,
        "num_classes": 7,
    }
    model = cls(**settings | changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
    return model.eval()


def random_attention(batch, heads, tokens, depth, seed=0):
    """Softmaxed attention (B, H, N, N) of `depth` blocks."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, heads, tokens, tokens, generator=generator).mul(2).softmax(-1)
        for _ in range(depth)
    ]


# token layout -> (model arguments, prefix tokens, read-out in words)
LAYOUTS = {
    "class token": ({}, 1, "class token"),
    "4 registers": ({"reg_tokens": 4}, 5, "class token"),
    "no prefix, average": (
        {"class_token": False, "global_pool": "avg"},
        0,
        "mean over 16 patches",
    ),
    "unused class token": ({"global_pool": "avg"}, 1, "mean over 16 patches"),
    "register only": (
        {"class_token": False, "reg_tokens": 1, "global_pool": "avg"},
        1,
        "mean over 16 patches",
    ),
    "prefix pooled too": (
        {"reg_tokens": 2, "global_pool": "avg", "pool_include_prefix": True},
        3,
        "mean over all 19 tokens",
    ),
    "distilled": (
        {"cls": VisionTransformerDistilled},
        2,
        "mean of the class and distillation tokens",
    ),
}


def expected_readout(layout, prefix):
    """How much the classifier reads each of the tokens, written out for the layouts above."""
    patches = 16
    if layout == "distilled":
        return [0.5, 0.5] + [0.0] * patches
    if layout == "prefix pooled too":
        return [1 / (prefix + patches)] * (prefix + patches)
    if layout in ("class token", "4 registers"):
        return [1.0] + [0.0] * (prefix - 1 + patches)
    return [0.0] * prefix + [1 / patches] * patches
