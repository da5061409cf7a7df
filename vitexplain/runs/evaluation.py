"""How faithful each method is on the user's own images: a table and a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vitexplain.drawing.charts import draw_measures
from vitexplain.errors import RequestError
from vitexplain.explainer import options_of
from vitexplain.faithfulness.baselines import BASELINES
from vitexplain.faithfulness.measures import ALL, MEASURES, Evaluation, evaluate_images
from vitexplain.faithfulness.passes import contrasts_of
from vitexplain.faithfulness.segmentation import SEGMENTED
from vitexplain.faithfulness.table import (
    Measure,
    Values,
    as_json,
    as_markdown,
    as_text,
    caption,
)
from vitexplain.images.finding import ImageFile, find_images
from vitexplain.images.reading import PictureError, open_image
from vitexplain.images.writing import write_png, write_whole
from vitexplain.methods.registry import METHODS, Method
from vitexplain.progress import watch_of
from vitexplain.runs.masks import Masked, measure_masks, totals_as_markdown
from vitexplain.runs.session import Session, existing, model_report, open_session
from vitexplain.settings import Settings
from vitexplain.training.localisation import spread
from vitexplain.training.masks import MaskedImages
from vitexplain.versions import versions
from vitexplain.words import to_json

Item = TypeVar("Item")
MOST = 200  # images that are measured, at some seconds each
COLUMNS = (*MEASURES, *SEGMENTED)


@dataclass(frozen=True)
class _Measured:
    """What was measured.

    Attributes:
        found: without masks, on the images of these paths; as many more as `failed` can't be read.
        masked: on the images with masks.
    """

    found: Evaluation
    paths: list[str]
    failed: int
    masked: Masked

    @property
    def values(self) -> Values:
        """All measures of each method."""
        found, masked = self.found.values, self.masked.values
        return {name: found.get(name, {}) | masked.get(name, {}) for name in (*found, *masked)}

    @property
    def tables(self) -> list[tuple[Values, Sequence[Measure], Mapping[str, str]]]:
        """Values, columns and titles of each table: one of all columns would be too wide."""
        both = (self.found.values, MEASURES), (self.masked.values, SEGMENTED)
        return [(values, columns, _titles(values)) for values, columns in both if values]


def evaluate(settings: Settings, tell: Callable[[str], None]) -> dict:
    """Measure the methods on all images, write a table, and report (JSON-ready).

    On images with masks, how well maps find the objects is measured.

    Args:
        tell: receives a sentence for each image that fails, and any other notice.

    Raises:
        RequestError, OSError: a request that can't be met.
    """
    run, maps = settings.run, settings.maps
    images = _images(settings, tell) if run.image_path else []
    data = None if run.masks is None else MaskedImages(run.masks)
    # masks alone ask for no probabilities: a model without categories will do
    compare = bool(images or not maps.method)
    session = open_session(replace(settings, maps=replace(maps, compare=compare)))
    if session.loaded.notice:
        tell(session.loaded.notice)
    methods = {
        name: replace(METHODS[name], defaults=options_of(METHODS[name], maps))
        for name in maps.method or tuple(METHODS)
    }
    masked = Masked({}, {}, [], 0, {})
    if data is not None:
        chosen = _thinned(data.names, "images with masks", tell)
        masked = measure_masks(session, methods, data, chosen, tell)
    found, paths, failed = Evaluation({}, {}), [], 0
    if images:
        found, paths, failed = _on_images(settings, session, methods, images, tell)
    for name, reason in (masked.left_out | found.left_out).items():
        tell(f"without {ALL[name].title}: {reason}")
    measured = _Measured(found, paths, failed, masked)
    report = _report(settings, session, measured)
    return report | {"files": _write(session, measured, report)}


def _report(settings: Settings, session: Session, measured: _Measured) -> dict:
    masked, index = measured.masked, _category(settings, session)
    return {
        "pictures": len(measured.paths),
        "images": measured.paths,
        "masks": {
            "data": settings.run.masks,
            "images": masked.names,
            "totals": masked.totals,
        },
        "failed": measured.failed + masked.failed,
        "category": None if index is None else session.loaded.categories[index],
        "against": list(map(str, settings.maps.against)),
        "model": model_report(session),
        "methods": as_json(measured.values, COLUMNS, BASELINES),
        "table": "\n\n".join(as_text(*table, BASELINES) for table in measured.tables),
        "versions": versions(),
        "device": session.device,
        "notices": [],
    }


def _write(session: Session, measured: _Measured, report: dict) -> dict[str, str]:
    """Table, numbers and figure; returns their paths."""
    values = measured.values
    files = {
        kind: session.folder / f"evaluation.{suffix}"
        for kind, suffix in (("table", "md"), ("numbers", "json"), ("figure", "png"))
    }
    figure = draw_measures(values, COLUMNS, _titles(values), BASELINES)
    write_png(files["figure"], figure, session.overlay.texts)
    paragraphs = [caption(values, COLUMNS, BASELINES)]
    paragraphs += [as_markdown(*table, BASELINES) for table in measured.tables]
    if measured.masked.totals:
        paragraphs.append(totals_as_markdown(measured.masked))
    markdown = "\n\n".join(paragraphs) + "\n"
    write_whole(files["table"], lambda file: file.write(markdown.encode()))
    write_whole(files["numbers"], lambda file: file.write(to_json(report, indent=2).encode()))
    return {kind: str(path) for kind, path in files.items()}


def _category(settings: Settings, session: Session) -> int | None:
    """The category that was asked for; None for the most likely one."""
    category = settings.maps.category
    return None if category in (None, "top") else session.loaded.category_index(category)


def _on_images(
    settings: Settings,
    session: Session,
    methods: Mapping[str, Method],
    images: Sequence[ImageFile],
    tell: Callable[[str], None],
) -> tuple[Evaluation, list[str], int]:
    """The measures that need no masks; the images' paths, and how many failed."""
    loaded = session.loaded
    tensors, paths, failures = _tensors(session, images)
    if not tensors:
        raise RequestError(f"no image can be read: {failures[0]}")
    for reason in failures:
        tell(reason)
    index = _category(settings, session)
    categories = None if index is None else [index] * len(tensors)
    inputs = torch.stack(tensors)
    if session.explainer.rivals is not None:
        categories = contrasts_of(loaded.model, inputs, categories, session.explainer.rivals)
    found = evaluate_images(
        loaded.model,
        inputs,
        loaded.transform.std,
        methods | BASELINES,
        categories,
        labels=loaded.labels,
        watch=watch_of(settings.run),
    )
    return found, paths, len(failures)


def _images(settings: Settings, tell: Callable[[str], None]) -> Sequence[ImageFile]:
    """The requested images, evenly thinned out if there are too many."""
    leave_out = Path(settings.run.output_dir)
    requests = [str(existing(path)) for path in settings.run.image_path]
    images, notices = find_images(requests, settings.run.recursive, leave_out)
    for notice in notices:
        tell(notice)
    return _thinned(images, "images", tell)


def _thinned(items: Sequence[Item], title: str, tell: Callable[[str], None]) -> Sequence[Item]:
    """At most MOST of them."""
    if len(items) > MOST:
        tell(f"measuring on {MOST} of {len(items)} {title}")
    return spread(items, MOST)


def _tensors(
    session: Session, images: Sequence[ImageFile]
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


def _titles(values: Values) -> dict[str, str]:
    return {name: ALL[name].title for name in values}
