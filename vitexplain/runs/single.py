"""One image: its map, all methods' maps compared, or a sweep.

Each writes its files and reports what it did, JSON-ready. All raise RequestError or OSError for a
request that can't be met; nothing has been written then, unless writing itself failed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from vitexplain.api import OpenImage, explain_opened
from vitexplain.drawing.comparison import draw_compare
from vitexplain.drawing.sheet import draw_sheet, fit, with_scale
from vitexplain.drawing.sweep import Draw, draw_sweep, shrunk, write_gif
from vitexplain.explainer import Explainer, Map, most_faithful
from vitexplain.images.reading import open_image
from vitexplain.images.writing import short_stem, write_png
from vitexplain.methods.questions import look_at, questions_of
from vitexplain.methods.registry import METHODS
from vitexplain.models.zero_shot import seen_from
from vitexplain.progress import watch_of
from vitexplain.runs.items import empty_notice
from vitexplain.runs.session import Session, existing, model_report, open_session
from vitexplain.runs.sweep import sweep_maps
from vitexplain.settings import Settings
from vitexplain.versions import versions

SIMILAR = 280  # pixels of the cells of a similarity's sheet


def explain_image(settings: Settings) -> dict:
    """Explain one image by one method: its overlay, and what the model saw."""
    session, path, opened = open_one(settings)
    ((found,),) = explain_opened(session.explainer, session.overlay, [opened])
    base = session.folder / short_stem(path.stem)
    canvas, region = session.overlay.canvas(opened.image, opened.seen)
    files = session.overlay.write(base, canvas, region, found.result)
    files["input"] = base.with_name(f"{base.name}_input.png")
    write_png(files["input"], opened.seen, session.overlay.texts)
    other = settings.model.similar_to
    if other is not None and found.category and not Path(other).is_dir():
        name = f"{base.name}_similar_to_{Path(other).stem}"
        files["sheet"] = base.with_name(f"{short_stem(name)}.png")
        write_png(files["sheet"], _both_ways(session, opened, found.result), session.overlay.texts)
    report = report_of(session, [found.result], files)
    _, notice = session.overlay.ending(*opened.image.size)
    return {
        **report,
        "notices": [*report["notices"], *([f"{path}: {notice}"] if notice else [])],
        "top": [each.as_json() for each in found.top],
        "method": {**found.method, **found.result.target},
        "picture": {
            "path": str(path),
            "size": list(opened.image.size),
            "region_seen": [round(edge, 2) for edge in opened.region],
        },
    }


def _both_ways(session: Session, opened: OpenImage, found: Map) -> Image.Image:
    """The image and what it is similar to, each with its map of why."""
    other = open_image(session.settings.model.similar_to, stretch=session.settings.model.stretch)
    other = OpenImage.of(other, session.overlay.transform)
    turned = replace(session.loaded, model=seen_from(session.loaded.model, opened.tensor))
    (explained,) = Explainer(session.explainer.options, turned)(other.tensor[None])
    title = METHODS[found.method["name"]].title
    rows = []
    for image, each, captions in (
        (opened, found, ("input", f"{title}: {found.category.name}, {found.category.share}")),
        (other, explained.maps[0], ("compared with", "the same, seen from there")),
    ):
        small, draw = _small(session, image)
        rows.append(list(zip(captions, (small, draw(each)), strict=True)))
    height = max(fit(drawn, (SIMILAR, SIMILAR)).height for row in rows for _, drawn in row)
    sheet = draw_sheet(rows, (SIMILAR, height), lines=1)
    return with_scale(sheet, session.settings.style.colormap)


def explain_sweep(settings: Settings) -> dict:
    """The maps of one image for all values of a sweep, on a sheet.

    A sweep of one parameter is also written as an animation.
    """
    sweep = settings.run.sweep
    session, path, opened = open_one(settings)
    rows = sweep_maps(session.loaded, opened.tensor[None], settings.maps, sweep)
    small, draw = _small(session, opened)
    base = session.folder / f"{short_stem(path.stem)}_sweep_{'_'.join(sweep)}"
    files = {"sheet": base.with_name(f"{base.name}.png")}
    sheet = draw_sweep(small, rows, draw, settings.style.colormap)
    write_png(files["sheet"], sheet, session.overlay.texts)
    if len(sweep) == 1:
        files["animation"] = base.with_name(f"{base.name}.gif")
        write_gif(files["animation"], rows[0], draw, session.overlay.texts)
    maps = [each for row in rows for each in row]
    report = report_of(session, [each.found for each in maps], files)
    return {**report, "maps": [each.values for each in maps]}


def explain_compare(settings: Settings) -> dict:
    """All methods' maps of one image on a sheet, the most faithful one marked.

    What it says of them includes which map to look at for which question.
    """
    session, path, opened = open_one(settings)
    (explained,) = session.explainer(opened.tensor[None], watch_of(settings.run))
    small, draw = _small(session, opened)
    files = {"sheet": session.folder / f"{short_stem(path.stem)}_compare.png"}
    sheet = draw_compare(small, explained.maps, draw, settings.style.colormap)
    write_png(files["sheet"], sheet, session.overlay.texts)
    best = most_faithful(explained.maps)
    return {
        **report_of(session, explained.maps, files),
        "top": [each.as_json() for each in explained.top],
        "maps": [
            {
                **found.measured,
                "most_faithful": place in best,
                "answers": questions_of(found.about),
            }
            for place, found in enumerate(explained.maps)
        ],
        "look_at": look_at([found.measured for found in explained.maps]),
    }


def open_one(settings: Settings) -> tuple[Session, Path, OpenImage]:
    """Open the image first, as the model takes longer to load."""
    (path,) = settings.run.image_path
    image = open_image(existing(path), stretch=settings.model.stretch)
    session = open_session(settings)
    if image.info["notice"]:
        notice = f"{path}: {image.info['notice']}"
        session.loaded.notice = "; ".join(filter(None, (session.loaded.notice, notice)))
    return session, Path(path), OpenImage.of(image, session.overlay.transform)


def _small(session: Session, opened: OpenImage) -> tuple[Image.Image, Draw]:
    """The image as small as sheets need it, and what draws a map over it."""
    small, region = shrunk(opened.image, opened.region)
    return small, lambda found: session.overlay.draw(small, opened.seen, found, region)


def report_of(session: Session, maps: Sequence[Map], files: Mapping[str, Path]) -> dict:
    """What every report of one image says."""
    return {
        "model": model_report(session),
        "versions": versions(),
        "device": session.device,
        "notices": _notices(session, maps),
        "files": {kind: str(path) for kind, path in files.items()},
    }


def _notices(session: Session, maps: Sequence[Map]) -> list[str]:
    notices = [session.loaded.notice] if session.loaded.notice else []
    notices += session.explainer.left_out
    notices += filter(None, [empty_notice(maps)])
    return notices
