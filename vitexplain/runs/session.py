"""One image, from its path to the files that explain it."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL
import timm
import torch
from PIL import Image
from torch import Tensor

import vitexplain
from vitexplain.anatomy import anatomy
from vitexplain.attention.tokens import token_layout
from vitexplain.choices import DEFAULT_IMAGE
from vitexplain.device import choose_device
from vitexplain.drawing.anatomy import draw_anatomy
from vitexplain.drawing.comparison import draw_compare
from vitexplain.drawing.heatmap import check_style
from vitexplain.drawing.overlay import Output
from vitexplain.drawing.sweep import draw_sweep, shrunk, write_gif
from vitexplain.explainer import Explainer, Map, most_faithful, names_of
from vitexplain.images.reading import open_image
from vitexplain.images.region import Region
from vitexplain.images.writing import writable_folder, write_png
from vitexplain.models.loading import LoadedModel, load_model
from vitexplain.models.transform import InputTransform
from vitexplain.runs.sweep import sweep_maps
from vitexplain.settings import Settings


@dataclass(frozen=True)
class Ready:
    """All that the images of a run have in common."""

    folder: Path
    device: dict[str, str]
    loaded: LoadedModel
    explainer: Explainer
    output: Output


def prepare(settings: Settings) -> Ready:
    """Whatever can be wrong is looked at here, before anything is written.

    Raises:
        ValueError, OSError: a request that can't be met.
    """
    check_style(settings.alpha, settings.colormap)
    if settings.as_published and settings.crop != "none":
        raise ValueError("as_published explains the whole image: leave out --crop")
    folder = writable_folder(settings.output_dir)
    device, notice = choose_device(settings.device, settings.use_cuda)
    loaded = load_model(
        settings.model,
        settings.checkpoint,
        settings.class_names,
        device,
        settings.crop,
        img_size=settings.img_size,
    )
    explainer = Explainer(settings, loaded)
    texts = {
        "Software": "vit_explain",
        "Command": settings.command,
        "Model": loaded.name,
        "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    transform = _published_transform(loaded) if settings.as_published else loaded.transform
    output = Output(settings, transform, texts)
    return Ready(folder, {"name": str(device), "notice": notice}, loaded, explainer, output)


def explain_image(settings: Settings) -> dict:
    """Explain one image by one method, write the files, and report (JSON-ready).

    Raises:
        ValueError, OSError: a request that can't be met; nothing has been written then, save
            where writing itself failed.
    """
    opened = _open(settings)
    ready, output = opened.ready, opened.ready.output
    (explained,) = ready.explainer(opened.tensor)
    (found,) = explained.maps
    base = ready.folder / opened.path.stem
    files = output.write(base, opened.image, opened.seen, found)
    files["input"] = base.with_name(f"{base.name}_input.png")
    write_png(files["input"], opened.seen, output.texts)
    return {
        **_report(settings, ready, [found], files),
        "top": explained.top,
        "method": {**found.method, "category": found.category},
        "picture": {
            "path": str(opened.path),
            "size": list(opened.image.size),
            "region_seen": [round(edge, 2) for edge in opened.region],
        },
    }


def explain_sweep(settings: Settings) -> dict:
    """The maps of one image for all values of a sweep, on a sheet, and report (JSON-ready).

    A sweep of one parameter is also written as an animation.

    Raises:
        ValueError, OSError: as `explain_image`.
    """
    sweep = settings.sweep
    opened = _open(settings)
    ready, texts = opened.ready, opened.ready.output.texts
    rows = sweep_maps(ready.loaded, opened.tensor, settings, sweep)
    small, draw = opened.small()
    base = ready.folder / f"{opened.path.stem}_sweep_{'_'.join(sweep)}"
    files = {"sheet": base.with_name(f"{base.name}.png")}
    write_png(files["sheet"], draw_sweep(small, rows, draw), texts)
    if len(sweep) == 1:
        files["animation"] = base.with_name(f"{base.name}.gif")
        write_gif(files["animation"], rows[0], draw, texts)
    maps = [each for row in rows for each in row]
    report = _report(settings, ready, [each.found for each in maps], files)
    return {**report, "maps": [each.values for each in maps]}


def explain_compare(settings: Settings) -> dict:
    """All methods' maps of one image on a sheet, and report (JSON-ready).

    Raises:
        ValueError, OSError: as `explain_image`.
    """
    opened = _open(settings)
    ready = opened.ready
    (explained,) = ready.explainer(opened.tensor)
    small, draw = opened.small()
    files = {"sheet": ready.folder / f"{opened.path.stem}_compare.png"}
    write_png(files["sheet"], draw_compare(small, explained.maps, draw), ready.output.texts)
    best = most_faithful(explained.maps)
    return {
        **_report(settings, ready, explained.maps, files),
        "top": explained.top,
        "maps": [
            {
                "method": found.method,
                "category": found.category,
                "faithfulness": found.faithfulness,
                "most_faithful": place in best,
            }
            for place, found in enumerate(explained.maps)
        ],
    }


@dataclass(frozen=True)
class _Opened:
    """One image, and all that is ready for it.

    Attributes:
        image, seen: RGB, as it is and as the model sees it.
        region: (left, top, right, bottom) of what is seen, in the image's pixels.
        tensor: (1, 3, H, W).
    """

    path: Path
    ready: Ready
    image: Image.Image
    seen: Image.Image
    region: Region
    tensor: Tensor

    def small(self) -> tuple[Image.Image, Callable[[np.ndarray], Image.Image]]:
        """The image as small as sheets need it, and what draws a mask over it."""
        image, region = shrunk(self.image, self.region)
        return image, lambda mask: self.ready.output.draw(image, self.seen, mask, region)


def _open(settings: Settings) -> _Opened:
    (path,) = settings.image_path
    image = open_image(existing(path))
    ready = prepare(settings)
    transform = ready.output.transform
    seen = transform.seen(image)
    region, tensor = transform.region(*image.size), transform.tensor(seen)[None]
    return _Opened(Path(path), ready, image, seen, region, tensor)


def _report(settings: Settings, ready: Ready, maps: Sequence[Map], files: Mapping) -> dict:
    """What every report of one image says."""
    return {
        "model": model_report(settings, ready.loaded),
        "versions": versions(),
        "device": ready.device,
        "notices": _notices(ready, maps),
        "files": {kind: str(path) for kind, path in files.items()},
    }


def explain_anatomy(settings: Settings) -> dict:
    """What the model does with one image, block by block, on a figure, and report (JSON-ready).

    Raises:
        ValueError, OSError: as `explain_image`; also where the settings ask for a category.
    """
    if names_of(settings) != ("attention_rollout",) or settings.sweep or settings.as_published:
        raise ValueError("--anatomy shows attention and rollout, the same for every category: "
                         "leave out --category, --method, --as_published and --sweep")  # fmt: skip
    opened = _open(settings)
    ready = opened.ready
    (method,) = ready.explainer.methods
    options = (method[name] for name in ("head_fusion", "discard_ratio", "start_block"))
    found = anatomy(ready.loaded.model, opened.tensor, *options)
    title = f"{opened.path.name}, seen by the model {ready.loaded.name}"
    style = {"alpha": settings.alpha, "colormap": settings.colormap}
    files = {"anatomy": ready.folder / f"{opened.path.stem}_anatomy.png"}
    figure = draw_anatomy(found, opened.seen, title, **style)
    write_png(files["anatomy"], figure, ready.output.texts)
    rollout = Map(found.rollout, None, method)
    return {**_report(settings, ready, [rollout], files), "method": method}


def existing(path: str) -> Path:
    """The default image is there wherever the command is run from."""
    if path == DEFAULT_IMAGE and not Path(path).exists():
        package = Path(vitexplain.__file__).resolve().parent
        beside, installed = package.parent / DEFAULT_IMAGE, package / DEFAULT_IMAGE
        return installed if installed.exists() else beside
    return Path(path)


def _published_transform(loaded: LoadedModel) -> InputTransform:
    """The older script's: the whole image resized, mean and deviation 0.5 for every model."""
    half = (0.5, 0.5, 0.5)
    return InputTransform(loaded.transform.size, half, half, "bicubic")


def model_report(settings: Settings, loaded: LoadedModel) -> dict:
    height, width = loaded.transform.size
    layout = token_layout(loaded.model, height, width)
    return {
        "name": loaded.name,
        "input_size": [width, height],
        "crop": settings.crop,
        "patch_grid": list(layout.grid),
        "readout": layout.readout,
    }


def _notices(ready: Ready, maps: Sequence[Map]) -> list[str]:
    notices = [ready.loaded.notice] if ready.loaded.notice else []
    notices += ready.explainer.left_out
    if not any(found.mask.any() for found in maps):
        with_ratio = any("discard_ratio" in found.method for found in maps)
        remedy = ": lower --discard_ratio" if with_ratio else ""
        notices.append(f"no patch reaches the read-out, the map is empty{remedy}")
    return notices


def versions() -> dict[str, str]:
    return {
        "vit_explain": vitexplain.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
    }
