"""Load a model to explain: a timm name, a checkpoint of your own, or the bundled model.

It comes with its own input transform and the names of its categories.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from timm.models import (
    is_model,
    parse_model_name,
    resolve_pretrained_cfg,
    split_model_name_tag,
)
from torch import Tensor, nn

from vitexplain.attention.families import GLOBAL, WINDOWED, check_classifier, check_supported
from vitexplain.attention.readout import channels_of
from vitexplain.attention.shadow import shadow_of
from vitexplain.checkpoints.fitting import fit
from vitexplain.checkpoints.instances import converted
from vitexplain.checkpoints.making import with_weights
from vitexplain.checkpoints.nesting import find_weights
from vitexplain.checkpoints.reading import read_file
from vitexplain.checkpoints.transformers_folders import (
    WEIGHTS,
    Converted,
    is_transformers_folder,
    read_folder,
)
from vitexplain.errors import ModelError, RequestError, one_line
from vitexplain.images.finding import find_images
from vitexplain.images.reading import open_image
from vitexplain.models.answers import name_outputs
from vitexplain.models.bundled import build_network, bundled_folder, read_config
from vitexplain.models.categories import find_category
from vitexplain.models.class_names import names_beside
from vitexplain.models.hub import WeightsUnavailable, transformers_snapshot, weights_at_hand
from vitexplain.models.texts import text_embeddings
from vitexplain.models.transform import InputTransform
from vitexplain.models.zero_shot import ALIKE, SCALE, Embeddings, similarity, zero_shot
from vitexplain.outputs import COSINE

AUTO_MODEL = "deit_tiny_patch16_224.fb_in1k"  # the model of the published images
MOST_PATCHES = 16_384  # one block's attention matrix then takes 1 GiB
# what timm's configurations say of images
NEEDED = ("architecture", "class", "args", "categories", "transform")  # of a folder's config
DATA = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size")
LONGEST = 240  # characters of timm's or the hub's own words within a message


Check = Callable[[nn.Module], object]  # raises UnsupportedModel


def any_model(model: nn.Module) -> nn.Module:
    """The check that every model passes."""
    return model


@dataclass
class LoadedModel:
    """A model in evaluation mode, with its input transform and the names of its categories.

    Attributes:
        model: the network, on its device.
        name: what was loaded, as timm names it, or "bundled".
        transform: PIL image -> (3, H, W) tensor.
        categories: their names, by output index; empty for a model without a classifier.
        notice: a sentence for the user on how the model was chosen, or "".
        labels: one of choices.LABELS: whether its outputs exclude each other.
    """

    model: nn.Module
    name: str
    transform: InputTransform
    categories: list[str]
    notice: str = ""
    labels: str = "exclusive"

    def category_index(self, name_or_number: int | str) -> int:
        """The index of a category given by index or name: any synonym, in upper or lower case.

        Raises:
            vitexplain.models.categories.CategoryError: unknown, ambiguous or out of range.
        """
        return find_category(self.categories, name_or_number)


@dataclass
class _Network:
    """A model, how its images are prepared (timm's data config), and its categories.

    `names` is what timm's pretrained_cfg says of them: "label_names", "label_descriptions".
    """

    model: nn.Module
    name: str
    data: dict
    names: dict
    notice: str = ""
    labels: str = "exclusive"


@dataclass(frozen=True)
class _Request:
    """Which model was asked for; as in load_model."""

    name: str
    checkpoint: Path | None
    check: "Check"
    model_args: dict
    img_size: tuple[int, int] | None

    def without_args(self, reason: str) -> None:
        if self.model_args:
            raise ModelError(f"no model arguments here: {reason}")


def load_model(
    name: str | nn.Module = "auto",
    checkpoint: str | Path | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    crop: str = "none",
    *,
    img_size: tuple[int, int] | None = None,
    labels: str | None = None,
    model_args: Mapping[str, object] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stretch: bool = False,
    class_embeddings: Embeddings | None = None,
    logit_scale: float = SCALE,
    texts: Sequence[str] | None = None,
    similar_to: str | Path | Sequence[Image.Image] | None = None,
    check: Check = check_supported,
) -> LoadedModel:
    """Load a model to explain.

    Args:
        name: "auto" (DeiT-tiny from the local cache or the hub, else the bundled model),
            "bundled", or any timm name, with tag or "hf-hub:" / "local-dir:" prefix; or a model
            of your own, which stays where it is.
        checkpoint: a file of weights for `name`, of any layout of docs/checkpoints.md, or, as far
            as its names and shapes tell, of "auto"; or a folder that names its own model.
        class_names: file with the categories' names, one per line or JSON; or they themselves. A
            single output has two, against and for.
        device: where the model runs.
        crop: "none" (the whole image squashed), "center" (the model's own crop) or "pad".
        img_size: (H, W) of the input in pixels; None for the model's own.
        labels: how outputs become probabilities: "exclusive" (softmax over all of them),
            "independent" (each by its sigmoid) or "none" (they are values, as of a regression);
            None for what the model says of itself.
        model_args: arguments of timm's model, such as {"global_pool": "avg", "in_chans": 1}.
        mean, std: of each channel, for values from 0 to 1, in place of those that timm records.
        stretch: whether images are opened with their darkest values black, their brightest white.
        class_embeddings: one embedding for each category, (K, D): a .npy or .safetensors file, or
            an array. The model's own head, if it has one, is left out; see models.zero_shot.
        logit_scale: of their cosines with the image's embedding.
        texts: the categories in words, whose embeddings open_clip makes; see models.texts.
        similar_to: an image's file, a folder of images, or images: what is explained is the cosine
            of an image's embedding with theirs. Category 1 is "similar", 0 "different".
        check: refuses a model that can't be explained as it is meant to be, before its weights are
            downloaded: by default one whose attention can't be.

    Raises:
        ModelError: unknown or unavailable model, a checkpoint that doesn't fit, or a size that
            the model can't take.
        vitexplain.attention.tokens.UnsupportedModel: a model that `check` refuses.
        vitexplain.models.categories.CategoryError: class names that don't fit.
    """
    if isinstance(name, nn.Module):
        if checkpoint is not None or img_size:
            raise ModelError("a model that is given has weights and a size: pass it alone")
        if class_embeddings is not None or similar_to is not None or texts is not None:
            raise ModelError("class_embeddings, texts and similar_to are for a model that is named")
        loaded = wrap_model(name, class_names, labels, crop, check)
        loaded.transform.stretch = stretch
        return loaded
    if texts is not None:
        if class_embeddings is not None or class_names is not None or similar_to is not None:
            raise ModelError(
                "texts are the categories: leave class_embeddings, class_names and similar_to out"
            )
        class_embeddings, class_names = text_embeddings(name, list(texts)), list(texts)
    embeds = class_embeddings is not None or similar_to is not None
    request = _Request(
        name,
        None if checkpoint is None else Path(checkpoint),
        any_model if embeds else check,  # a tower is explained by what it becomes
        dict(model_args or {}),
        img_size,
    )
    network = with_weights(partial(_network, request), attrgetter("model"))
    if not embeds:
        check(network.model)
    if img_size:
        set_input_size(network.model, img_size)
        network.data["input_size"] = (channels_of(network.model), *img_size)
    network.data |= {k: v for k, v in (("mean", mean), ("std", std)) if v is not None}
    if class_embeddings is None and logit_scale != SCALE:
        raise ModelError("logit_scale is of class_embeddings: there are none")
    if class_embeddings is not None:
        _classify_by(network, class_embeddings, logit_scale)
    if similar_to is not None:
        if class_embeddings is not None or class_names is not None or labels is not None:
            raise ModelError(
                "similar_to explains one number: leave class_embeddings, class_names and labels out"
            )
        _compare_with(network, _images_of(similar_to, stretch), crop)
        class_names = list(ALIKE)
    if embeds:
        check(network.model)
    network.model.eval().to(device)
    try:
        loaded = _loaded(network, class_names, labels, crop)
        loaded.transform.stretch = stretch
        return loaded
    except (TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        # a folder describes its images and categories itself
        raise ModelError(f"{network.name} can't be used: {one_line(error, LONGEST)}") from error


def wrap_model(
    model: nn.Module,
    class_names: str | Path | Sequence[str] | None = None,
    labels: str | None = None,
    crop: str = "none",
    check: Callable[[nn.Module], nn.Module] = check_supported,
) -> LoadedModel:
    """A model of your own, in whatever mode it is, with the transform that timm records.

    Args:
        check: as for load_model; it returns timm's model within what is given.

    Raises:
        vitexplain.attention.tokens.UnsupportedModel: if there is no model in it that `check` lets
            pass.
        vitexplain.models.categories.CategoryError: class names that don't fit.
    """
    twin = converted(model)
    if twin is not None:
        return _loaded(_of_transformers(twin, type(model).__name__), class_names, labels, crop)
    model = check(model)
    data = resolve_model_data_config(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size:  # of this very model, whatever its configuration says
        data["input_size"] = (channels_of(model), *size)
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") or type(model).__name__
    return _loaded(_Network(model, name, data, config), class_names, labels, crop)


def _loaded(
    network: _Network,
    class_names: str | Path | Sequence[str] | None,
    labels: str | None,
    crop: str,
) -> LoadedModel:
    labels = labels or network.labels
    categories, remark = name_outputs(network.model, network.names, class_names, labels)
    notice = "; ".join(filter(None, (network.notice, remark)))
    transform = _transform(network.data, crop, channels_of(network.model))
    return LoadedModel(network.model, network.name, transform, categories, notice, labels)


def _classify_by(network: _Network, embeddings: Embeddings, scale: float) -> None:
    """Put embedded categories in the place of the network's own."""
    classifier = zero_shot(network.model, network.names, embeddings, scale)
    count = len(classifier.embeddings)
    network.model = check_classifier(classifier.eval())
    network.labels = "none" if count == 1 else "exclusive"  # a cosine alone is no probability
    numbers = [f"category {number}" for number in range(count)]
    network.names = {} if count == 1 else {"label_names": numbers}


def _compare_with(network: _Network, images: Sequence[Image.Image], crop: str) -> None:
    """Put the similarity with some images in the place of the network's outputs."""
    transform = _transform(network.data, crop, channels_of(network.model))
    network.model = check_classifier(
        similarity(network.model, network.names, transform, images).eval()
    )
    network.labels, network.names = COSINE, {}


def _images_of(source: str | Path | Sequence[Image.Image], stretch: bool) -> list[Image.Image]:
    if not isinstance(source, str | Path):
        return list(source)
    if not Path(source).is_dir():
        return [open_image(source, stretch=stretch)]
    found, _ = find_images([str(source)], False, Path(source) / ".none")
    return [open_image(each.path, stretch=stretch) for each in found]


def _network(request: _Request) -> _Network:
    name, checkpoint = request.name, request.checkpoint
    if checkpoint is not None and checkpoint.is_dir():
        if name != "auto":
            raise ModelError(f"{checkpoint} says itself what model it is: leave out {name}")
        request.without_args("a folder says itself what its model is")
        return _from_folder(checkpoint, str(checkpoint))
    if checkpoint is not None and name == "auto" and is_transformers_folder(checkpoint.parent):
        request.without_args("a folder says itself what its model is")
        return _from_folder(checkpoint.parent, str(checkpoint))
    if name == "bundled":
        request.without_args("the bundled model is as it is")
        return _bundled() if checkpoint is None else _tuned_bundled(checkpoint)
    if checkpoint is not None:
        return _from_file(request)
    if name == "auto":
        request.without_args("name the model that they are for")
        return _automatic()
    return _pretrained(name, request.check, request.model_args)


def set_input_size(model: nn.Module, img_size: tuple[int, int]) -> None:
    """Make a timm model take images of (H, W) pixels; position embeddings are interpolated.

    Raises:
        ModelError: the model can't take that size.
    """
    height, width = img_size
    if not hasattr(model, "set_input_size"):
        _check_size(model, height, width)  # most CNNs take any
        return
    down, across = model.patch_embed.feat_ratio(as_scalar=False)  # pixels of a patch
    if height % down or width % across:
        raise ModelError(
            f"the model does not take {height}x{width} images: its patches have {down}x{across} "
            f"pixels, try {max(1, round(height / down)) * down}x"
            f"{max(1, round(width / across)) * across}"
        )
    patches = height // down * (width // across)
    if patches > MOST_PATCHES:
        raise ModelError(
            f"{height}x{width} images would be {patches} patches, and each attends to all "
            f"others: at most {MOST_PATCHES}"
        )
    try:
        model.set_input_size(img_size=img_size)
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(
            f"the model does not take {height}x{width} images: {one_line(error, LONGEST)}"
        ) from error


def _check_size(model: nn.Module, height: int, width: int) -> None:
    """Raise ModelError unless one image of this size passes."""
    weight = next(model.parameters())
    image = torch.zeros(1, channels_of(model), height, width, device=weight.device)
    try:
        with torch.inference_mode():
            shadow_of(model)(image.to(weight.dtype))
    except Exception as error:  # whatever its layers raise
        reason = one_line(error, LONGEST)
        raise ModelError(f"the model does not take {height}x{width} images: {reason}") from error


def _automatic() -> _Network:
    try:
        return _pretrained(AUTO_MODEL)
    except ModelError as error:
        network = _bundled()
        network.notice = f"using the bundled model: {error.__cause__ or error}"
        return network


def _bundled() -> _Network:
    return _from_folder(bundled_folder(), "bundled")


def _from_folder(folder: Path, name: str) -> _Network:
    """From config.json and weights, in the bundled model's, timm's or transformers' format."""
    if is_transformers_folder(folder):
        return _of_transformers(read_folder(folder), name)
    config = read_config(folder)
    try:
        if "class" not in config:
            return _timms_folder(folder, config, name)
        model = build_network(config)
        _fit(model, read_file(folder / "model.safetensors"), name, folder)
        names = config["categories"]
        labelled = {"label_names": names} if isinstance(names, list) else {}
        return _Network(model, name, _checked_data(config["transform"]), labelled)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged configuration leads to
        lacks = isinstance(error, KeyError) and error.args[0] in (*NEEDED, *DATA)
        reason = f"config.json lacks {error}" if lacks else error
        raise ModelError(f"{folder} can't be loaded: {one_line(reason, LONGEST)}") from error


def _timms_folder(folder: Path, config: Mapping, name: str) -> _Network:
    """In the form that timm saves for the hub."""
    architecture = config["architecture"]
    if not is_model(architecture):
        raise ModelError(f"{folder}: timm has no model called {architecture}")
    weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise ModelError(f"{folder} holds none of {', '.join(WEIGHTS)}")
    if _is_vit(architecture):
        model = fit(weights, architecture, config.get("model_args") or {}).model
    else:
        model = _convolutional(architecture, weights).model
    said = {**(config.get("pretrained_cfg") or {}), **config}
    network = _Network(model, name, resolve_model_data_config(model), said)
    network.data |= {key: said[key] for key in DATA if said.get(key) is not None}
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size:
        network.data["input_size"] = (channels_of(model), *size)
    network.data = _checked_data(network.data)
    return network


def _checked_data(data: Mapping) -> dict:
    """A folder's own description of its images, which must be whole."""
    _transform({**data}, "none", len(data["mean"]))
    return dict(data)


def _of_transformers(twin: Converted, name: str) -> _Network:
    names = {"label_names": twin.names} if twin.names else {}
    return _Network(twin.model, name, twin.data, names, twin.notice, twin.labels)


def _tuned_bundled(checkpoint: Path) -> _Network:
    config = read_config(bundled_folder())
    state = find_weights(read_file(checkpoint), checkpoint).state
    model = build_network(config, len(state["head.weight"]) if "head.weight" in state else 0)
    _fit(model, state, "bundled", checkpoint)
    return _Network(model, "bundled", dict(config["transform"]), {})


def _pretrained(name: str, check: Check = check_supported, args: Mapping | None = None) -> _Network:
    args = dict(args or {})
    prefix, rest, config = _resolve(name, check, args)
    try:
        if prefix == "local-dir" and is_transformers_folder(Path(rest)):
            return _from_folder(Path(rest), name)
        if prefix == "local-dir":
            model = timm.create_model(name, pretrained=True, **args)
        else:
            repository = rest if prefix == "hf-hub" else config.get("hf_hub_id")
            with weights_at_hand(repository, config.get("url")):
                folder = transformers_snapshot(repository) if prefix == "hf-hub" else None
                if folder is not None:
                    return _from_folder(folder, name)
                model = timm.create_model(name, pretrained=True, **args)
    except WeightsUnavailable as error:
        reason = f"the weights of {name} {error}"
        raise ModelError(
            f"{reason}; use --model bundled, or --checkpoint with a file of its weights"
        ) from WeightsUnavailable(reason)
    except ModelError:
        raise
    except Exception as error:  # the hub client and the readers of weights raise almost anything
        raise ModelError(f"{name} can't be loaded: {one_line(error, LONGEST)}") from error
    return _from_timm(model, name)


def _from_file(request: _Request) -> _Network:
    """From a file of weights, of the architecture that is named, or that it is of."""
    name, path = request.name, request.checkpoint
    if name != "auto":
        prefix, _, _ = _resolve(name, request.check, request.model_args)
        if prefix:
            raise ModelError(f"a checkpoint needs one of timm's architectures as model, not {name}")
    if not _is_vit(name):
        return _convolutional(name, path)
    fitted = fit(path, None if name == "auto" else name, request.model_args, request.img_size)
    network = _from_timm(fitted.model, fitted.architecture)
    size = getattr(fitted.model.patch_embed, "img_size", None)
    if size:
        network.data["input_size"] = (channels_of(fitted.model), *size)
    network.data |= fitted.data
    network.notice = fitted.notice
    names, remark = names_beside(fitted.extras, fitted.model.num_classes)
    if remark:
        network.notice = "; ".join(filter(None, (network.notice, f"{path.name}: {remark}")))
    if names:
        network.names = {"label_names": names}
    return network


def _is_vit(name: str) -> bool:
    """Whether it is of a family whose files are known; "auto" is."""
    if name == "auto":
        return True
    with torch.device("meta"):
        return isinstance(timm.create_model(name, pretrained=False), GLOBAL + WINDOWED)


def _convolutional(name: str, path: Path) -> _Network:
    """Any other model, such as a CNN to compare with, from weights by timm's own names."""
    state = find_weights(read_file(path), path).state
    config = _resolve(name)[2]
    classifier = config.get("classifier") or "head"
    weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    given = {"state_dict": state, "num_classes": 0 if weight is None else len(weight)}
    given |= {"label_offset": 0, "custom_load": False}
    try:
        model = timm.create_model(
            name, pretrained=True, num_classes=given["num_classes"], pretrained_cfg_overlay=given
        )
    except Exception as error:
        raise _does_not_fit(path, name, error) from error
    return _from_timm(model, name)


def _from_timm(model: nn.Module, name: str) -> _Network:
    return _Network(model, name, resolve_model_data_config(model), model.pretrained_cfg)


def _resolve(
    name: str, check: Check = any_model, args: Mapping | None = None
) -> tuple[str | None, str, dict]:
    """Prefix, the rest of the name, and timm's config of it (empty for hub names).

    The architecture is first built without memory, so that a model that can't be explained is
    refused before anything is downloaded.
    """
    try:
        prefix, rest = parse_model_name(name)
        if prefix:
            return prefix, rest, {}
        architecture, tag = split_model_name_tag(rest)
        if not is_model(architecture):
            near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise ModelError(f"timm has no model called {architecture}{hint}")
        config = resolve_pretrained_cfg(architecture, tag or None).to_dict()
    except (RuntimeError, ValueError) as error:
        raise ModelError(one_line(error, LONGEST)) from error
    if check is not any_model:
        try:
            with torch.device("meta"):
                model = timm.create_model(architecture, pretrained=False, **(args or {}))
        except Exception as error:  # whatever an argument leads to
            given = ", ".join(f"{key}={value}" for key, value in (args or {}).items())
            raise ModelError(
                f"{architecture} can't be made with {given}: {one_line(error, LONGEST)}"
            ) from error
        check(model)
    return None, rest, config


def _fit(model: nn.Module, state: dict[str, Tensor], name: str, checkpoint) -> None:
    # batch-norm counters matter in training only and need not be shipped
    counters = {key: value for key, value in model.state_dict().items() if "num_batches" in key}
    try:
        model.load_state_dict(counters | state)
    except RuntimeError as error:
        raise _does_not_fit(checkpoint, name, error) from error


def _of_channels(values: Sequence[float], channels: int, what: str) -> tuple[float, ...]:
    """One value for each channel; colours' are averaged for grey."""
    values = tuple(map(float, values))
    if not all(map(math.isfinite, values)) or (what == "std" and min(values) <= 0):
        raise ModelError(
            f"{what} must be numbers{' above 0' if what == 'std' else ''}, not {values}"
        )
    if len(values) == channels or len(values) == 1:
        return values if len(values) == channels else values * channels
    if channels == 1 and len(values) == 3:
        return (sum(values) / 3,)
    raise ModelError(f"{what} needs {channels} numbers, not {len(values)}")


def _does_not_fit(checkpoint, name: str, error: Exception) -> ModelError:
    return ModelError(
        f"checkpoint {checkpoint} does not fit {name}, name its architecture with --model: "
        f"{one_line(error, LONGEST)}"
    )


def _transform(data: dict, crop: str, channels: int = 3) -> InputTransform:
    if channels not in (1, 3):
        raise ModelError(
            f"the model takes images of {channels} channels: only grey (1) and colour (3) are made"
        )
    return InputTransform(
        size=tuple(data["input_size"][-2:]),
        mean=_of_channels(data["mean"], channels, "mean"),
        std=_of_channels(data["std"], channels, "std"),
        interpolation=data["interpolation"],
        crop=crop,
        crop_pct=data["crop_pct"],
        crop_mode=data.get("crop_mode") or "center",
    )
