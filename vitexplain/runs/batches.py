"""Run many images through the model in batches, on a CPU several at a time."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from vitexplain.device import in_batches, keep_freed_memory
from vitexplain.explainer import Explainer
from vitexplain.models.transform import InputTransform
from vitexplain.parallel import in_order
from vitexplain.runs.items import Item, explain_items
from vitexplain.runs.session import Session
from vitexplain.runs.workers import processors


def explained(
    session: Session, items: Iterable[Item], size: int, tell: Callable[[str], None]
) -> Iterator[Item]:
    """Yield the items with their maps, in order, explained in batches of `size`.

    On a CPU, several batches run at a time, one thread each: that is faster than one batch on all
    threads, which wait for each other at every step.
    """
    threads = 1
    if session.device["name"] == "cpu":
        threads = min(processors(), 8)
        keep_freed_memory()
    model = _Models(session.explainer, session.overlay.transform, size, tell)
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


def _groups(items: Iterable[Item], model: "_Models") -> Iterator[list[Item]]:
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


class _Models:
    """Explains groups, several at a time; `size` shrinks when memory runs out."""

    def __init__(
        self,
        explainer: Explainer,
        transform: InputTransform,
        size: int,
        tell: Callable[[str], None],
    ):
        self.explainer, self.transform, self.size, self.tell = explainer, transform, size, tell

    def explain(self, group: list[Item]) -> list[Item]:
        if group[0].failure:
            return group
        run = partial(explain_items, self.transform, self.explainer)
        for done in in_batches(run, group, self.size, self.tell):
            if len(done) < min(self.size, len(group)):
                self.size = len(done)
        return group
