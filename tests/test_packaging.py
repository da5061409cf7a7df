"""What `pip install .` installs, and that it works without the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import vitexplain
from helpers import ROOT

pytestmark = pytest.mark.slow
# what a build has no use for, or would be slowed down by
LEFT_OUT = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "docs", "output", "shared", "tests"
)


def pip(*arguments):
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, so that the clone stays clean; with the setuptools that torch brings."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "clone", ignore=LEFT_OUT)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "clone")
    (wheel,) = folder.glob("vit_explain-*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder of installed packages, ours alone."""
    folder = tmp_path_factory.mktemp("installed") / "packages"
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Run something with what is installed, from a folder with nothing in it."""

    def run(*command):
        done = subprocess.run(
            [*map(str, command)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "vitexplain").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    beside = {"vit_explain.py", "vit_rollout.py", "vit_grad_rollout.py"}
    assert held == package | beside | {"vitexplain/examples/both.png"}


def test_three_files_and_one_package_are_installed(installed):
    names = {path.name for path in installed.iterdir()} - {"__pycache__", "bin", "Scripts"}
    (about,) = (name for name in names if name.endswith(".dist-info"))
    assert about == f"vit_explain-{vitexplain.__version__}.dist-info"
    assert names - {about} == {
        "vitexplain", "vit_explain.py", "vit_rollout.py", "vit_grad_rollout.py",
    }  # fmt: skip


def test_the_installed_command_explains_the_example(installed, run, tmp_path):
    """The bundled model and the example image are installed with it."""
    version = f"vit_explain {vitexplain.__version__}\n"
    assert run(sys.executable, "-m", "vitexplain", "--version") == version
    (script,) = Path(installed, "Scripts" if os.name == "nt" else "bin").iterdir()
    assert script.stem == "vit-explain"
    assert run(script, "--version") == version
    out = run(sys.executable, "-m", "vitexplain", "--model", "bundled", "--category", "tiger cat")
    assert "Wrote output/both_grad_rollout_282_0.900_mean.png" in out
    with Image.open(tmp_path / "output" / "both_grad_rollout_282_0.900_mean.png") as overlay:
        assert overlay.size == (896, 448)


CODE = """
import vitexplain, vit_explain, vit_grad_rollout, vit_rollout
for module in (vitexplain, vit_explain, vit_grad_rollout, vit_rollout):
    print(module.__file__)
found = vitexplain.explain(EXAMPLE, category="tiger cat", model="bundled")
print(found.category.name, found.map.shape)
print(type(vitexplain.METHODS["attention_rollout"].make(vitexplain.load_model("bundled").model)))
"""


def test_the_installed_package_is_a_library(installed, run):
    example = repr(str(installed / "vitexplain" / "examples" / "both.png"))
    *places, category, method = run(
        sys.executable, "-c", CODE.replace("EXAMPLE", example)
    ).splitlines()
    assert all(Path(place).is_relative_to(installed) for place in places), places
    assert category == "tiger cat (14, 14)"
    assert method == "<class 'vit_rollout.VITAttentionRollout'>"
