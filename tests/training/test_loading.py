"""Where images are opened and augmented for training."""

import random
from collections import namedtuple

import numpy as np
import pytest
import torch

from vitexplain.training import loading
from vitexplain.training.loading import seeded, workers_for

Usage = namedtuple("Usage", "total used free")


def drawn():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_a_seed_decides_inside_and_changes_nothing_outside():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [drawn(), drawn()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    found = [drawn()]
    with seeded(7):
        inside = drawn()
    found.append(drawn())
    assert found == expected
    with pytest.raises(KeyError), seeded(7):
        assert drawn() == inside
        raise KeyError
    with seeded(8):
        assert not set(drawn()) & set(inside)


def test_processes_start_where_opening_images_takes_long(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "SHARED", tmp_path)
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda _: Usage(100, 0, 100))
    monkeypatch.setattr(loading, "processors", lambda: 2)
    assert [workers_for(seconds, 10) for seconds in (0, 29, 31)] == [0, 0, 2]
    monkeypatch.setattr(loading, "processors", lambda: 64)
    assert workers_for(31, 1) == 8
    # a container's shared memory may be too small for what they hand over
    assert workers_for(31, 10) == 0
    monkeypatch.setattr(loading, "SHARED", tmp_path / "none")
    assert workers_for(31, 10) == 8
