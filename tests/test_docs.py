"""What the documents tell people to do, done: commands, snippets, links and options."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

import vit_explain
from documents import DOCUMENTS, README, anchors, commands, every_command, fenced, links
from helpers import ROOT

PUBLISHED = commands(README)[:2]  # run by test_readme
TRAINING = ROOT / "docs" / "training.md"  # its commands build on each other: see below
COMMANDS = list(
    dict.fromkeys(
        command
        for document in DOCUMENTS
        if document != TRAINING
        for command in commands(document)
        if command not in PUBLISHED
    )
)
SNIPPETS = [
    document
    for document in DOCUMENTS
    if fenced(document, "python") and document.name != "README.fr.md"  # the README's own code
]
SHEETS = {"--sweep", "--explore", "--anatomy", "--compare", "--features"}


def expected_files(options):
    """How many files a command writes."""
    if SHEETS & {*options}:
        return 1
    if "--query" in options:
        return 2  # the sheet, and that of all blocks
    if "--evaluate" in options:
        return 3  # table, numbers, figure
    images = options[options.index("--image_path") + 1 :]
    images = images[: next(i for i, word in enumerate([*images, "--"]) if word.startswith("--"))]
    if images == ["examples"]:
        images = [path for path in (ROOT / "examples").iterdir() if path.suffix in (".jpg", ".png")]
    elif len(images) == 1:
        return 2 + ("--similar_to" in options)  # overlay and input; of two images, a sheet
    maps = int(options[options.index("--top_k") + 1]) if "--top_k" in options else 1
    # results, errors, settings, lock; the page and the sheet
    return len(images) * maps + 4 + len({"--report", "--contact_sheet"} & {*options})


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, tmp_path, monkeypatch, few_steps):
    monkeypatch.chdir(ROOT)
    options = shlex.split(command)[2:]
    assert vit_explain.main([*options, "--output_dir", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == expected_files(options)


@pytest.mark.slow
@pytest.mark.parametrize("document", SNIPPETS, ids=lambda path: path.name)
def test_snippets_run(document, tmp_path):
    """All snippets of a document in one process; what a comment beside a print says is printed."""
    code = "\n".join(fenced(document, "python"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DISPLAY", None)  # no windows
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    printed = iter(done.stdout.splitlines())
    for comment in re.findall(r"^ *print\(.*\)  # (.+)$", code, re.MULTILINE):
        assert comment in printed, (comment, done.stdout)  # in this order
    for name in re.findall(r'\.save\("([^"]+)"\)', code):
        with Image.open(tmp_path / name) as saved:
            assert saved.info["Method"]


@pytest.mark.slow
def test_training_commands_run(tmp_path, monkeypatch):
    """Those of docs/training.md, one after the other, on a dozen images for one epoch."""
    monkeypatch.chdir(tmp_path)
    for folder in ("my_images", "my_test_images"):
        for category, names in {
            "red deer": ("dog", "shepherd"),
            "koala": ("koala", "panda"),
        }.items():
            (Path(folder) / category).mkdir(parents=True)
            for name in names:
                for number in range(3):
                    with Image.open(ROOT / "examples" / f"{name}.jpg") as image:
                        small = image.resize((64 + number, 64))
                    small.save(Path(folder) / category / f"{name}{number}.png")
    with Image.open(ROOT / "examples" / "dog.jpg") as image:
        image.save("an_image.jpg")
    train, evaluate, explain = (
        shlex.split(line) for line in fenced(TRAINING, "bash")[0].splitlines()
    )
    quick = {
        "train": ["--epochs", "1", "--batch_size", "4"],
        "evaluate": ["--mosaics", "2", "--confidence", "0"],
    }
    for command in (train, evaluate):
        module = import_module(command[2])
        assert module.main([*command[3:], *quick[command[2].rpartition(".")[2]]]) == 0
    assert vit_explain.main(explain[2:]) == 0
    for path in ("my_model/model.safetensors", "my_model/log.csv", "my_model/curves.png"):
        assert Path(path).is_file(), path
    assert list(Path("my_evaluation").glob("*.html"))
    assert Path("output/an_image_input.png").is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_understood(document):
    """Also those that are not run here, because they take hours, a cluster or data."""
    for command in every_command(document):
        words = shlex.split(command)
        if words[1] == "-m":
            module, options = words[2], words[3:]
        else:
            module, options = "vitexplain.cli.options", words[2:]
        if module in ("venv", "training.train"):  # Python's own; the former name, by its own test
            continue
        parser = import_module(module).parser()
        known = {name for action in parser._actions for name in action.option_strings}
        assert {word for word in options if word.startswith("--")} <= known, command
        if options:
            parser.parse_args(options)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_images_exist(document):
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme():
    linked = {link.partition("#")[0] for link in links(README)}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked


def test_every_image_is_shown():
    shown = {(path.parent / link).resolve() for path in DOCUMENTS for link in links(path)}
    assert {path.resolve() for path in (ROOT / "docs" / "images").iterdir()} <= shown


def test_every_option_is_listed(capsys):
    with pytest.raises(SystemExit):
        vit_explain.main(["--help"])
    options = set(re.findall(r"--\w+", capsys.readouterr().out)) - {"--help", "--version"}
    assert len(options) > 30
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    table = page.split("<!-- options: ")[1].split("<!-- options end -->")[0]
    for option in options:
        assert f"`{option}" in table, option


def test_table_of_options_is_up_to_date():
    """As `python -m vitexplain.cli.options --markdown` makes it."""
    made = subprocess.run(
        [sys.executable, "-m", "vitexplain.cli.options", "--markdown"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    ).stdout
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    begin = "<!-- options: made by python -m vitexplain.cli.options --markdown -->\n"
    assert page.split(begin)[1].split("<!-- options end -->")[0].strip() == made.strip()


@pytest.mark.parametrize(
    "name", ["speed", "peers", "folder", "families", "faithfulness", "candidates"]
)
def test_benchmarks_find_their_markers(name):
    """The page of each benchmark's table, where `--write` looks for its markers."""
    pages = {"peers": "speed", "folder": "folders", "families": "models"}
    page = (pages | {"candidates": "faithfulness"}).get(name, name)
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    benchmark = import_module(f"benchmarks.{name}")
    if name in ("faithfulness", "candidates"):
        pairs = [benchmark.markers(model) for model in ("bundled", "deit_tiny_patch16_224")]
    else:
        pairs = [(benchmark.BEGIN, benchmark.END)]
    if name == "folder":
        photographs = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
        assert benchmark.BEGIN_PICTURES in photographs.split(benchmark.END_PICTURES)[0]
    if name == "speed":
        pairs.append((benchmark.TASKS_BEGIN, benchmark.TASKS_END))
    for begin, end in pairs:
        assert text.count(begin) == text.count(end) == 1
        assert text.index(begin) < text.index(end)
