"""A small random model of every family that is supported."""

import numpy as np
import timm
import torch

from vitexplain.attention.intercept import can_intercept

SMALL = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
# name in timm: (what is changed besides SMALL, prefix tokens, what its head reads)
FAMILIES = {
    "vit_tiny_patch16_224": ({}, 1, "token"),
    "deit_tiny_patch16_224": ({}, 1, "token"),
    "deit_tiny_distilled_patch16_224": ({}, 2, "both"),
    "deit3_small_patch16_224": ({}, 1, "token"),
    "vit_base_patch16_clip_224": ({}, 1, "token"),
    "vit_small_patch14_dinov2": ({"img_size": 56}, 1, "token"),
    "vit_small_patch14_reg4_dinov2": ({"img_size": 56}, 5, "token"),
    "vit_small_patch16_dinov3": ({}, 5, "patches"),
    "eva02_tiny_patch14_224": ({"img_size": 56}, 1, "patches"),
    "eva_large_patch14_196": ({"img_size": 56}, 1, "patches"),
    "beit_base_patch16_224": ({}, 1, "patches"),
    "beitv2_base_patch16_224": ({}, 1, "patches"),
    "aimv2_large_patch14_224": ({"img_size": 56}, 0, "patches"),
    "vit_relpos_small_patch16_224": ({}, 0, "patches"),
    "vit_relpos_base_patch16_cls_224": ({}, 1, "token"),
    "vit_small_patch16_rope_224": ({}, 1, "token"),
    "vit_small_patch16_rope_mixed_224": ({}, 1, "token"),
    "vit_pe_spatial_tiny_patch16_512": ({}, 1, "patches"),
    "vit_pe_core_tiny_patch16_384": ({}, 1, "pool of all"),
    "vit_tiny_r_s16_p8_224": ({"img_size": 128}, 1, "token"),
    "vit_base_patch16_siglip_224": ({}, 0, "pool"),
    "vit_base_patch16_siglip_gap_224": ({}, 0, "patches"),
    "vit_medium_patch16_gap_240": ({}, 0, "patches"),
    "vit_medium_patch16_reg4_gap_256": ({}, 4, "patches"),
    "vit_wee_patch16_reg1_gap_256": ({}, 1, "patches"),
    "vit_pwee_patch16_reg1_gap_256": ({}, 1, "patches"),
    "test_vit3": ({}, 1, "pool"),
}


def make(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL | FAMILIES[name][0])
    with torch.no_grad():  # as created, they attend evenly and look at nothing
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "patch_embed" not in parameter_name:
                parameter.normal_(std=0.15)
            elif "gamma" in parameter_name or "ls" in parameter_name:
                parameter.fill_(0.7)
    return model.eval()


def hooked(model):
    """The same model, looked at by somebody else, so that its attention is captured whole."""
    for block in model.blocks:
        for name, layer in block.named_modules():
            if name.endswith("attn_drop"):
                layer.register_forward_hook(lambda *_: None)
    assert not can_intercept(model)
    return model


def assert_well_formed(found, model, images):
    """Logits are the model's own, and maps are finite, >= 0, the largest value of each 1."""
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(images), atol=1e-4, rtol=1e-4)
    assert np.isfinite(found.masks).all()
    assert found.masks.min() >= 0
    assert found.masks.max(axis=(1, 2)).tolist() == [1, 1]
