"""Show what a Vision Transformer looked at."""
