"""One picture, from its path to the files that explain it."""

import platform
from dataclasses import dataclass
from pathlib import Path

import vit_torchvision  # noqa: F401

import cv2
import numpy as np
import PIL
import timm
import torch
from PIL import Image

from vit_anatomy import anatomy
from vit_anatomy_figure import draw_anatomy
from vit_device import choose_device
from vit_explainer import Explainer
from vit_files import writable_folder, write_png
from vit_heatmap import check_style
from vit_images import open_picture
from vit_model import LoadedModel, data_folder, load_model
from vit_output import Output
from vit_settings import DEFAULT_PICTURE, Settings, __version__
from vit_sweep_maps import draw_sweep, shrunk, sweep_maps, write_gif
from vit_tokens import TokenLayout
from vit_transform import InputTransform


@dataclass(frozen=True)
class Ready:
    """All that the pictures of a run have in common."""

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
        raise ValueError("as_published explains the whole picture: leave out --crop")
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
    output = Output(settings, transform, explainer.method, texts)
    return Ready(folder, {"name": str(device), "notice": notice}, loaded, explainer, output)


def explain_picture(settings: Settings) -> dict:
    """Explain one picture, write the files, and report (JSON-ready).

    Raises:
        ValueError, OSError: a request that can't be met; nothing has been written then, save
            where writing itself failed.
    """
    (path,) = settings.image_path
    picture = open_picture(_existing(path))
    ready = prepare(settings)
    explainer, output = ready.explainer, ready.output
    seen = output.transform.picture(picture)
    (explanation,) = explainer(output.transform.tensor(seen)[None])
    probabilities, chosen = explanation.logits[0].softmax(dim=0), explanation.categories
    category = None if chosen is None else explainer.category(chosen[0], probabilities)
    base = ready.folder / Path(path).stem
    files = output.write(base, picture, seen, explanation.masks[0], category)
    files["input"] = base.with_name(f"{base.name}_input.png")
    write_png(files["input"], seen, output.texts)
    region = output.transform.region(*picture.size)
    return {
        "model": model_report(settings, ready.loaded, explanation.layout),
        "top": explainer.likeliest(probabilities),
        "method": {**explainer.method, "category": category},
        "versions": versions(),
        "device": ready.device,
        "notices": _notices(ready.loaded, explanation.masks),
        "picture": {
            "path": path,
            "size": list(picture.size),
            "region_seen": [round(edge, 2) for edge in region],
        },
        "files": {kind: str(path) for kind, path in files.items()},
    }


def explain_sweep(settings: Settings) -> dict:
    """The maps of one picture for all values of a sweep, on a sheet, and report (JSON-ready).

    A sweep of one parameter is also written as an animation.

    Raises:
        ValueError, OSError: as `explain_picture`.
    """
    sweep = settings.sweep
    (path,) = settings.image_path
    picture = open_picture(_existing(path))
    ready = prepare(settings)
    output = ready.output
    seen = output.transform.picture(picture)
    rows = sweep_maps(ready.loaded, output.transform.tensor(seen)[None], settings, sweep)
    small, region = shrunk(picture, output.transform.region(*picture.size))

    def draw(mask: np.ndarray) -> Image.Image:
        return output.draw(small, seen, mask, region)

    base = ready.folder / f"{Path(path).stem}_sweep_{'_'.join(sweep)}"
    files = {"sheet": base.with_name(f"{base.name}.png")}
    write_png(files["sheet"], draw_sweep(small, rows, draw), output.texts)
    if len(sweep) == 1:
        files["animation"] = base.with_name(f"{base.name}.gif")
        write_gif(files["animation"], rows[0], draw, output.texts)
    return {
        "model": model_report(settings, ready.loaded, rows[0][0].explanation.layout),
        "maps": [each.values for row in rows for each in row],
        "versions": versions(),
        "device": ready.device,
        "notices": _notices(ready.loaded, np.stack([m.mask for row in rows for m in row])),
        "files": {kind: str(path) for kind, path in files.items()},
    }


def explain_anatomy(settings: Settings) -> dict:
    """What the model does with one picture, block by block, on a figure, and report (JSON-ready).

    Raises:
        ValueError, OSError: as `explain_picture`; also where the settings ask for a category.
    """
    if settings.sweep or settings.as_published or settings.category is not None:
        raise ValueError("--anatomy shows attention and rollout, the same for every category: "
                         "leave out --category, --as_published and --sweep")  # fmt: skip
    (path,) = settings.image_path
    picture = open_picture(_existing(path))
    ready = prepare(settings)
    method, output = ready.explainer.method, ready.output
    seen = output.transform.picture(picture)
    options = (method[name] for name in ("head_fusion", "discard_ratio", "start_block"))
    found = anatomy(ready.loaded.model, output.transform.tensor(seen)[None], *options)
    title = f"{Path(path).name}, seen by the model {ready.loaded.name}"
    style = {"alpha": settings.alpha, "colormap": settings.colormap}
    figure = draw_anatomy(found, seen, title, **style)
    files = {"anatomy": ready.folder / f"{Path(path).stem}_anatomy.png"}
    write_png(files["anatomy"], figure, output.texts)
    return {
        "model": model_report(settings, ready.loaded, found.layout),
        "method": method,
        "versions": versions(),
        "device": ready.device,
        "notices": _notices(ready.loaded, found.rollout),
        "files": {kind: str(path) for kind, path in files.items()},
    }


def _existing(path: str) -> Path:
    """The default picture is there wherever the command is run from."""
    if path == DEFAULT_PICTURE and not Path(path).exists():
        return data_folder("examples", "vit_explain_examples") / "both.png"
    return Path(path)


def _published_transform(loaded: LoadedModel) -> InputTransform:
    """The older script's: the whole picture resized, mean and deviation 0.5 for every model."""
    half = (0.5, 0.5, 0.5)
    return InputTransform(loaded.transform.size, half, half, "bicubic")


def model_report(settings: Settings, loaded: LoadedModel, layout: TokenLayout) -> dict:
    height, width = loaded.transform.size
    return {
        "name": loaded.name,
        "input_size": [width, height],
        "crop": settings.crop,
        "patch_grid": list(layout.grid),
        "readout": layout.readout,
    }


def _notices(loaded: LoadedModel, masks: np.ndarray) -> list[str]:
    notices = [loaded.notice] if loaded.notice else []
    if not masks.any():
        notices.append("no patch reaches the read-out, the map is empty: lower --discard_ratio")
    return notices


def versions() -> dict[str, str]:
    return {
        "vit_explain": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
    }
