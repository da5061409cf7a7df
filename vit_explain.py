"""Show what a Vision Transformer looked at, as a heatmap over the image.

For all classes together by attention rollout, for one class by gradient attention rollout:

    python vit_explain.py --image_path examples/both.png --head_fusion max --discard_ratio 0.9 \\
        --use_cuda
    python vit_explain.py --image_path examples/both.png --head_fusion max --discard_ratio 0.9 \\
        --use_cuda --category_index 243
"""

import sys

from vitexplain.cli.main import main


def __getattr__(name: str) -> object:
    """`from vit_explain import explain` works as well, without loading torch for the command."""
    if name in ("explain", "load_model"):
        import vitexplain

        return getattr(vitexplain, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())
