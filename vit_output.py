"""The files that show one map: the overlay, and on request the mask itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import vit_published
from vit_files import write_array, write_png
from vit_heatmap import draw_overlay
from vit_settings import Settings
from vit_transform import InputTransform

Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class Output:
    """How maps are drawn and called.

    Attributes:
        transform: what the model saw of a picture.
        method: name, head_fusion and discard_ratio, for the files' names.
        texts: for the PNG's text chunks; the category is added to them.
    """

    settings: Settings
    transform: InputTransform
    method: Mapping
    texts: Mapping[str, str]

    def write(
        self,
        base: Path,
        picture: Image.Image,
        seen: Image.Image,
        mask: np.ndarray,
        category: dict | None,
    ) -> dict[str, Path]:
        """The files of one map, their names beginning with `base`.

        Args:
            picture, seen: RGB, as it is and as the model saw it.
            mask: (h, w).
            category: index and name; None for a map of all categories.
        """
        kind, described = self.method["name"], "none"
        if category is not None:
            kind += f"_{category['index']}"
            described = f"{category['index']} {category['name']}"
        name = f"{base.name}_{kind}_{self.method['discard_ratio']:.3f}_{self.method['head_fusion']}"
        files = {"overlay": base.with_name(f"{name}.png")}
        overlay = self.draw(picture, seen, mask, self.transform.region(*picture.size))
        write_png(files["overlay"], overlay, {**self.texts, "Category": described})
        if self.settings.save_mask:
            files["mask"] = base.with_name(f"{name}.npy")
            write_array(files["mask"], mask)
        return files

    def draw(
        self, picture: Image.Image, seen: Image.Image, mask: np.ndarray, region: Region
    ) -> Image.Image:
        """The overlay, over `region` of the picture, or at the model's size if the settings say."""
        settings = self.settings
        size = settings.size or ("model" if settings.as_published else "image")
        canvas = picture if size == "image" else seen
        if settings.as_published:
            return Image.fromarray(vit_published.overlay(np.asarray(canvas), mask))
        covered = region if size == "image" else None
        return draw_overlay(canvas, mask, covered, settings.alpha, settings.colormap)
