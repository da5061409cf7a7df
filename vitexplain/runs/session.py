"""What all images of a run share: folder, device, model, explainer and overlay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import vitexplain
from vitexplain.attention.tokens import layout_if_any
from vitexplain.choices import DEFAULT_IMAGE
from vitexplain.device import choose_devices
from vitexplain.drawing.heatmap import check_style
from vitexplain.drawing.overlay import Overlay, check_output, texts_for
from vitexplain.errors import RequestError
from vitexplain.explainer import Explainer, check_of
from vitexplain.images.finding import ImageFile
from vitexplain.images.writing import short_stem, writable_folder
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import Check, LoadedModel, load_model
from vitexplain.models.transform import InputTransform
from vitexplain.models.zero_shot import ALIKE
from vitexplain.precision import compute_in, precision_of, remark_on
from vitexplain.settings import MapOptions, ModelOptions, Settings


@dataclass(frozen=True)
class Session:
    """Everything shared by the images of a run.

    Attributes:
        devices: where the model runs.
        device: their name, a sentence on how it was chosen, and the precision of its products.
    """

    settings: Settings
    folder: Path
    device: dict[str, str]
    loaded: LoadedModel
    explainer: Explainer
    overlay: Overlay
    devices: tuple[torch.device, ...]


def open_session(settings: Settings, *, several_devices: bool = False) -> Session:
    """Load the model and make the explainer; validates everything before anything is written.

    Args:
        several_devices: whether there may be more than one. Of several, each is for a process that
            loads the model for itself; here it then is on the CPU.

    Raises:
        RequestError, OSError: a request that can't be met.
    """
    check_style(settings.style.alpha, settings.style.colormap)
    check_output(settings.style)
    as_published = settings.maps.as_published
    if as_published and settings.model.crop != "none":
        raise RequestError("as_published explains the whole image: leave out --crop")
    settings = replace(settings, maps=_maps_of(settings))
    folder = writable_folder(settings.run.output_dir)
    devices, device = devices_for(settings.model, several=several_devices)
    loaded = load_on(devices, device["precision"], settings, check_of(settings.maps))
    explainer = Explainer(settings.maps, loaded)
    transform = _published_transform(loaded) if as_published else loaded.transform
    texts = texts_for(loaded, settings.run.command)
    overlay = Overlay(settings.style, transform, texts, as_published)
    return Session(settings, folder, device, loaded, explainer, overlay, devices)


def devices_for(
    options: ModelOptions, *, several: bool = False
) -> tuple[tuple[torch.device, ...], dict[str, str]]:
    """The requested devices, and what reports say of them: name, notice and precision."""
    if "," in options.device and not several:
        raise RequestError(
            f"--device {options.device} is for many images by the local engine: name one device"
        )
    chosen = choose_devices(options.device, options.use_cuda)
    devices = tuple(device for device, _ in chosen)
    notice = "; ".join(dict.fromkeys(notice for _, notice in chosen))
    precision = precision_of(options.precision, devices[0])
    name = ",".join(map(str, devices))
    return devices, {"name": name, "notice": notice, "precision": precision}


def load_on(
    devices: Sequence[torch.device], precision: str, settings: Settings, check: Check
) -> LoadedModel:
    """The requested model, if `check` lets it pass; of several devices, on the CPU."""
    options = settings.model
    device = devices[0] if len(devices) == 1 else torch.device("cpu")
    loaded = load_model(
        options.model,
        options.checkpoint,
        options.class_names,
        device,
        options.crop,
        img_size=options.img_size,
        labels=options.labels,
        model_args=options.model_args,
        mean=options.mean,
        std=options.std,
        stretch=options.stretch,
        class_embeddings=options.class_embeddings,
        logit_scale=options.logit_scale,
        texts=options.text or None,
        similar_to=options.similar_to,
        check=check,
    )
    if len(devices) == 1:
        compute_in(precision, loaded.model, device)
    remark = remark_on(loaded.model)
    loaded.notice = "; ".join(filter(None, (loaded.notice, remark)))
    return loaded


def _maps_of(settings: Settings) -> MapOptions:
    """What is asked, also where it is not said.

    Of a similarity, it is why two images are alike; where true categories are known, what was
    predicted.
    """
    maps = settings.maps
    if settings.model.similar_to is not None and maps.against:
        raise RequestError("--against does not apply to --similar_to, which has two sides already")
    asked = maps.category is not None or maps.top_k
    of_category = not maps.method or any(METHODS[name].of_category for name in maps.method)
    if asked or not of_category:
        return maps
    if settings.run.truth is not None:
        return replace(maps, category="top")
    return maps if settings.model.similar_to is None else replace(maps, category=ALIKE[1])


def existing(path: str) -> Path:
    """The path itself; the default image is found from any folder."""
    if path == DEFAULT_IMAGE and not Path(path).exists():
        package = Path(vitexplain.__file__).resolve().parent
        beside, installed = package.parent / DEFAULT_IMAGE, package / DEFAULT_IMAGE
        return installed if installed.exists() else beside
    return Path(path)


def output_base(folder: Path, image: ImageFile, *, one: bool) -> Path:
    """What the names of an image's files begin with; of one image, without its ending."""
    base = folder / image.name
    base = base.with_name(short_stem(base.stem if one else base.name))
    base.parent.mkdir(parents=True, exist_ok=True)
    return base


def model_report(session: Session) -> dict:
    """What every report says about the model (JSON-ready)."""
    loaded = session.loaded
    height, width = loaded.transform.size
    layout = layout_if_any(loaded.model, height, width)
    return {
        "name": loaded.name,
        "input_size": [width, height],
        "crop": session.settings.model.crop,
        "patch_grid": layout and list(layout.grid),  # None where its attention is not explained
        "readout": layout and layout.readout,
    }


def _published_transform(loaded: LoadedModel) -> InputTransform:
    """The older script's: the whole image resized, mean and deviation 0.5 for every model."""
    half = (0.5, 0.5, 0.5)
    return InputTransform(loaded.transform.size, half, half, "bicubic")
