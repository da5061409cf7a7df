"""`python -m training.train`, as version 0.1 had it."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from helpers import ROOT


@pytest.mark.slow
def test_the_former_command_works_and_says_the_new_name():
    command = [sys.executable, "-m", "training.train", "--data", "nowhere", "--output", "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "training.train is now vitexplain.training.train",
        "train: nowhere is neither a folder nor a zip file",
    ]


@pytest.mark.parametrize("name", ["train", "evaluate", "compare"])
def test_every_former_name_is_the_new_module(name):
    former, new = find_spec(f"training.{name}"), find_spec(f"vitexplain.training.{name}")
    assert former.origin == new.origin
