"""What one of several actors does: it holds a model, and explains shares of a run's images.

Knows nothing of what starts the actors. All paths mean the same in each of them.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch

from vitexplain.errors import RequestError, is_out_of_memory
from vitexplain.images.finding import ImageFile
from vitexplain.runs.batches import Model, explained_by, in_groups
from vitexplain.runs.folder import decoded, written
from vitexplain.runs.items import Item, empty_notice, result_of
from vitexplain.runs.parquet import PARQUET, write_part
from vitexplain.runs.results import line_of
from vitexplain.runs.session import open_session
from vitexplain.runs.workers import SameThread, Workers
from vitexplain.settings import Settings


@dataclass
class Reply:
    """What became of one share of the images.

    Attributes:
        explained: how many are finished.
        failures: why others failed.
        told: what a user should know.
        notices: (path, notice) on single images.
        device: the actor's, see Session.
        stop: an error that all other shares would meet too.
    """

    explained: int = 0
    failures: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    notices: list[tuple[str, str]] = field(default_factory=list)
    device: dict | None = None
    stop: Exception | None = None


def on_device(settings: Settings, name: str) -> Settings:
    """The same settings, for a device of that name."""
    return replace(settings, model=replace(settings.model, device=name, use_cuda=False))


class Actor:
    """Explains shares of images; writes their overlays and rows.

    Args:
        settings: of the run; its paths are relative to `here`.
        record: the settings that are written with the rows, see parquet.Parts.
        here: the current folder of the process that asks.
        gpu: whether this actor was given a GPU, which it sees as the first and only one.
        processors: how many it may use. With one, images are opened and drawn in this thread, in
            turn with the model; with more, in processes beside it.
    """

    def __init__(
        self, settings: Settings, record: str, here: str, *, gpu: bool = False, processors: int = 1
    ):
        self.record, self.reply, self.count = record, Reply(), 0
        self.stop: Exception | None = None
        try:
            self._open(settings, here, gpu, processors)
        except Exception as error:
            self.stop = _user_error(error)

    def _open(self, settings: Settings, here: str, gpu: bool, processors: int) -> None:
        with suppress(OSError):  # paths may all be absolute
            os.chdir(here)
        torch.set_num_threads(1)
        wanted = settings.model.device
        if gpu:
            wanted = "cuda"
        elif wanted != "mps":
            # an actor without a GPU may see one all the same
            auto = wanted == "auto" and torch.backends.mps.is_available()
            wanted = "mps" if auto else "cpu"
        self.session = session = open_session(on_device(settings, wanted))
        size = settings.run.batch_size or session.explainer.batch_size()
        self.model = Model(session, size)
        self.workers: SameThread | Workers = (
            SameThread(session.overlay, session.folder)
            if processors < 2
            else Workers(processors - 1, session.overlay, session.folder)
        )

    def explain(self, images: Sequence[ImageFile]) -> Reply:
        """Explain some images, and write their files, then their rows."""
        self.reply = reply = Reply(stop=self.stop)
        if self.stop is None:
            try:
                self._explain(images)
            except Exception as error:
                reply.stop = _user_error(error)
        return reply

    def _explain(self, images: Sequence[ImageFile]) -> None:
        items = [Item(self.count + place, image) for place, image in enumerate(images)]
        self.count += len(items)
        lines: dict[int, dict] = {}
        for item in self._finished(items):
            if item.failure:
                self.reply.failures.append(item.failure)
                continue
            result = result_of(item, self.session)
            state = item.decoded.state
            lines[item.number] = line_of(self.session.folder, item.image, result, state)
            about = item.decoded.notice, empty_notice(item.explained.maps)
            self.reply.notices += [(item.image.path, notice) for notice in about if notice]
        place = self.session.folder / PARQUET
        write_part(place, self.record, items, [lines.get(item.number, {}) for item in items])
        self.reply.explained, self.reply.device = len(lines), self.session.device

    def _finished(self, items: Sequence[Item]) -> Iterator[Item]:
        """The items, explained and drawn, or failed."""
        size = self.model.size
        if isinstance(self.workers, Workers):
            opened = decoded(self.workers, items, ahead=2 * size)
            done = explained_by(self.model, self.session, opened, self.reply.told.append)
            yield from written(self.workers, done, ahead=2 * size)
            return
        opened = decoded(self.workers, items, ahead=0)
        done = (
            item
            for group in in_groups(opened, self.model)
            for item in self.model.explain(group, self.reply.told.append)
        )
        yield from written(self.workers, done, ahead=0)


def _user_error(error: Exception) -> Exception:
    """The error as something that can travel; one that is a bug is raised where it is."""
    if isinstance(error, RequestError):
        return RequestError(str(error))
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    if is_out_of_memory(error):
        return MemoryError(str(error))
    raise error
