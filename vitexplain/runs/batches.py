"""Run many images through the model in batches: on a CPU several at a time, on every GPU one.

On a CPU, several batches with one thread each are faster than one batch on all threads, which wait
for each other at every step. On a GPU two threads take turns: while it computes one batch, the
other is prepared and sent.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch

from vitexplain.device import in_batches, keep_freed_memory
from vitexplain.errors import RequestError
from vitexplain.parallel import begin, in_order, starting
from vitexplain.runs.items import Item, explain_items
from vitexplain.runs.session import Session, open_session
from vitexplain.runs.workers import processors
from vitexplain.settings import Settings

GPU_THREADS = 2
Tell = Callable[[str], None]


def explained(session: Session, items: Iterable[Item], size: int, tell: Tell) -> Iterator[Item]:
    """Yield the items with their maps, in order, explained in batches of `size`."""
    if len(session.devices) > 1:
        yield from _on_several_devices(session, items, size, tell)
        return
    model = _Model(session, size)
    with _Threads(session) as pool:
        groups = _groups(items, model)
        submitted = ((group, pool.submit(model.explain, group, tell)) for group in groups)
        for _, future in in_order(submitted, ahead=pool.count):
            yield from future.result()


def _groups(items: Iterable[Item], model: "_Model | _Devices") -> Iterator[list[Item]]:
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


class _Threads(ThreadPoolExecutor):
    """As many as the session's device has use for, which share the processors."""

    def __init__(self, session: Session):
        self.count, self.before = GPU_THREADS, torch.get_num_threads()
        if session.device["name"] == "cpu":
            self.count = min(processors(), 8)
            keep_freed_memory()
        share = max(1, processors() // self.count)
        super().__init__(self.count, initializer=torch.set_num_threads, initargs=(share,))

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        torch.set_num_threads(self.before)


class _Model:
    """Explains groups, several at a time; `size` shrinks when memory runs out."""

    def __init__(self, session: Session, size: int):
        self.explain_items = partial(explain_items, session.overlay.transform, session.explainer)
        self.size = size

    def explain(self, group: list[Item], tell: Tell) -> list[Item]:
        if not group[0].failure:
            for _ in in_batches(self.explain_items, group, self.size, tell, self._shrink):
                pass
        return group

    def _shrink(self, size: int) -> None:
        self.size = min(self.size, size)


def _on_several_devices(
    session: Session, items: Iterable[Item], size: int, tell: Tell
) -> Iterator[Item]:
    """The same, by one process for each device."""
    with ExitStack() as undo:
        devices = _Devices(session, size, undo)
        submitted = ((group, devices.explain(group)) for group in _groups(items, devices))
        for group, future in in_order(submitted, ahead=2 * len(session.devices)):
            if future is not None:
                devices.take(group, future, tell)
            yield from group


class _Devices:
    """A process for each device of a session; a group goes to the one that has least to do."""

    def __init__(self, session: Session, size: int, undo: ExitStack):
        self.size = size
        self._names = [str(device) for device in session.devices]
        share = max(1, processors() // len(self._names))
        self._waiting: list[list[Future]] = [[] for _ in self._names]
        self._pools = [
            undo.enter_context(
                ProcessPoolExecutor(
                    1, begin(), _Process.start, (session.settings, name, size, share)
                )
            )
            for name in self._names
        ]

    def explain(self, group: list[Item]) -> Future | None:
        if group[0].failure:
            return None
        self._waiting = [[f for f in waiting if not f.done()] for waiting in self._waiting]
        place = min(range(len(self._pools)), key=lambda number: len(self._waiting[number]))
        with starting():
            future = self._pools[place].submit(_Process.explain, group)
        future.device = self._names[place]
        self._waiting[place].append(future)
        return future

    def take(self, group: list[Item], future: Future, tell: Tell) -> None:
        """Put what a process found into the items."""
        try:
            found, self.size, said = future.result()
        except BrokenProcessPool:
            raise RequestError(
                f"the process of {future.device} was killed, probably for want of memory: try a "
                "lower --batch_size; what is finished stays"
            ) from None
        for sentence in said:
            tell(sentence)
        for item, (explained, milliseconds) in zip(group, found, strict=True):
            item.explained, item.model_milliseconds = explained, milliseconds


class _Process:
    """The state of the process of one device."""

    here: "_Process"

    def __init__(self, session: Session, size: int):
        self.model = _Model(session, size)

    @classmethod
    def start(cls, settings: Settings, device: str, size: int, threads: int) -> None:
        torch.set_num_threads(threads)
        options = replace(settings.model, device=device, use_cuda=False)
        cls.here = cls(open_session(replace(settings, model=options)), size)

    @classmethod
    def explain(cls, group: list[Item]) -> tuple[Sequence[tuple], int, list[str]]:
        """What each item needs, the size of batches that fit, and what there is to say."""
        said: list[str] = []
        done = cls.here.model.explain(group, said.append)
        found = [(item.explained, item.model_milliseconds) for item in done]
        return found, cls.here.model.size, said
