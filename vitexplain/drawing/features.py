"""Draw what a model's features tell apart: the image, its colours, and its foreground."""

import numpy as np
from PIL import Image

from vitexplain.drawing.sheet import draw_sheet, fit

CELL = 400
DIMMED = 0.25  # brightness that is left of the background


def draw_features(seen: Image.Image, colours: np.ndarray, foreground: np.ndarray) -> Image.Image:
    """Three images beside each other; each patch is a rectangle of one colour.

    Args:
        seen: RGB, what the model saw of the image, in the image's own proportions.
        colours: (h, w, 3), 0 to 1.
        foreground: (h, w) bool.
    """
    seen = fit(seen, (CELL, CELL))
    pixels = Image.fromarray(np.uint8(np.round(255 * colours)))
    inside = Image.fromarray(np.uint8(255 * foreground))
    kept = np.asarray(inside.resize(seen.size, Image.Resampling.NEAREST))[..., None] > 0
    cut = np.asarray(seen) * np.where(kept, 1, DIMMED)
    cells = [
        ("input", seen),
        ("principal components", pixels.resize(seen.size, Image.Resampling.NEAREST)),
        ("foreground: the first component", Image.fromarray(np.uint8(np.round(cut)))),
    ]
    return draw_sheet([cells], (CELL, seen.height), lines=1)
