"""One of many pictures on its way: what is known of it so far, its maps, and its result."""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import vit_torchvision  # noqa: F401

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit_explainer import Explainer
from vit_heatmap import stretch
from vit_inputs import Picture
from vit_pipeline import Ready
from vit_rollout import Explanation
from vit_transform import InputTransform
from vit_workers import Decoded, Written


@dataclass
class Item:
    """One picture on its way; with `failure`, why it goes no further."""

    number: int
    picture: Picture
    failure: str = ""
    decoded: Decoded | None = None
    top: list[dict] = field(default_factory=list)
    maps: list[tuple[np.ndarray, dict | None]] = field(default_factory=list)
    model_milliseconds: float = 0.0
    written: Written | None = None


def explain_items(
    transform: InputTransform, explainer: Explainer, batch: Sequence[Item]
) -> Sequence[Item]:
    """Fills in what one batch of decoded items gives: maps and likeliest categories."""
    started = time.perf_counter()
    seen = [transform.tensor(Image.fromarray(item.decoded.seen)) for item in batch]
    explanations = explainer(torch.stack(seen))
    milliseconds = 1000 * (time.perf_counter() - started) / len(batch)
    for place, item in enumerate(batch):
        probabilities = explanations[0].logits[place].softmax(dim=0)
        item.top = explainer.likeliest(probabilities)
        item.maps = [_map(explainer, found, place, probabilities) for found in explanations]
        item.model_milliseconds = milliseconds
    return batch


def _map(
    explainer: Explainer, found: Explanation, place: int, probabilities: Tensor
) -> tuple[np.ndarray, dict | None]:
    if found.categories is None:
        return found.masks[place], None
    return found.masks[place], explainer.category(found.categories[place], probabilities)


def result_of(item: Item, ready: Ready) -> dict:
    """What results.jsonl says of a picture."""
    decoded, written = item.decoded, item.written
    maps = []
    for (mask, category), files in zip(item.maps, written.files, strict=True):
        grey = np.uint8(np.round(255 * stretch(mask)))
        found = {
            "category": category,
            "overlay": files["overlay"].relative_to(ready.folder).as_posix(),
            "grid": list(mask.shape),
            "mask": base64.b64encode(grey).decode(),
        }
        if "mask" in files:
            found["mask_file"] = files["mask"].relative_to(ready.folder).as_posix()
        maps.append(found)
    return {
        "size": list(decoded.size),
        "region_seen": [round(edge, 2) for edge in decoded.region],
        "model": ready.loaded.name,
        "top": item.top,
        "method": ready.explainer.method,
        "maps": maps,
        "milliseconds": {
            "decode": round(decoded.milliseconds, 1),
            "model": round(item.model_milliseconds, 1),
            "write": round(written.milliseconds, 1),
        },
    }
