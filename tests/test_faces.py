"""The three names beside the package that people have written down: they stay, and are real."""

import os
import subprocess
import sys

import vit_explain
import vit_grad_rollout
import vit_rollout
import vitexplain
from helpers import ROOT
from vitexplain.cli.main import main
from vitexplain.methods.registry import METHODS


def test_the_command_is_the_packages():
    assert vit_explain.main is main


def test_the_two_algorithms_are_those_of_the_registry(bundled):
    """The very classes: what the command and the package use is what the two files define."""
    for name, algorithm in {
        "attention_rollout": vit_rollout.VITAttentionRollout,
        "grad_rollout": vit_grad_rollout.VITAttentionGradRollout,
    }.items():
        assert METHODS[name].place == (algorithm.__module__, algorithm.__name__)
        assert type(METHODS[name].make(bundled.model)) is algorithm
    assert callable(vit_rollout.rollout) and callable(vit_grad_rollout.grad_rollout)


def test_explain_can_be_had_from_the_file():
    from vit_explain import explain

    assert explain is vitexplain.explain


def test_the_file_runs_from_another_folder(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "vit_explain.py"), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: vit_explain.py")
    assert "--category_index N" in done.stdout
