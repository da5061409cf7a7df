"""The versions that a result depends on."""

import platform

import cv2
import PIL
import timm
import torch

import vitexplain


def versions() -> dict[str, str]:
    """Name -> version of this package, Python, and the libraries that compute and draw."""
    return {
        "vit_explain": vitexplain.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
    }
