"""The files that show one map: the overlay, and on request the map itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vitexplain.drawing.heatmap import draw_overlay
from vitexplain.explainer import Map
from vitexplain.images.region import Region
from vitexplain.images.writing import short_stem, write_array, write_png
from vitexplain.models.loading import LoadedModel
from vitexplain.models.transform import InputTransform
from vitexplain.settings import Style
from vitexplain.versions import versions


@dataclass(frozen=True)
class Overlay:
    """How maps are drawn and named.

    Attributes:
        transform: what the model saw of an image.
        texts: for the PNG's text chunks; method and category are added to them.
        as_published: drawn as the older script did, at the model's size unless `style` says.
    """

    style: Style
    transform: InputTransform
    texts: Mapping[str, str]
    as_published: bool = False

    def write(
        self, base: Path, image: Image.Image, seen: Image.Image, found: Map
    ) -> dict[str, Path]:
        """The files of one map, their names beginning with `base`.

        Args:
            image, seen: RGB, as it is and as the model saw it.
        """
        name = f"{short_stem(base.name)}_{name_of(found)}"
        files = {"overlay": base.with_name(f"{name}.png")}
        drawn = self.draw(image, seen, found, self.transform.region(*image.size))
        write_png(files["overlay"], drawn, self.texts_of(found))
        if self.style.save_mask:
            files["mask"] = base.with_name(f"{name}.npy")
            write_array(files["mask"], found.mask)
        return files

    def draw(
        self, image: Image.Image, seen: Image.Image, found: Map, region: Region
    ) -> Image.Image:
        """The overlay, over `region` of the image, or at the model's size if the style says so."""
        style = self.style
        size = style.size or ("model" if self.as_published else "image")
        canvas = image if size == "image" else seen
        if self.as_published:
            return Image.fromarray(draw_published(np.asarray(canvas), found.mask))
        covered = region if size == "image" else None
        return draw_overlay(
            canvas, found.mask, covered, style.alpha, style.colormap, signed=found.signed
        )

    def texts_of(self, found: Map) -> dict[str, str]:
        """The text chunks of one map's overlay."""
        category = found.category
        described = "none" if category is None else f"{category.index} {category.name}"
        texts = {**self.texts, "Method": found.method["name"], "Category": described}
        if found.rivals:
            texts["Against"] = ", ".join(f"{each.index} {each.name}" for each in found.rivals)
        return texts


def texts_for(loaded: LoadedModel, command: str) -> dict[str, str]:
    """The text chunks that all overlays of one model share.

    Args:
        command: the request, in a form that can be repeated.
    """
    return {
        "Software": "vit_explain",
        "Command": command,
        "Model": loaded.name,
        "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }


def name_of(found: Map) -> str:
    """How a map's files are named, as "grad_rollout_243_0.900_mean"."""
    method, parts = found.method, [found.method["name"]]
    if found.category is not None:
        parts.append(str(found.category.index))
    if found.rivals:
        parts.append("against_" + "-".join(str(each.index) for each in found.rivals))
    if "discard_ratio" in method:
        parts.append(f"{method['discard_ratio']:.3f}")
    if "block" in method:
        parts.append("last" if method["block"] == -1 else f"block{method['block']}")
    if method.get("head") is not None:
        parts.append(f"head{method['head']}")
    elif "head_fusion" in method:
        parts.append(method["head_fusion"])
    return "_".join(parts)


def draw_published(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Heatmap and image (H, W, 3), uint8 RGB, added and divided by the brightest value.

    So the older script drew; its arithmetic is in methods/as_published.
    """
    height, width = image.shape[:2]
    enlarged = cv2.resize(mask, (width, height))
    heatmap = cv2.applyColorMap(np.uint8(255 * enlarged), cv2.COLORMAP_JET)[:, :, ::-1]
    added = np.float32(heatmap) / 255 + np.float32(image) / 255
    return np.uint8(255 * (added / added.max()))
