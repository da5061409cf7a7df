"""One picture, from its path to the files that explain it."""

import platform
from pathlib import Path

import vit_torchvision  # noqa: F401

import cv2
import numpy as np
import PIL
import timm
import torch
from PIL import Image

import vit_published
from vit_device import choose_device
from vit_files import writable_folder, write_array, write_png
from vit_grad_rollout import VITAttentionGradRollout
from vit_heatmap import check_style, draw_overlay
from vit_images import open_picture
from vit_model import LoadedModel, data_folder, load_model
from vit_rollout import Explanation, VITAttentionRollout
from vit_settings import DEFAULT_PICTURE, Settings, __version__
from vit_transform import InputTransform

TOP = 5


def explain_picture(settings: Settings) -> dict:
    """Explain one picture, write the files, and report (JSON-ready).

    Raises:
        ValueError, OSError: a request that can't be met; nothing has been written then, save
            where writing itself failed.
    """
    # whatever can be wrong is looked at before the slow part, and before anything is written
    check_style(settings.alpha, settings.colormap)
    if settings.as_published and settings.crop != "none":
        raise ValueError("as_published explains the whole picture: leave out --crop")
    picture = open_picture(_existing(settings.image_path))
    folder = writable_folder(settings.output_dir)
    device, device_notice = choose_device(settings.device, settings.use_cuda)
    loaded = load_model(
        settings.model,
        settings.checkpoint,
        settings.class_names,
        device,
        settings.crop,
        img_size=settings.img_size,
    )
    transform = _published_transform(loaded) if settings.as_published else loaded.transform
    seen = transform.picture(picture)
    explanation = _explain(settings, loaded, transform.tensor(seen)[None])
    report = _report(settings, loaded, explanation)
    report["device"] = {"name": str(device), "notice": device_notice}
    report["notices"] = _notices(loaded, explanation)
    region = transform.region(*picture.size)
    report["picture"] = {
        "path": settings.image_path,
        "size": list(picture.size),
        "region_seen": [round(edge, 2) for edge in region],
    }
    overlay = _draw(settings, picture, seen, explanation.masks[0], region)
    report["files"] = _write(settings, folder, report, overlay, seen, explanation.masks[0])
    return report


def _existing(path: str) -> Path:
    """The default picture is there wherever the command is run from."""
    if path == DEFAULT_PICTURE and not Path(path).exists():
        return data_folder("examples", "vit_explain_examples") / "both.png"
    return Path(path)


def _published_transform(loaded: LoadedModel) -> InputTransform:
    """The older script's: the whole picture resized, mean and deviation 0.5 for every model."""
    half = (0.5, 0.5, 0.5)
    return InputTransform(loaded.transform.size, half, half, "bicubic")


def _explain(settings: Settings, loaded: LoadedModel, tensor: torch.Tensor) -> Explanation:
    common = {
        "head_fusion": _head_fusion(settings),
        "discard_ratio": settings.discard_ratio,
        "start_block": settings.start_block,
        "as_published": settings.as_published,
    }
    if settings.category is None:
        return VITAttentionRollout(loaded.model, **common).explain(tensor)
    categories = None  # the likeliest
    if settings.category != "top":
        categories = [loaded.category_index(settings.category)]
    return VITAttentionGradRollout(loaded.model, **common).explain(tensor, categories)


def _head_fusion(settings: Settings) -> str:
    return settings.head_fusion or ("max" if settings.category is None else "mean")


def _report(settings: Settings, loaded: LoadedModel, explanation: Explanation) -> dict:
    probabilities = explanation.logits[0].softmax(dim=0).tolist() if loaded.categories else []
    likeliest = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:TOP]

    def described(index: int) -> dict:
        name, probability = loaded.categories[index], probabilities[index]
        return {"index": index, "name": name, "probability": probability}

    chosen = explanation.categories
    height, width = loaded.transform.size
    return {
        "model": {
            "name": loaded.name,
            "input_size": [width, height],
            "crop": settings.crop,
            "patch_grid": list(explanation.layout.grid),
            "readout": explanation.layout.readout,
        },
        "top": [described(index) for index in likeliest],
        "method": {
            "name": "attention_rollout" if chosen is None else "grad_rollout",
            "category": None if chosen is None else described(chosen[0]),
            "head_fusion": _head_fusion(settings),
            "discard_ratio": settings.discard_ratio,
            "start_block": settings.start_block,
            "as_published": settings.as_published,
        },
        "versions": versions(),
    }


def _notices(loaded: LoadedModel, explanation: Explanation) -> list[str]:
    notices = [loaded.notice] if loaded.notice else []
    if not explanation.masks.any():
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


def _draw(
    settings: Settings,
    picture: Image.Image,
    seen: Image.Image,
    mask: np.ndarray,
    region: tuple[float, float, float, float],
) -> Image.Image:
    size = settings.size or ("model" if settings.as_published else "image")
    canvas = picture if size == "image" else seen
    if settings.as_published:
        return Image.fromarray(vit_published.overlay(np.asarray(canvas), mask))
    covered = region if size == "image" else None
    return draw_overlay(canvas, mask, covered, settings.alpha, settings.colormap)


def _write(
    settings: Settings,
    folder: Path,
    report: dict,
    overlay: Image.Image,
    seen: Image.Image,
    mask: np.ndarray,
) -> dict[str, str]:
    stem, method = Path(settings.image_path).stem, report["method"]
    texts = {
        "Software": "vit_explain",
        "Command": settings.command,
        "Model": report["model"]["name"],
        "Category": "none",
        "Versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
    }
    kind = "attention_rollout"
    if method["category"]:
        index, name = method["category"]["index"], method["category"]["name"]
        kind, texts["Category"] = f"grad_rollout_{index}", f"{index} {name}"
    base = f"{stem}_{kind}_{method['discard_ratio']:.3f}_{method['head_fusion']}"
    files = {"overlay": folder / f"{base}.png", "input": folder / f"{stem}_input.png"}
    write_png(files["overlay"], overlay, texts)
    write_png(files["input"], seen, texts)
    if settings.save_mask:
        files["mask"] = folder / f"{base}.npy"
        write_array(files["mask"], mask)
    return {kind: str(path) for kind, path in files.items()}
