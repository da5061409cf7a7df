"""The files that show one map: the overlay, and on request the map itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vitexplain.choices import FORMATS, LONGEST_SIDE
from vitexplain.drawing.heatmap import overlay_pixels
from vitexplain.errors import RequestError
from vitexplain.explainer import Map
from vitexplain.images.encoding import ending_of
from vitexplain.images.region import Region
from vitexplain.images.writing import short_stem, write_array, write_image
from vitexplain.models.loading import LoadedModel
from vitexplain.models.transform import InputTransform
from vitexplain.settings import Style
from vitexplain.versions import versions

GAP = 3.0  # how much larger than its result Pillow resizes exactly from: no eye sees more


@dataclass(frozen=True)
class Overlay:
    """How maps are drawn and named.

    Attributes:
        transform: what the model saw of an image.
        texts: that overlays carry; method and category are added to them.
        as_published: drawn as the older script did, at the model's size unless `style` says.
    """

    style: Style
    transform: InputTransform
    texts: Mapping[str, str]
    as_published: bool = False

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the overlays of a width x height image."""
        size = self._size
        if size == "model":
            return self.transform.size[::-1]
        longer = max(width, height)
        if size == "image" or size >= longer:
            return width, height
        return max(1, round(width * size / longer)), max(1, round(height * size / longer))

    def ending(self, width: int, height: int) -> tuple[str, str]:
        """Of the overlays of a width x height image: the ending of their names, a notice or ""."""
        return ending_of(self.style.format, *self.size_of(width, height))

    def canvas(self, image: Image.Image, seen: Image.Image) -> tuple[Image.Image, Region | None]:
        """What overlays are drawn on, as large as they are, and the part of it that was seen.

        A small overlay does not make the model see another image: `seen` comes from the full one.
        A JPEG opened at a half, with four times the pixels of the model's input left on each side,
        would be faster, and change no value of that input by more than 2 of 255. But rollout
        discards attention below a threshold: maps of photographs differed by up to 0.19.

        Args:
            image, seen: RGB, as it is and as the model sees it.

        Returns:
            (RGB, what was seen in its pixels or None for all of it).
        """
        if self._size == "model":
            return seen, None
        region, size = self.transform.region(*image.size), self.size_of(*image.size)
        if size == image.size:
            return image, region
        scale = (new / old for new, old in zip(size, image.size, strict=True))
        small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=GAP)
        return small, region.scaled(*scale)

    def write(
        self, base: Path, canvas: Image.Image, region: Region | None, found: Map
    ) -> dict[str, Path]:
        """The files of one map, their names beginning with `base`, drawn on a `canvas`."""
        name = f"{short_stem(base.name)}_{name_of(found)}"
        ending, _ = ending_of(self.style.format, *canvas.size)
        files = {"overlay": base.with_name(f"{name}{ending}")}
        self.save(files["overlay"], canvas, region, found)
        if self.style.save_mask:
            files["mask"] = base.with_name(f"{name}.npy")
            write_array(files["mask"], found.mask)
        return files

    def save(self, path: Path, canvas: Image.Image, region: Region | None, found: Map) -> None:
        """Write the overlay of one map, as its path's ending says."""
        channels = 3 if path.suffix.lower() == ".png" else 4
        write_image(path, self._pixels(canvas, region, found, channels), self.texts_of(found))

    def draw(
        self, image: Image.Image, seen: Image.Image, found: Map, region: Region
    ) -> Image.Image:
        """The overlay, over `region` of the image, or at the model's size if the style says so."""
        if self._size == "model":
            return self.drawn(seen, None, found)
        return self.drawn(image, region, found)

    def drawn(self, canvas: Image.Image, region: Region | None, found: Map) -> Image.Image:
        """The overlay of one map on a `canvas`, RGB."""
        return Image.fromarray(self._pixels(canvas, region, found, 3))

    def _pixels(
        self, canvas: Image.Image, region: Region | None, found: Map, channels: int
    ) -> np.ndarray:
        """(H, W, 3), or (H, W, 4) where the fourth channel may be left out."""
        if self.as_published:
            return draw_published(np.asarray(canvas), found.mask)
        style = self.style
        return overlay_pixels(
            canvas,
            found.mask,
            region,
            style.alpha,
            style.colormap,
            signed=found.signed,
            channels=channels,
        )

    @property
    def _size(self) -> int | str:
        return self.style.size or ("model" if self.as_published else "image")

    def texts_of(self, found: Map) -> dict[str, str]:
        """The texts that one map's overlay carries."""
        category = found.category
        described = "none" if category is None else f"{category.index} {category.name}"
        texts = {**self.texts, "Method": found.method["name"], "Category": described}
        if found.rivals:
            texts["Against"] = ", ".join(f"{each.index} {each.name}" for each in found.rivals)
        return texts


def check_output(style: Style) -> None:
    """Raise RequestError unless overlays can have the size and the format."""
    size = style.size
    is_side = isinstance(size, int) and not isinstance(size, bool) and 0 < size <= LONGEST_SIDE
    if not (size is None or size in ("image", "model") or is_side):
        raise RequestError(
            f"size must be image, model or pixels from 1 to {LONGEST_SIDE}, not {size!r}"
        )
    if style.format not in FORMATS:
        raise RequestError(f"format must be one of {', '.join(FORMATS)}, not {style.format!r}")


def texts_for(loaded: LoadedModel, command: str) -> dict[str, str]:
    """The texts that all overlays of one model carry.

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
        ratio = method["discard_ratio"]
        # three digits unless they stand for another ratio: 0.9996 and 0.99999 are not 1.000
        parts.append(f"{ratio:.3f}" if float(f"{ratio:.3f}") == ratio else str(ratio))
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
