"""One of many images on its way through a run: what is known so far, its maps, its result."""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitexplain.drawing.heatmap import levels_of
from vitexplain.explainer import Explainer, ImageMaps, Map, most_faithful
from vitexplain.images.finding import ImageFile
from vitexplain.models.transform import InputTransform
from vitexplain.runs.session import Session
from vitexplain.runs.workers import Decoded, Written


@dataclass
class Item:
    """One image on its way through a run.

    Attributes:
        truth: the index of its true category, if that is known.
        failure: why it was given up.
    """

    number: int
    image: ImageFile
    truth: int | None = None
    failure: str = ""
    decoded: Decoded | None = None
    explained: ImageMaps | None = None
    model_milliseconds: float = 0.0
    written: Written | None = None


def explain_items(
    transform: InputTransform, explainer: Explainer, batch: Sequence[Item]
) -> Sequence[Item]:
    """Fill in the maps and the most likely categories of one batch of decoded items."""
    started = time.perf_counter()
    seen = np.stack([item.decoded.seen for item in batch])
    tensors = transform.tensors(seen, explainer.device)
    explained = explainer(tensors, truths=[item.truth for item in batch])
    milliseconds = 1000 * (time.perf_counter() - started) / len(batch)
    for item, each in zip(batch, explained, strict=True):
        item.explained, item.model_milliseconds = each, milliseconds
    return batch


def result_of(item: Item, session: Session) -> dict:
    """The line of results.jsonl for an image."""
    decoded, written = item.decoded, item.written
    maps = []
    best = most_faithful(item.explained.maps) if session.settings.maps.compare else set()
    for place, (found, files) in enumerate(zip(item.explained.maps, written.files, strict=True)):
        grey = levels_of(found.mask, signed=found.signed)
        about = {
            **found.about,
            "overlay": files["overlay"].relative_to(session.folder).as_posix(),
            "grid": list(found.mask.shape),
            "mask": base64.b64encode(grey).decode(),
        }
        if "mask" in files:
            about["mask_file"] = files["mask"].relative_to(session.folder).as_posix()
        if found.faithfulness is not None:
            about |= {
                "faithfulness": found.faithfulness,
                "baseline": found.baseline,
                "beats_baselines": found.beats_baselines,
                "most_faithful": place in best,
            }
        maps.append(about)
    return {
        "size": list(decoded.size),
        "region_seen": [round(edge, 2) for edge in decoded.region],
        "model": session.loaded.name,
        "top": [each.as_json() for each in item.explained.top],
        **_judged(item),
        "maps": maps,
        "milliseconds": {
            "decode": round(decoded.milliseconds, 1),
            "model": round(item.model_milliseconds, 1),
            "write": round(written.milliseconds, 1),
        },
    }


def _judged(item: Item) -> dict:
    """What is true, and whether it was predicted; nothing where it is not known."""
    truth = item.explained.truth
    if truth is None:
        return {}
    return {"truth": truth.as_json(), "correct": item.explained.top[0].index == truth.index}


def empty_notice(maps: Sequence[Map]) -> str:
    """A sentence where no map of an image shows anything; else an empty one."""
    if not maps or any(found.mask.any() for found in maps):
        return ""
    with_ratio = any("discard_ratio" in found.method for found in maps)
    remedy = ": lower --discard_ratio" if with_ratio else ""
    return f"no patch reaches what the classifier pools, the map is empty{remedy}"
