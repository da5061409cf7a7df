"""What the README tells people to do, done."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in README.splitlines() if line.startswith("python vit_")]


def test_commands_users_have_written_down():
    assert [command[2:] for command in COMMANDS[:2]] == [
        shlex.split(
            "--image_path examples/both.png --head_fusion max --discard_ratio 0.9 --use_cuda"
        ),
        shlex.split(
            "--image_path examples/both.png --head_fusion max --discard_ratio 0.9 --use_cuda "
            "--category_index 243"
        ),
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_run(command, tmp_path):
    command = [sys.executable, *command[1:], "--output_dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    if "examples" in command:
        expected = 28  # of 12 images two overlays each, and the run's four files
    elif "--evaluate" in command:
        expected = 3  # table, numbers, figure
    else:  # one sheet, or an image's overlay and input
        expected = 1 if {"--sweep", "--anatomy", "--compare"} & {*command} else 2
    assert len(list(tmp_path.iterdir())) == expected


def test_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "(14, 14) 1.0 bull mastiff\n"


def test_every_option_is_in_the_table():
    from vit_explain import _parser

    options = {name for action in _parser()._actions for name in action.option_strings}
    for option in options - {"-h", "--help", "--version"}:
        assert f"`{option}" in README, option


def test_links_and_images_exist():
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_every_module_is_installed():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["py-modules"]
    assert listed == sorted(path.stem for path in Path(ROOT).glob("vit_*.py"))
