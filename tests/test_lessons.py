"""The lessons: both languages from one source, and every cell of them runs."""

import json
import re
import subprocess
import sys

import pytest

from lessons.build import FOLDER, LANGUAGES, cells_of, notebooks

SOURCES = sorted((FOLDER / "source").glob("*.py"))
FIGURES = {1: 2, 2: 2, 3: 3, 4: 2, 5: 2, 6: 3, 7: 4, 8: 5}  # that each lesson draws
RUNNER = """
import json, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
drawn = []
plt.show = lambda: (drawn.extend(plt.get_fignums()), plt.close("all"))
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), sys.argv[1], "exec"), names)
print("figures:", len(drawn))
"""


def read(language, source):
    return json.loads((FOLDER / language / f"{source.stem}.ipynb").read_text(encoding="utf-8"))


def texts(notebook, kind):
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def test_there_are_eight_of_each():
    assert [int(source.stem[0]) for source in SOURCES] == list(range(1, 9))
    for language in LANGUAGES:
        assert len(list((FOLDER / language).glob("*.ipynb"))) == 8


def test_notebooks_are_those_of_the_source():
    for path, text in notebooks():
        assert path.read_text(encoding="utf-8") == text, "run python -m lessons.build"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_both_languages_have_the_same_cells(source):
    english, french = (read(language, source) for language in LANGUAGES)
    assert texts(english, "code") == texts(french, "code")
    pairs = list(zip(texts(english, "markdown"), texts(french, "markdown"), strict=True))
    assert len(pairs) >= 4
    for one, other in pairs:
        assert one.strip()
        assert other.strip()
        assert one != other
        assert one.count("##") == other.count("##")
        assert ("**Predict" in one) == ("**Prédisez" in other)
        assert not re.search(r" [;?!»]|« ", re.sub("`[^`]*`|\\$[^$]*\\$", "", other))
    assert sum("**Predict" in one for one, _ in pairs) >= 1
    assert all("outputs" not in c or c["outputs"] == [] for c in english["cells"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_links_lead_somewhere(source):
    for language in LANGUAGES:
        for text in texts(read(language, source), "markdown"):
            for link in re.findall(r"\]\(([^)#]+)", text):
                assert (FOLDER / language / link).resolve().exists(), link


def test_a_text_without_its_other_language_is_refused():
    assert [cell.text for cell in cells_of("# %% [en]\n# a\n# %% [fr]\n# b ?\n# %%\nc = 1\n")] == [
        "a",
        "b\N{NO-BREAK SPACE}?",
        "c = 1",
    ]
    with pytest.raises(ValueError, match="followed by its French one"):
        cells_of("# %% [en]\n# a\n# %%\nc = 1\n")


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_lessons_run(source, tmp_path):
    """Their asserts are the lessons' own; code is the same in both languages."""
    runner = tmp_path / "run.py"
    runner.write_text(RUNNER, encoding="utf-8")
    path = FOLDER / "fr" / f"{source.stem}.ipynb"
    done = subprocess.run(
        [sys.executable, str(runner), str(path)],
        cwd=path.parent,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("figures: ")[2]) == FIGURES[int(source.stem[0])]
