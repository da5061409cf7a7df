"""The attention of a timm ViT: what its tokens are, and how it is captured."""
