"""The floors of docs/architecture.md: what a file imports lies below it.

The tree on that page is the one list of files and floors; it is read here, and held against the
files and against the imports written in them.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from helpers import ROOT

PAGE = ROOT / "docs" / "architecture.md"
# a row of the tree: folder, [floor], files
ROW = re.compile(r"^(\./|vitexplain/\S*) +\[(\d+)\] +(\S.*)$", re.MULTILINE)

OURS = ("vitexplain", "vit_explain", "vit_rollout", "vit_grad_rollout")
# what is not of the package, or is built on top of it
ABOVE = ("vit_explain", "vit_rollout", "vit_grad_rollout", "benchmarks", "lessons", "recipes",
         "training", "tests")  # fmt: skip
USERS_OF_CLI = ("vit_explain", "vitexplain.__main__")

LIGHT = (
    "vitexplain",
    "vitexplain.errors",
    "vitexplain.choices",
    "vitexplain.settings",
    "vitexplain.parallel",
    "vitexplain.methods.registry",
    "vitexplain.cli.options",
    "vitexplain.cli.modes",
)
HEAVY = ("torch", "torchvision", "timm", "numpy", "cv2", "PIL")


@dataclass(frozen=True)
class Import:
    """One module importing another, at a line of its file."""

    module: str
    line: int
    imported: str

    def __str__(self) -> str:
        return f"{_path(self.module)}:{self.line} imports {self.imported}"


def _path(module: str) -> Path:
    """Where a module of ours stands, from the root of the repository."""
    stem = Path(*module.split("."))
    return stem / "__init__.py" if (ROOT / stem).is_dir() else stem.with_suffix(".py")


@cache
def _modules() -> dict[str, Path]:
    """Name of every module of the package and of the three files beside it -> its file."""
    paths = [*(ROOT / "vitexplain").rglob("*.py"), *ROOT.glob("vit_*.py")]
    named = {}
    for path in sorted(path.relative_to(ROOT) for path in paths):
        parts = path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts
        named[".".join(parts)] = path
    return named


def _resolved(name: str) -> str:
    """The module that a dotted name means: what follows the longest known part is an attribute.

    What `vitexplain` hands on lazily (`from vitexplain import explain`) is where it hands it on
    from.
    """
    if name.split(".")[0] not in OURS:
        return name
    lazily = _handed_on()
    if name in lazily:
        return lazily[name]
    while name not in _modules() and "." in name:
        name = name.rpartition(".")[0]
    return name


@cache
def _handed_on() -> dict[str, str]:
    """ "vitexplain.explain" -> "vitexplain.api", ...: read from `_PLACES`."""
    tree = ast.parse((ROOT / "vitexplain" / "__init__.py").read_text(encoding="utf-8"))
    (places,) = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PLACES"
    )
    return {f"vitexplain.{n}": f"vitexplain.{at}" for n, at in ast.literal_eval(places).items()}


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, also in functions; but not what is for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from [other, *_nodes(other)]
        else:
            yield child
            yield from _nodes(child)


def _imports_in(module: str, code: str, is_package: bool) -> Iterator[Import]:
    for node in _nodes(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".") if is_package else module.split(".")[:-1]
            above = above[: len(above) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in dict.fromkeys(map(_resolved, names)):
            yield Import(module, node.lineno, name)


@cache
def _imports() -> tuple[Import, ...]:
    """All imports of all modules."""
    return tuple(
        each
        for module, path in _modules().items()
        for each in _imports_in(
            module, (ROOT / path).read_text(encoding="utf-8"), path.name == "__init__.py"
        )
    )


@cache
def _rows() -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """The rows of the page's tree: folder ("" is the root), floor, names of files."""
    (tree,) = (
        block
        for block in re.findall(
            r"^```\w*\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        if ROW.search(block)
    )
    rows = [ROW.match(line) for line in tree.splitlines()]
    assert all(rows), "a line of the tree is no row: FOLDER/ [FLOOR] FILE · FILE"
    return tuple(
        (row[1].removeprefix("./"), int(row[2]), tuple(row[3].split(" · "))) for row in rows
    )


@cache
def _floors() -> dict[str, int]:
    """Module -> floor; an `__init__` stands on its folder's, that of `vitexplain` below all."""
    floors = {"vitexplain": 0}
    for folder, floor, files in _rows():
        for file in files:
            floors[f"{folder}{file}".removesuffix(".py").replace("/", ".")] = floor
        if folder not in ("", "vitexplain/"):
            floors[folder.rstrip("/").replace("/", ".")] = floor
    return floors


def _room(module: str) -> str:
    """The folder of the package that a module stands in; folders inside count to it."""
    parts = _modules()[module].parent.parts
    return "/".join(parts[:2])


def test_the_page_lists_the_files_that_exist():
    listed = [Path(folder, name) for folder, _, files in _rows() for name in files]
    assert len(listed) == len(set(listed)), "a file is listed twice"
    existing = {path for path in _modules().values() if path.name != "__init__.py"}
    wrong = [f"{path} is not in the tree of docs/architecture.md" for path in existing - {*listed}]
    wrong += [f"{path} is in the tree, but does not exist" for path in {*listed} - existing]
    assert not wrong, "\n".join(["", *sorted(wrong)])


def test_no_import_runs_up():
    """A file imports from lower floors, or on its own floor from its own folder."""
    floors = _floors()
    wrong = []
    for each in _imports():
        if each.imported not in _modules() or not {each.module, each.imported} <= floors.keys():
            continue  # another's package; and what the page lacks, the test above reports
        if each.module == "vitexplain":
            allowed = each.imported == "vitexplain._torchvision"  # where it first matters
        else:
            above, below = floors[each.module], floors[each.imported]
            beside = above == below and _room(each.module) == _room(each.imported)
            allowed = below < above or beside
        if not allowed:
            places = (f"[{floors[name]}]" for name in (each.module, each.imported))
            wrong.append(f"{each}: {' -> '.join(places)}")
    assert not wrong, "\n".join(["", *sorted(wrong)])


def test_nothing_imports_in_a_circle():
    graph = {module: set() for module in _modules()}
    for each in _imports():
        if each.imported in graph and each.imported != each.module:
            graph[each.module].add(each.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_only_the_command_imports_the_command():
    wrong = [
        str(each)
        for each in _imports()
        if each.imported.startswith("vitexplain.cli")
        and not each.module.startswith("vitexplain.cli")
        and each.module not in USERS_OF_CLI
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_the_package_imports_nothing_that_is_built_on_it():
    """The registry names the two files beside the package by place."""
    wrong = [
        str(each)
        for each in _imports()
        if each.module.startswith("vitexplain") and each.imported.split(".")[0] in ABOVE
    ]
    assert not wrong, "\n".join(["", *wrong])


CODE = """
import os, vitexplain
import vitexplain.anatomy as anatomy
from typing import TYPE_CHECKING
from vitexplain import __version__, explain
from vitexplain.methods import registry
from . import results
from .results import Results
from ..settings import Settings
if TYPE_CHECKING:
    from vitexplain.cli.main import main
else:
    import vitexplain.device
def later():
    if True:
        from vitexplain.images.reading import open_image
"""


def test_imports_are_read_as_python_reads_them():
    found = _imports_in("vitexplain.runs.folder", CODE, is_package=False)
    assert [(each.line, each.imported) for each in found] == [
        (2, "os"),
        (2, "vitexplain"),
        (3, "vitexplain.anatomy"),
        (4, "typing.TYPE_CHECKING"),
        (5, "vitexplain"),
        (5, "vitexplain.api"),
        (6, "vitexplain.methods.registry"),
        (7, "vitexplain.runs.results"),
        (8, "vitexplain.runs.results"),
        (9, "vitexplain.settings"),
        (13, "vitexplain.device"),
        (16, "vitexplain.images.reading"),
    ]
    (found,) = _imports_in("vitexplain.methods", "from .registry import METHODS", is_package=True)
    assert found.imported == "vitexplain.methods.registry"


def test_wrong_options_do_not_wait_for_torch():
    """What the command needs to read its options, imported one by one in a fresh process."""
    code = f"""
import sys
from importlib import import_module
for name in {LIGHT}:
    before = set(sys.modules)
    import_module(name)
    for heavy in sorted(set({HEAVY}) & (set(sys.modules) - before)):
        print(name, "loads", heavy)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
