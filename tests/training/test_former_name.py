"""`python -m training.train`, as version 0.1 had it."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from helpers import ROOT

NAMES = ("train", "evaluate", "compare")


@pytest.mark.slow
def test_the_former_command_works_and_says_the_new_name():
    command = [sys.executable, "-m", "training.train", "--data", "nowhere", "--output", "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "training.train is now vitexplain.training.train",
        "train: nowhere is neither a folder nor a zip file",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_former_name_is_the_new_module(name):
    former, new = find_spec(f"training.{name}"), find_spec(f"vitexplain.training.{name}")
    assert former.origin == new.origin


@pytest.mark.parametrize(
    ("command", "said"),
    [
        *((["-m", f"training.{name}"], f"training.{name}") for name in NAMES),
        (["-mtraining.train", "--data", "training.zip"], "training.train"),
        # a process that a former command spawned imports the same main module
        (["-c", "from multiprocessing.spawn import spawn_main; spawn_main()"], None),
        (["script.py", "training.zip"], None),
    ],
)
def test_only_the_command_itself_says_its_new_name(command, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", *command])
    exec((ROOT / "training.py").read_text(encoding="utf-8"), {"__name__": "training"})
    expected = f"{said} is now vitexplain.{said}\n" if said else ""
    assert capsys.readouterr() == ("", expected)
