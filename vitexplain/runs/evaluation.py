"""How faithful each method's maps are on the user's own pictures, in a table and a figure."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vitexplain.drawing.charts import draw_measures
from vitexplain.explainer import options_of
from vitexplain.faithfulness.baselines import FLOORS
from vitexplain.faithfulness.measures import ALL, MEASURES, Evaluation, evaluate_pictures
from vitexplain.faithfulness.table import as_json, as_markdown, as_text
from vitexplain.images.finding import Picture, find_pictures
from vitexplain.images.reading import PictureError, open_picture
from vitexplain.images.writing import write_png, write_whole
from vitexplain.methods.registry import METHODS
from vitexplain.runs.session import Ready, existing, model_report, prepare, versions
from vitexplain.settings import Settings

MOST = 200  # pictures that are measured, at some seconds each


def evaluate(settings: Settings, tell: Callable[[str], None]) -> dict:
    """Measure the methods on all pictures, write a table, and report (JSON-ready).

    Args:
        tell: gets a sentence for each picture that fails, and for what else there is to say.

    Raises:
        ValueError, OSError: a request that can't be met.
    """
    pictures = _pictures(settings, tell)
    ready = prepare(dataclasses.replace(settings, compare=True))
    if ready.loaded.notice:
        tell(ready.loaded.notice)
    tensors, failures = _tensors(ready, pictures)
    if not tensors:
        raise ValueError(f"no picture can be read: {failures[0]}")
    for reason in failures:
        tell(reason)
    names = settings.method or tuple(METHODS)
    methods = {
        name: dataclasses.replace(METHODS[name], defaults=options_of(METHODS[name], settings))
        for name in names
    }
    category = settings.category
    index = None if category in (None, "top") else ready.loaded.category_index(category)
    categories = None if index is None else [index] * len(tensors)
    found = evaluate_pictures(
        ready.loaded.model,
        torch.stack(tensors),
        ready.loaded.transform.std,
        methods | FLOORS,
        categories,
    )
    for name, reason in found.left_out.items():
        tell(f"without {ALL[name].title}: {reason}")
    report = {
        "pictures": len(tensors),
        "failed": len(failures),
        "category": None if index is None else ready.loaded.categories[index],
        "model": model_report(settings, ready.loaded),
        "methods": as_json(found.values, MEASURES),
        "table": as_text(found.values, MEASURES, _titles(found), FLOORS),
        "versions": versions(),
        "device": ready.device,
        "notices": [],
    }
    files = {
        kind: ready.folder / f"evaluation.{suffix}"
        for kind, suffix in (("table", "md"), ("numbers", "json"), ("figure", "png"))
    }
    figure = draw_measures(found.values, MEASURES, _titles(found), FLOORS)
    write_png(files["figure"], figure, ready.output.texts)
    markdown = as_markdown(found.values, MEASURES, _titles(found), FLOORS) + "\n"
    write_whole(files["table"], lambda file: file.write(markdown.encode()))
    write_whole(files["numbers"], lambda file: file.write(json.dumps(report, indent=2).encode()))
    return report | {"files": {kind: str(path) for kind, path in files.items()}}


def _pictures(settings: Settings, tell: Callable[[str], None]) -> list[Picture]:
    """The requested ones, evenly thinned out if there are too many."""
    leave_out = Path(settings.output_dir)
    requests = [str(existing(path)) for path in settings.image_path]
    pictures, notices = find_pictures(requests, settings.recursive, leave_out)
    for notice in notices:
        tell(notice)
    if len(pictures) <= MOST:
        return pictures
    tell(f"measuring on {MOST} of {len(pictures)} pictures")
    return [pictures[number * len(pictures) // MOST] for number in range(MOST)]


def _tensors(ready: Ready, pictures: list[Picture]) -> tuple[list[Tensor], list[str]]:
    """(3, H, W) of each picture that can be read, and why the others can't."""
    tensors, failures = [], []
    for picture in pictures:
        try:
            tensors.append(ready.output.transform(open_picture(picture.path)))
        except (PictureError, OSError) as error:
            failures.append(str(error))
    return tensors, failures


def _titles(found: Evaluation) -> dict[str, str]:
    return {name: ALL[name].title for name in found.values}
