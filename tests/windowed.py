"""Small random Swin models."""

import timm
import torch

MODELS = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256")


def make(name, height, width, window, **changes):
    torch.manual_seed(0)
    small = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2), "num_classes": 5}
    model = timm.create_model(
        name, img_size=(height, width), window_size=window, **small | changes
    ).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "patch_embed" not in parameter_name:
                parameter.normal_(std=0.3)
            elif parameter_name.endswith(("norm1.weight", "norm2.weight")):
                parameter.fill_(1)  # Swin V2 begins with 0: every block is off
    return model
