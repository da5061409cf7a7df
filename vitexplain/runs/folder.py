"""Many images: opening, explaining and drawing overlap, and memory is bounded.

image -> Workers.decode -> Item -> Explainer -> Item with maps -> Workers.write -> Results: each
step is a generator that holds at most a few batches. What fails stays an Item, with the reason.
"""

import errno
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from vitexplain.drawing.contact_sheet import write_contact_sheet
from vitexplain.drawing.report.report import write_report
from vitexplain.errors import one_line
from vitexplain.images.finding import find_images
from vitexplain.images.reading import PictureError
from vitexplain.methods.registry import METHODS
from vitexplain.parallel import in_order, processors
from vitexplain.progress import Bar
from vitexplain.runs.batches import ahead, batch_size, explained
from vitexplain.runs.devices import on_several_devices
from vitexplain.runs.items import Item, empty_notice, result_of
from vitexplain.runs.results import ERRORS, RESULTS, Results, read_results
from vitexplain.runs.session import Session, model_report, open_session
from vitexplain.runs.truth import accuracy, digest_of, true_categories
from vitexplain.runs.workers import Decoded, SameThread, Workers, Written
from vitexplain.settings import Settings
from vitexplain.versions import versions
from vitexplain.words import short_name

# errors of writing that the next image would meet too
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def explain_folder(settings: Settings, tell: Callable[[str], None]) -> dict:
    """Explain all requested images that are not explained yet, and report (JSON-ready).

    Args:
        tell: receives a sentence for each image that fails, and any other notice.

    Raises:
        RequestError, OSError: a request that can't be met, or nowhere to write: what is finished
            stays, and the same request resumes from there.
        KeyboardInterrupt: its message says how many images are done.
    """

    def tell_beside_the_bar(notice: str) -> None:
        with tqdm.external_write_mode(sys.stderr):
            tell(notice)

    started = time.monotonic()
    run = settings.run
    images, notices = find_images(run.image_path, run.recursive, Path(run.output_dir))
    session = open_session(settings, several_devices=True)
    for notice in notices + ([session.loaded.notice] if session.loaded.notice else []):
        tell(notice)
    truths = true_categories(run.truth, images, session.loaded, tell) if run.truth else {}
    with Results(session.folder, record_of(session), images, tell) as results:
        before = results.done
        if results.missing:
            _explain_missing(session, results, truths, tell_beside_the_bar)
        results.check_folder()
        files = _look_at_all(session, results.failures, tell)
    files = {"errors": session.folder / ERRORS, **files} if results.failed else files
    counts = (len(images), before, results.done - before, results.failed)
    files = {"results": session.folder / RESULTS, **files}
    report = run_report(about_run(session), started, counts, files)
    judged = accuracy(read_results(session.folder / RESULTS)) if truths else None
    return report if judged is None else {**report, "accuracy": judged}


def about_run(session: Session) -> dict:
    """What a report says of a run, whatever comes of its images (JSON-ready)."""
    return {
        "model": model_report(session),
        "methods": session.explainer.methods,
        "versions": versions(),
        "device": session.device,
    }


def run_report(
    about: dict,
    started: float,
    counts: tuple[int, int, int, int],
    files: Mapping[str, Path],
) -> dict:
    """The report of a run over many images (JSON-ready).

    Args:
        about: of about_run.
        started: start time, by time.monotonic().
        counts: of all images, those explained before, those explained now, those that failed.
    """
    images, before, explained, failed = counts
    return {
        "pictures": images,
        "explained": explained,
        "explained_before": before,
        "failed": failed,
        "seconds": round(time.monotonic() - started, 1),
        **about,
        "notices": [],
        "files": {kind: str(path) for kind, path in files.items()},
    }


def _look_at_all(
    session: Session, failures: Sequence[tuple[str, str]], tell: Callable[[str], None]
) -> dict[str, Path]:
    """The report and the contact sheet of all results so far, if requested."""
    run, style = session.settings.run, session.settings.style
    if not (run.report or run.contact_sheet):
        return {}
    results = sorted(read_results(session.folder / RESULTS), key=lambda result: result["name"])
    files: dict[str, Path] = {}
    if run.report and results:
        files["report"] = session.folder / "report.html"
        title = f"What the model {session.loaded.name} looked at"
        judged = accuracy(results) if run.truth else None
        write_report(results, files["report"], title, style.alpha, style.colormap, failures, judged)
    if run.contact_sheet and results:
        path = session.folder / f"contact_sheet.{run.contact_sheet}"
        cells = [
            (_caption(result, found), session.folder / found["overlay"])
            for result in results
            for found in result["maps"]
        ]
        sheets, unread = write_contact_sheet(cells, path)
        files |= {path.stem: path for path in sheets}
        for path in unread:
            tell(f"{path} can't be read any more: it is grey on the contact sheet")
    return files


def _caption(result: dict, found: dict) -> str:
    """Of an image with several maps, the method too."""
    category = found["category"] or next(iter(result["top"]), None)
    about = [] if category is None else [short_name(category["name"])]
    if len({each["method"]["name"] for each in result["maps"]}) > 1:
        about.insert(0, METHODS[found["method"]["name"]].title)
        about = about if found["category"] else about[:1]
    return "\n".join([result["name"], *([", ".join(about)] if about else [])])


def _explain_missing(
    session: Session, results: Results, truths: Mapping[str, int], tell: Callable[[str], None]
) -> None:
    run = session.settings.run
    progress = Bar(
        total=len(results.images),
        initial=results.done,
        unit="image",
        disable=True if run.quiet else None,  # None: unless stderr is a terminal
    )
    # two per processor: they wait for the disk half of the time
    count = run.workers or min(2 * processors(), 16)
    size = batch_size(session, results.missing, count)
    opened_ahead, written_ahead = ahead(size, count)
    notices: list[tuple[str, str]] = []
    try:
        with progress, Workers(count, session.overlay, session.folder) as workers:
            items = [
                Item(number, image, truths.get(image.name))
                for number, image in enumerate(results.missing)
            ]
            items = decoded(workers, items, opened_ahead)
            explain = explained if len(session.devices) == 1 else on_several_devices
            items = explain(session, items, size, tell)
            for item in written(workers, items, written_ahead):
                if item.failure:
                    results.fail(item.image, item.failure)
                    tell(item.failure)
                    progress.set_postfix(failed=results.failed, refresh=False)
                else:
                    results.add(item.image, result_of(item, session), item.decoded.state)
                    about = item.decoded.notice, empty_notice(item.explained.maps)
                    notices += [(item.image.path, notice) for notice in about if notice]
                progress.update()
    except KeyboardInterrupt:
        told = f"{results.done} of {len(results.images)} images are done"
        raise KeyboardInterrupt(f"{told}; rerun the same command to resume") from None
    finally:
        tell_together(notices, tell)


def tell_together(notices: Sequence[tuple[str, str]], tell: Callable[[str], None]) -> None:
    """Notices on single images, those of one kind in one line with the first image's."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for path, notice in notices:
        kinds.setdefault(re.sub(r"\d+", "", notice), []).append((path, notice))
    for alike in kinds.values():
        path, notice = alike[0]
        tell(
            f"{path}: {notice}" if len(alike) == 1 else f"{len(alike)} images, as {path}: {notice}"
        )


def decoded(workers: Workers | SameThread, items: Sequence[Item], ahead: int) -> Iterator[Item]:
    """Yield the items in order, opened or failed, while up to `ahead` are being opened.

    Those of very many pixels come last, as they are opened one at a time: all others are done
    before the first of them.
    """
    submitted = ((item, workers.decode(item.number, item.image)) for item in items)
    large = []
    for item, future in in_order(submitted, ahead):
        if _opened(item, future).decoded is None and not item.failure:
            large.append(item)
        else:
            yield item
    submitted = ((item, workers.decode(item.number, item.image, large=True)) for item in large)
    for item, future in in_order(submitted, 1):
        yield _opened(item, future)


def _opened(item: Item, future: Future[Decoded | None]) -> Item:
    try:
        item.decoded = future.result()
    except (PictureError, OSError) as error:
        item.failure = one_line(error)
    return item


def written(workers: Workers | SameThread, items: Iterable[Item], ahead: int) -> Iterator[Item]:
    """Yield the items once their files are written, while up to `ahead` are being written."""
    submitted = (
        (
            item,
            None if item.failure else workers.write(item.number, item.image, item.explained.maps),
        )
        for item in items
    )
    # record at once what is on disk, or a killed run would do it again
    for item, future in in_order(submitted, ahead, prompt=True):
        yield item if future is None else _finished(item, future)


def _finished(item: Item, future: Future[Written]) -> Item:
    try:
        item.written = future.result()
    except (PictureError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FATAL:
            raise
        item.failure = f"{item.image.path}: {one_line(error)}"
    return item


def record_of(session: Session) -> dict:
    """Everything that changes results (JSON-ready)."""
    loaded, settings = session.loaded, session.settings
    digest = hashlib.sha256(json.dumps(loaded.categories).encode())
    for value in loaded.model.state_dict().values():
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "model": loaded.name,
        "weights_and_names": digest.hexdigest(),
        "crop": settings.model.crop,
        "img_size": settings.model.img_size,
        "labels": loaded.labels,
        "stretch": settings.model.stretch,
        # not the device: all of one precision give the same maps, but for rounding
        **(
            {}
            if session.device["precision"] == "fp32"
            else {"precision": session.device["precision"]}
        ),
        **({"truth": digest_of(settings.run.truth)} if settings.run.truth else {}),
        **asdict(settings.maps),
        **asdict(settings.style),
        "methods": session.explainer.methods,
        "versions": versions(),
    }
