"""Run many images through the model on several devices, with a process for each of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace

import torch

from vitexplain.errors import RequestError
from vitexplain.parallel import begin, in_order, processors, starting
from vitexplain.runs.batches import Model, in_groups
from vitexplain.runs.items import Item
from vitexplain.runs.session import Session, open_session
from vitexplain.settings import Settings


def on_several_devices(
    session: Session, items: Iterable[Item], size: int, tell: Callable[[str], None]
) -> Iterator[Item]:
    """As batches.explained, by one process for each of the session's devices."""
    with ExitStack() as undo:
        devices = _Devices(session, size, undo)
        submitted = ((group, devices.explain(group)) for group in in_groups(items, devices))
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

    def take(self, group: list[Item], future: Future, tell: Callable[[str], None]) -> None:
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
        self.model = Model(session, size)

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
