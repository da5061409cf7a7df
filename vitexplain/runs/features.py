"""What a model's features tell apart in one image or many: the same colours for all of them.

The images are passed through the model twice, once to find the components and once to project to
them, so that no features of all images need be kept.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vitexplain.api import OpenImage
from vitexplain.components import Covariance, FinalFeatures, Palette, components_of, palette
from vitexplain.drawing.features import draw_features
from vitexplain.drawing.overlay import texts_for
from vitexplain.errors import RequestError, one_line
from vitexplain.images.finding import ImageFile, find_images, is_one_image
from vitexplain.images.reading import PictureError, open_image
from vitexplain.images.writing import writable_folder, write_png, write_whole
from vitexplain.models.loading import LoadedModel, any_model
from vitexplain.progress import watch_of
from vitexplain.runs.session import devices_for, existing, load_on, output_base
from vitexplain.settings import Settings
from vitexplain.versions import versions


def explain_features(settings: Settings, tell: Callable[[str], None]) -> dict:
    """Draw the features of all requested images, and report (JSON-ready).

    Args:
        tell: receives a sentence for each image that fails, and any other notice.

    Raises:
        RequestError, OSError: a request that can't be met.
    """
    run = settings.run
    folder = writable_folder(run.output_dir)
    requests = [str(existing(path)) for path in run.image_path]
    images, notices = find_images(requests, run.recursive, folder)
    devices, device = devices_for(settings.model)
    loaded = load_on(devices, device["precision"], settings, any_model)
    for notice in notices + ([loaded.notice] if loaded.notice else []):
        tell(notice)
    features = _Features(loaded, settings, tell)
    found = features.components(images)
    files: dict[str, Path] = {}
    texts = texts_for(loaded, run.command)
    for image, components in found.items():
        base = output_base(folder, image, one=is_one_image(run.image_path))
        files[image.name] = base.with_name(f"{base.name}_features.png")
        write_png(files[image.name], features.drawn(image, components), texts)
        if run.save_features:
            _save(files[image.name].with_suffix(".npz"), features, image, components)
    height, width = loaded.transform.size
    return {
        "pictures": len(images),
        "failed": len(images) - len(found),
        "model": {
            "name": loaded.name,
            "input_size": [width, height],
            "crop": settings.model.crop,
            "patch_grid": None,
            "readout": None,
        },
        "variance": [round(float(share), 4) for share in features.palette.shares],
        "versions": versions(),
        "device": device,
        "notices": [],
        "files": {name: str(path) for name, path in files.items()},
    }


class _Features:
    """The features of images that are opened anew whenever they are needed."""

    def __init__(self, loaded: LoadedModel, settings: Settings, tell: Callable[[str], None]):
        self.loaded, self.settings, self.tell = loaded, settings, tell
        self.features = FinalFeatures(loaded.model)
        self.palette: Palette | None = None

    def components(self, images: list[ImageFile]) -> dict[ImageFile, np.ndarray]:
        """(h, w, 3) of each image that can be opened, by the palette of all of them."""
        watch, covariance, good = watch_of(self.settings.run), Covariance(), []
        for image in watch(images, "features"):
            try:
                covariance.add(self.of(image)[None])
                good.append(image)
            except (PictureError, OSError) as error:
                self.tell(one_line(error))
        if not good:
            raise RequestError("no image can be read")
        mean, axes, shares = covariance.axes()
        found = {i: components_of(self.of(i).numpy(), mean, axes) for i in watch(good, "colours")}
        self.palette = palette(mean, axes, shares, found.values())
        turn = (self.palette.axes * axes).sum(axis=1)  # 1 or -1 each
        return {image: components * turn for image, components in found.items()}

    def of(self, image: ImageFile) -> Tensor:
        """(h, w, C)."""
        return self.features(self._opened(image).tensor[None])[0]

    def drawn(self, image: ImageFile, components: np.ndarray) -> Image.Image:
        opened = self._opened(image)
        width, height = opened.region.width, opened.region.height
        scale = max(opened.seen.size) / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return draw_features(
            opened.seen.resize(size, Image.Resampling.LANCZOS),
            self.palette.colours(components),
            self.palette.foreground(components),
        )

    def _opened(self, image: ImageFile) -> OpenImage:
        stretch = self.settings.model.stretch
        return OpenImage.of(open_image(image.path, stretch=stretch), self.loaded.transform)


def _save(path: Path, features: _Features, image: ImageFile, components: np.ndarray) -> None:
    """Everything as arrays that NumPy reads without pickles."""
    arrays = {
        "features": features.of(image).numpy(),
        "components": components.astype(np.float32),
        "foreground": features.palette.foreground(components),
        "mean": features.palette.mean,
        "axes": features.palette.axes,
        "variance": features.palette.shares,
    }
    write_whole(path, lambda file: np.savez(file, **arrays))
