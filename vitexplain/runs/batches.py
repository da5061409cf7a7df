"""Run many images through the model in batches: on a CPU several at a time.

Several batches with one thread each are faster there than one batch on all threads, which wait for
each other at every step. On a GPU two threads take turns: while it computes one batch, the other is
prepared and sent.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import torch

from vitexplain.device import in_batches, keep_freed_memory
from vitexplain.images.finding import ImageFile
from vitexplain.images.reading import size_of
from vitexplain.parallel import in_order, processors
from vitexplain.runs.items import Item, explain_items
from vitexplain.runs.session import Session
from vitexplain.runs.workers import kept_pixels

GPU_THREADS = 2
SAMPLE = 16  # images whose size is looked at to choose the size of batches
Tell = Callable[[str], None]


class Sized(Protocol):
    """What explains groups of `size` images."""

    size: int


def batch_size(session: Session, images: Sequence[ImageFile], workers: int) -> int:
    """How many images to explain at a time: of large photographs fewer.

    All that are between opening and drawing must fit into what workers keep open, see
    runs.workers: else most of them are opened twice.
    """
    asked, most = (
        session.settings.run.batch_size,
        session.explainer.batch_size(session.devices[0]),
    )
    if asked or not images:
        return asked or most
    sample = images[:: -(-len(images) // SAMPLE)]
    drawn = (session.overlay.size_of(*size_of(image.path)) for image in sample)
    mean = sum(width * height for width, height in drawn) / len(sample)
    room = workers * kept_pixels(workers) / max(mean, 1)
    batches = sum(ahead(1, 0)) + _threads(session) + 1  # those of each step
    return min(most, max(1, int((room - workers) / batches)))


def ahead(size: int, workers: int) -> tuple[int, int]:
    """How many images are opened, and how many are written, ahead of those that are awaited."""
    return 2 * size + workers, 2 * size


def explained(session: Session, items: Iterable[Item], size: int, tell: Tell) -> Iterator[Item]:
    """Yield the items with their maps, in order, explained in batches of `size`."""
    yield from explained_by(Model(session, size), session, items, tell)


def explained_by(
    model: "Model", session: Session, items: Iterable[Item], tell: Tell
) -> Iterator[Item]:
    """The same, by a model that remembers for which batches memory is enough."""
    threads = _threads(session)
    if session.device["name"] == "cpu":
        keep_freed_memory()
    before = torch.get_num_threads()
    share = max(1, processors() // threads)
    try:
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(share,)
        ) as pool:
            groups = in_groups(items, model)
            submitted = ((group, pool.submit(model.explain, group, tell)) for group in groups)
            for _, future in in_order(submitted, ahead=threads):
                yield from future.result()
    finally:
        torch.set_num_threads(before)


def _threads(session: Session) -> int:
    return min(processors(), 8) if session.devices[0].type == "cpu" else GPU_THREADS


def in_groups(items: Iterable[Item], model: Sized) -> Iterator[list[Item]]:
    """Batches; an item that failed is passed on in a group of its own."""
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


class Model:
    """Explains groups, several at a time; `size` shrinks when memory runs out."""

    def __init__(self, session: Session, size: int):
        self.session, self.size = session, size

    def explain(self, group: list[Item], tell: Tell) -> list[Item]:
        if not group[0].failure:
            run = partial(explain_items, self.session.overlay.transform, self.session.explainer)
            for _ in in_batches(run, group, self.size, tell, self._shrink):
                pass
        return group

    def _shrink(self, size: int) -> None:
        self.size = min(self.size, size)
