"""Train, fine-tune and evaluate Vision Transformers on a folder of pictures."""

import vit_torchvision  # noqa: F401  before any module here imports timm
