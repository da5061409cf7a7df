"""How faithful each method is on the user's own images: a table and a figure."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vitexplain.drawing.charts import draw_measures
from vitexplain.errors import RequestError
from vitexplain.explainer import options_of
from vitexplain.faithfulness.baselines import BASELINES
from vitexplain.faithfulness.measures import ALL, MEASURES, Evaluation, evaluate_images
from vitexplain.faithfulness.passes import contrasts_of
from vitexplain.faithfulness.table import as_json, as_markdown, as_text, caption
from vitexplain.images.finding import ImageFile, find_images
from vitexplain.images.reading import PictureError, open_image
from vitexplain.images.writing import write_png, write_whole
from vitexplain.methods.registry import METHODS
from vitexplain.progress import watch_of
from vitexplain.runs.session import Session, existing, model_report, open_session
from vitexplain.settings import Settings
from vitexplain.versions import versions
from vitexplain.words import to_json

MOST = 200  # images that are measured, at some seconds each


def evaluate(settings: Settings, tell: Callable[[str], None]) -> dict:
    """Measure the methods on all images, write a table, and report (JSON-ready).

    Args:
        tell: receives a sentence for each image that fails, and any other notice.

    Raises:
        RequestError, OSError: a request that can't be met.
    """
    images = _images(settings, tell)
    session = open_session(replace(settings, maps=replace(settings.maps, compare=True)))
    if session.loaded.notice:
        tell(session.loaded.notice)
    tensors, paths, failures = _tensors(session, images)
    if not tensors:
        raise RequestError(f"no image can be read: {failures[0]}")
    for reason in failures:
        tell(reason)
    names = settings.maps.method or tuple(METHODS)
    methods = {
        name: replace(METHODS[name], defaults=options_of(METHODS[name], settings.maps))
        for name in names
    }
    category = settings.maps.category
    index = None if category in (None, "top") else session.loaded.category_index(category)
    categories = None if index is None else [index] * len(tensors)
    inputs = torch.stack(tensors)
    if session.explainer.rivals is not None:
        rivals = session.explainer.rivals
        categories = contrasts_of(session.loaded.model, inputs, categories, rivals)
    found = evaluate_images(
        session.loaded.model,
        inputs,
        session.loaded.transform.std,
        methods | BASELINES,
        categories,
        labels=session.loaded.labels,
        watch=watch_of(settings.run),
    )
    for name, reason in found.left_out.items():
        tell(f"without {ALL[name].title}: {reason}")
    report = {
        "pictures": len(tensors),
        "images": paths,
        "failed": len(failures),
        "category": None if index is None else session.loaded.categories[index],
        "against": list(map(str, settings.maps.against)),
        "model": model_report(session),
        "methods": as_json(found.values, MEASURES, BASELINES),
        "table": as_text(found.values, MEASURES, _titles(found), BASELINES),
        "versions": versions(),
        "device": session.device,
        "notices": [],
    }
    files = {
        kind: session.folder / f"evaluation.{suffix}"
        for kind, suffix in (("table", "md"), ("numbers", "json"), ("figure", "png"))
    }
    figure = draw_measures(found.values, MEASURES, _titles(found), BASELINES)
    write_png(files["figure"], figure, session.overlay.texts)
    markdown = (
        f"{caption(found.values, MEASURES, BASELINES)}\n\n"
        f"{as_markdown(found.values, MEASURES, _titles(found), BASELINES)}\n"
    )
    write_whole(files["table"], lambda file: file.write(markdown.encode()))
    write_whole(files["numbers"], lambda file: file.write(to_json(report, indent=2).encode()))
    return report | {"files": {kind: str(path) for kind, path in files.items()}}


def _images(settings: Settings, tell: Callable[[str], None]) -> list[ImageFile]:
    """The requested images, evenly thinned out if there are too many."""
    leave_out = Path(settings.run.output_dir)
    requests = [str(existing(path)) for path in settings.run.image_path]
    images, notices = find_images(requests, settings.run.recursive, leave_out)
    for notice in notices:
        tell(notice)
    if len(images) <= MOST:
        return images
    tell(f"measuring on {MOST} of {len(images)} images")
    return [images[number * len(images) // MOST] for number in range(MOST)]


def _tensors(
    session: Session, images: list[ImageFile]
) -> tuple[list[Tensor], list[str], list[str]]:
    """(3, H, W) and path of each readable image, and the reasons for the others."""
    tensors, paths, failures = [], [], []
    for image in images:
        try:
            tensors.append(
                session.overlay.transform(
                    open_image(image.path, stretch=session.settings.model.stretch)
                )
            )
            paths.append(str(image.path))
        except (PictureError, OSError) as error:
            failures.append(str(error))
    return tensors, paths, failures


def _titles(found: Evaluation) -> dict[str, str]:
    return {name: ALL[name].title for name in found.values}
