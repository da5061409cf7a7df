"""Many images: opened, explained in batches and drawn at the same time, with bounded memory.

image -> Workers.decode -> Item -> Explainer -> Item with maps -> Workers.write -> Results: each
step is a generator that holds a few batches at most. What fails stays an Item, with its reason.
"""

import errno
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import torch
from tqdm import tqdm

from vitexplain.attention.tokens import token_layout
from vitexplain.device import in_batches, keep_freed_memory
from vitexplain.drawing.contact_sheet import layout, write_contact_sheet
from vitexplain.drawing.report.report import write_report
from vitexplain.explainer import Explainer
from vitexplain.images.finding import ImageFile, find_images
from vitexplain.images.reading import PictureError
from vitexplain.models.transform import InputTransform
from vitexplain.parallel import in_order
from vitexplain.runs.items import Item, explain_items, result_of
from vitexplain.runs.results import ERRORS, RESULTS, Results, read_results
from vitexplain.runs.session import Ready, model_report, prepare, versions
from vitexplain.runs.workers import Decoded, Workers, Written, processors
from vitexplain.settings import Settings

# errors of writing that the next image would meet too
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# settings that change no result, or that the record holds in another form
NOT_RECORDED = {"image_path", "recursive", "model", "checkpoint", "class_names", "device",
                "use_cuda", "output_dir", "report", "contact_sheet", "batch_size", "workers",
                "quiet", "sweep", "anatomy", "engine", "command"}  # fmt: skip


def explain_folder(settings: Settings, tell: Callable[[str], None]) -> dict:
    """Explain all requested images that are not explained yet, and report (JSON-ready).

    Args:
        tell: gets a sentence for each image that fails, and for what else there is to say.

    Raises:
        ValueError, OSError: a request that can't be met, or nowhere to write: what is finished
            stays, and the same request goes on from there.
        KeyboardInterrupt: with how far it came.
    """

    def tell_beside_the_bar(notice: str) -> None:
        with tqdm.external_write_mode(sys.stderr):
            tell(notice)

    started = time.monotonic()
    leave_out = Path(settings.output_dir)
    images, notices = find_images(settings.image_path, settings.recursive, leave_out)
    if settings.contact_sheet == "png":
        layout(len(images) * (settings.top_k or 1))  # too many must not be found out in the end
    ready = prepare(settings)
    for notice in notices + ([ready.loaded.notice] if ready.loaded.notice else []):
        tell(notice)
    with Results(ready.folder, _record(settings, ready), images, tell) as results:
        before = results.done
        if results.missing:
            _explain_missing(settings, ready, results, tell_beside_the_bar)
        files = _look_at_all(settings, ready, tell)
    files = {"errors": ready.folder / ERRORS, **files} if results.failed else files
    counts = (len(images), before, results.done - before, results.failed)
    return run_report(
        settings, ready, started, counts, {"results": ready.folder / RESULTS, **files}
    )


def run_report(
    settings: Settings,
    ready: Ready,
    started: float,
    counts: tuple[int, int, int, int],
    files: Mapping[str, Path],
) -> dict:
    """What a run over many images says in the end (JSON-ready).

    Args:
        started: when, by time.monotonic().
        counts: of all images, those explained before, those explained now, those that failed.
    """
    images, before, explained, failed = counts
    return {
        "pictures": images,
        "explained": explained,
        "explained_before": before,
        "failed": failed,
        "seconds": round(time.monotonic() - started, 1),
        "model": model_report(settings, ready.loaded),
        "methods": ready.explainer.methods,
        "versions": versions(),
        "device": ready.device,
        "notices": [],
        "files": {kind: str(path) for kind, path in files.items()},
    }


def _look_at_all(settings: Settings, ready: Ready, tell: Callable[[str], None]) -> dict[str, Path]:
    """The report and the contact sheet of all results so far, where they are asked for."""
    if not (settings.report or settings.contact_sheet):
        return {}
    results = sorted(read_results(ready.folder / RESULTS), key=lambda result: result["name"])
    files: dict[str, Path] = {}
    if settings.report and results:
        files["report"] = ready.folder / "report.html"
        title = f"What {ready.loaded.name} looked at"
        write_report(results, files["report"], title, settings.alpha, settings.colormap)
    if settings.contact_sheet and results:
        files["contact_sheet"] = ready.folder / f"contact_sheet.{settings.contact_sheet}"
        cells = [
            (_caption(result, found), ready.folder / found["overlay"])
            for result in results
            for found in result["maps"]
        ]
        for path in write_contact_sheet(cells, files["contact_sheet"]):
            tell(f"{path} can't be read any more: it is grey on the contact sheet")
    return files


def _caption(result: dict, found: dict) -> str:
    category = found["category"] or next(iter(result["top"]), None)
    return result["name"] + (f"\n{category['name'].split(',')[0]}" if category else "")


def _explain_missing(
    settings: Settings, ready: Ready, results: Results, tell: Callable[[str], None]
) -> None:
    progress = tqdm(
        total=len(results.images),
        initial=results.done,
        unit="picture",
        disable=True if settings.quiet else None,  # None: unless stderr is a terminal
    )
    # two a processor: half of their time they wait for the disk
    count = settings.workers or min(2 * processors(), 16)
    size = settings.batch_size or _fitting(ready)
    try:
        with progress, Workers(count, ready.output, ready.folder) as workers:
            items = _decoded(workers, results.missing, ahead=2 * size + count)
            items = _explained(ready, items, size, tell)
            for item in _written(workers, items, ahead=2 * size):
                if item.failure:
                    results.fail(item.image, item.failure)
                    tell(item.failure)
                    progress.set_postfix(failed=results.failed, refresh=False)
                else:
                    results.add(item.image, result_of(item, ready))
                progress.update()
    except KeyboardInterrupt:
        told = f"{results.done} of {len(results.images)} images are done"
        raise KeyboardInterrupt(f"{told}; the same command goes on from there") from None
    except BrokenProcessPool:
        raise ValueError("a worker process was killed, perhaps for want of memory: the same "
                         "command goes on, and fewer --workers take less") from None  # fmt: skip


def _fitting(ready: Ready) -> int:
    """How many images at once suit the device: on a CPU what the cache can bear."""
    if ready.device["name"] != "cpu":
        return 32
    tokens = token_layout(ready.loaded.model, *ready.loaded.transform.size).tokens
    return max(1, min(8, 2048 // tokens))


def _decoded(workers: Workers, images: Sequence[ImageFile], ahead: int) -> Iterator[Item]:
    """The images in their order, opened, or failed; `ahead` are being opened meanwhile."""
    items = (Item(number, image) for number, image in enumerate(images))
    submitted = ((item, workers.decode(item.number, item.image)) for item in items)
    for item, future in in_order(submitted, ahead):
        yield _opened(item, future)


def _opened(item: Item, future: Future[Decoded]) -> Item:
    try:
        item.decoded = future.result()
    except (PictureError, OSError) as error:
        item.failure = " ".join(str(error).split())
    return item


def _explained(
    ready: Ready, items: Iterable[Item], size: int, tell: Callable[[str], None]
) -> Iterator[Item]:
    """The same with their maps, in their order, `size` at once.

    On a CPU, batches run beside each other, one thread each: a model runs faster so than on all
    threads together, which wait for each other at every step.
    """
    threads = 1
    if ready.device["name"] == "cpu":
        threads = min(processors(), 8)
        keep_freed_memory()
    model = _Model(ready.explainer, ready.output.transform, threads, size, tell)
    before = torch.get_num_threads()
    share = max(1, processors() // threads)
    try:
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(share,)
        ) as pool:
            submitted = (
                (group, pool.submit(model.explain, group)) for group in _groups(items, model)
            )
            for _, future in in_order(submitted, ahead=threads):
                yield from future.result()
    finally:
        torch.set_num_threads(before)


def _groups(items: Iterable[Item], model: "_Model") -> Iterator[list[Item]]:
    """Batches; what failed goes on in a group of its own."""
    batch: list[Item] = []
    for item in items:
        if item.failure:
            yield [item]
            continue
        batch.append(item)
        if len(batch) >= model.size:
            yield batch
            batch = []
    if batch:
        yield batch


class _Model:
    """Explains groups, each in a thread; `size` shrinks where memory does not suffice."""

    def __init__(
        self,
        explainer: Explainer,
        transform: InputTransform,
        threads: int,
        size: int,
        tell: Callable[[str], None],
    ):
        self.transform, self.size, self.tell = transform, size, tell
        self.idle: SimpleQueue[Explainer] = SimpleQueue()
        self.idle.put(explainer)
        for _ in range(threads - 1):
            self.idle.put(explainer.beside())

    def explain(self, group: list[Item]) -> list[Item]:
        if group[0].failure:
            return group
        explainer = self.idle.get()
        run = partial(explain_items, self.transform, explainer)
        try:
            for done in in_batches(run, group, self.size, self.tell):
                if len(done) < min(self.size, len(group)):
                    self.size = len(done)
        finally:
            self.idle.put(explainer)
        return group


def _written(workers: Workers, items: Iterable[Item], ahead: int) -> Iterator[Item]:
    """The same when their files are written; `ahead` are being written meanwhile."""
    submitted = (
        (
            item,
            None if item.failure else workers.write(item.number, item.image, item.explained.maps),
        )
        for item in items
    )
    # what is on disk is put on record at once: a killed run does it again otherwise
    for item, future in in_order(submitted, ahead, prompt=True):
        yield item if future is None else _finished(item, future)


def _finished(item: Item, future: Future[Written]) -> Item:
    try:
        item.written = future.result()
    except (PictureError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FATAL:
            raise
        item.failure = f"{item.image.path}: {' '.join(str(error).split())}"
    return item


def _record(settings: Settings, ready: Ready) -> dict:
    """Whatever changes results."""
    kept = {name: value for name, value in asdict(settings).items() if name not in NOT_RECORDED}
    loaded = ready.loaded
    digest = hashlib.sha256(json.dumps(loaded.categories).encode())
    for value in loaded.model.state_dict().values():
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "model": loaded.name,
        "weights_and_names": digest.hexdigest(),
        **kept,
        "methods": ready.explainer.methods,
        "versions": versions(),
    }
