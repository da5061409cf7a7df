import subprocess
import sys
from types import ModuleType

import pytest
import torch

from helpers import ROOT
from vitexplain import _torchvision


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_timm_imports_after_the_cure():
    code, output = run("import vitexplain, timm; print(timm.__version__)")
    assert code == 0, output


@pytest.mark.slow
def test_the_hook_runs_once_and_only_for_torchvision():
    hooked = "any(type(each).__name__ == '_BeforeTorchvision' for each in sys.meta_path)"
    loaded = "[name for name in ('torch', 'torchvision', 'timm') if name in sys.modules]"
    code, output = run(
        f"import sys, vitexplain, json; print({hooked}, {loaded}); "
        f"import torchvision; print({hooked}, {loaded})"
    )
    assert code == 0, output
    assert output.splitlines() == ["True []", "False ['torch', 'torchvision']"]


@pytest.mark.slow
def test_the_compiler_is_imported_once_something_is_compiled():
    code, output = run(
        """
import sys, vitexplain, timm, torch, torchvision
print("torch._dynamo" in sys.modules)
from timm.models.naflexvit import NaFlexRopeIterator
iterator = object.__new__(NaFlexRopeIterator)
iterator._depth_idx = iterator.depth = 3
print(next(iterator, "at its end"), "torch._dynamo" in sys.modules)
compiled = torch.compile(lambda x: next(iterator, 2) * x + 1, backend="eager")
print(float(compiled(torch.tensor(3.0))))
print(torch._dynamo.__file__ == sys.modules["torch._dynamo"].__file__)
print(sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu"))
"""
    )
    assert code == 0, output
    assert output.splitlines() == [
        "False",
        "at its end False",
        "7.0",
        "True",
        "True",
    ]


def test_a_stand_in_becomes_what_it_stands_for(monkeypatch):
    real = ModuleType("torch._dynamo.utils")
    real.answer = 42
    monkeypatch.setattr(_torchvision.importlib, "import_module", lambda _name: real)
    stand_in = _torchvision._StandIn("torch._dynamo.utils")
    assert stand_in.answer == 42
    assert not hasattr(stand_in, "nothing")


FAKES = {
    "torchvision": "import torch\nassert hasattr(torch.ops.torchvision, 'nms'), 'not repaired'\n",
    "timm": "import torchvision\n",
}


@pytest.mark.slow
def test_anything_that_imports_torchvision_finds_torch_repaired(tmp_path, monkeypatch):
    """A torchvision without its binary, imported by a timm that knows nothing of us."""
    for name, code in FAKES.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, output = run("import timm")
    assert code == 1 and "not repaired" in output
    code, output = run("import vitexplain, timm; print('fine')")
    assert (code, output) == (0, "fine\n")


def test_cure_declares_what_is_missing(monkeypatch):
    """A torchvision whose binary can't be loaded."""
    declared = []
    monkeypatch.setattr(_torchvision, "_binary_loads", lambda: False)
    monkeypatch.setattr(torch.library, "define", lambda name, _schema: declared.append(name))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(_torchvision, "_OPERATORS", ("no_such_operator", "nms"))
    _torchvision.repair()
    assert "torchvision::no_such_operator" in declared


def test_cure_leaves_a_sound_torchvision_alone(monkeypatch):
    def define(*_):
        raise AssertionError("a sound torchvision was changed")

    monkeypatch.setattr(torch.library, "define", define)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(_torchvision, "_OPERATORS", ("no_such_operator",))
    monkeypatch.setattr(_torchvision, "_binary_loads", lambda: True)
    _torchvision.repair()


@pytest.mark.parametrize("name", ["_C", "_C_stable"])  # until torchvision 0.28, from 0.29 on
def test_a_binary_that_does_not_load_is_noticed(monkeypatch, tmp_path, name):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    spec = _torchvision.importlib.util.spec_from_file_location(
        "torchvision", package / "__init__.py"
    )
    monkeypatch.setattr(_torchvision.importlib.util, "find_spec", lambda _name: spec)
    assert not _torchvision._binary_loads()  # there is none
    suffix = _torchvision.importlib.machinery.EXTENSION_SUFFIXES[0]
    (package / f"{name}{suffix}").write_bytes(b"not a library")
    assert not _torchvision._binary_loads()
    monkeypatch.setattr(torch.ops, "load_library", lambda _path: None)
    assert _torchvision._binary_loads()
