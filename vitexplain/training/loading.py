"""Batches for training, opened and augmented in this process or, where that takes long, in others.

What chance does to an image follows from the epoch and from its place in it, not from the process
that opens it: however many there are, a run ends with the same weights.
"""

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitexplain.images.reading import PictureError
from vitexplain.parallel import begin, processors, starting
from vitexplain.training.data import ImageDataset

SECONDS = 30  # of opening images in a whole run, from which processes beside the model pay
MOST = 8  # processes
SHARED = Path("/dev/shm")  # where Linux keeps what processes hand over

Key = tuple[int, int | None]  # an image's index, and the seed of its augmentation


class Batches:
    """The batches of one epoch after another: those of training, then those of validation.

    Args:
        train, validation: the images; the latter as they are, in order, each once.
        size: images per batch.
        seed: of the whole run.
        workers: processes that open images; 0 for this one.
        pinned: whether tensors lie where a GPU can fetch them by itself.

    Attributes:
        updates: how many batches of an epoch are for training; an incomplete one is left out.
    """

    def __init__(
        self,
        train: ImageDataset,
        validation: ImageDataset,
        size: int,
        seed: int,
        *,
        workers: int = 0,
        pinned: bool = False,
    ):
        self.updates = max(1, len(train) // size)
        self.keys = EpochKeys(train.labels, len(validation), size, self.updates, seed)
        self._starts_processes = workers > 0
        self._loader = DataLoader(
            _Both(train, validation),
            batch_sampler=self.keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context=begin() if workers else None,
            pin_memory=pinned,
            generator=torch.Generator(),  # its draws are not those of the model
        )

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images (B, 3, H, W), labels (B,)) of each batch.

        Raises:
            PictureError: if an image can't be read any more.
        """
        self.keys.epoch = epoch
        with starting() if self._starts_processes else nullcontext():
            batches = iter(self._loader)
        try:
            yield from batches
        except PictureError as error:
            # from another process, its message ends a traceback
            raise PictureError(str(error).strip().rpartition("PictureError: ")[2]) from None


class EpochKeys(Sampler[list[Key]]):
    """What to open in epoch `epoch`, batch by batch.

    Categories are drawn equally often in training, however many images they have.
    """

    def __init__(self, labels: list[int], validation: int, size: int, updates: int, seed: int):
        counts = np.bincount(labels)
        self.weights = torch.tensor([1.0 / counts[label] for label in labels], dtype=torch.double)
        self.validation, self.size, self.updates, self.seed = validation, size, updates, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.updates + -(-self.validation // self.size)

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(self.seed * 1009 + self.epoch)
        count = len(self.weights)
        drawn = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        seeds = torch.randint(2**31, (count,), generator=generator)
        keys = list(zip(drawn.tolist(), seeds.tolist(), strict=True))
        for number in range(self.updates):
            yield keys[number * self.size : (number + 1) * self.size]
        for start in range(0, self.validation, self.size):
            yield [(n, None) for n in range(start, min(start + self.size, self.validation))]


class _Both(Dataset):
    """Images of training by index and seed, and of validation by index alone."""

    def __init__(self, train: ImageDataset, validation: ImageDataset):
        self.train, self.validation = train, validation

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, seed = key
        if seed is None:
            return self.validation[index]
        with seeded(seed):
            return self.train[index]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All generators that augmentation draws from begin at `seed`; afterwards they go on."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # and not those of GPUs
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])


def workers_for(seconds: float, batch_bytes: int) -> int:
    """How many processes should open images.

    Args:
        seconds: for which one process would be opening images in the whole run.
        batch_bytes: of a batch of images.
    """
    if seconds < SECONDS:
        return 0
    count = min(processors(), MOST)
    # each has two batches ready, and one is on its way
    if SHARED.is_dir() and shutil.disk_usage(SHARED).free < 3 * count * batch_bytes:
        return 0
    return count
