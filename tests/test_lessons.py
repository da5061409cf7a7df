"""The lessons: made from their source, the same in both languages, and each runs as a whole."""

import json
import os
import re
import subprocess
import sys

import pytest

from documents import links
from lessons.build import FOLDER, LANGUAGES, lessons, notebook, read_cells, typeset

SOURCES = lessons()
by_name = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
PREDICT = {"en": "**Predict.**", "fr": "**Prédire.**"}
SEE = {"en": "**See.**", "fr": "**Voir.**"}

# The code cells of a notebook in one namespace, as Jupyter runs them; figures are counted.
RUN = """
import json, sys
import matplotlib.pyplot as plt
shown = 0
def show():
    global shown
    shown += len(plt.get_fignums())
    plt.gcf().canvas.draw()
    plt.close("all")
plt.show = show
names = {"__name__": "__main__"}
with open(sys.argv[1], encoding="utf-8") as file:
    cells = json.load(file)["cells"]
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
print("figures shown:", shown)
"""


def path_of(source, language):
    return FOLDER / language / f"{source.stem}.ipynb"


def texts(source, language, kind="markdown"):
    """The cells of a committed notebook of one kind."""
    cells = json.loads(path_of(source, language).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def test_there_are_eight_in_both_languages():
    assert [source.stem[0] for source in SOURCES] == [*"12345678"]
    for language in LANGUAGES:
        found = {path.stem for path in (FOLDER / language).glob("*.ipynb")}
        assert found == {source.stem for source in SOURCES}


@by_name
@pytest.mark.parametrize("language", LANGUAGES)
def test_notebooks_are_what_their_source_makes(source, language):
    """Otherwise: python -m lessons.build"""
    committed = path_of(source, language).read_text(encoding="utf-8")
    assert committed == notebook(source, language)


@by_name
def test_both_languages_say_the_same(source):
    """As far as a test can see: the same code, and as many texts, each in its own language."""
    assert texts(source, "en", "code") == texts(source, "fr", "code")
    english, french = texts(source, "en"), texts(source, "fr")
    assert len(english) == len(french)
    for here, there in zip(english, french, strict=True):
        assert here
        assert there
        assert here != there
        assert re.findall("^#+ ", here, re.MULTILINE) == re.findall("^#+ ", there, re.MULTILINE)
        for sign in (PREDICT, SEE):
            assert here.count(sign["en"]) == there.count(sign["fr"])


@by_name
def test_lessons_are_short_and_ask_before_they_tell(source):
    english = texts(source, "en")
    assert 3 <= sum(PREDICT["en"] in text for text in english) <= 5
    assert len(english) + len(texts(source, "en", "code")) <= 25
    assert not any(PREDICT["en"] in text and SEE["en"] in text for text in english)


@by_name
@pytest.mark.parametrize("language", LANGUAGES)
def test_cells_have_ids_of_their_own_and_no_outputs(source, language):
    cells = json.loads(path_of(source, language).read_text(encoding="utf-8"))["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.slow
@by_name
def test_lessons_run(source):
    """In one language, as the code is the same in both; from its folder, as Jupyter does."""
    path = path_of(source, "fr")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)],
        cwd=path.parent,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    figures = int(done.stdout.rpartition("figures shown: ")[2])
    assert figures >= sum(PREDICT["fr"] in text for text in texts(source, "fr"))


@by_name
@pytest.mark.parametrize("language", LANGUAGES)
def test_links_of_lessons_lead_to_files(source, language):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", "\n".join(texts(source, language))):
        assert (FOLDER / language / link.partition("#")[0]).is_file(), link


def test_links_of_the_readme_lead_to_files():
    found = links(FOLDER / "README.md")
    assert {f"{n}/{source.stem}.ipynb" for n in LANGUAGES for source in SOURCES} <= {*found}
    assert all((FOLDER / link).is_file() for link in found)


def test_french_signs_have_their_spaces():
    made = typeset("« Voir » : 95 % ? `a : b` et $x : y$ ; [là](un : lien) !")
    expected = "«~Voir~»~: 95~%~? `a : b` et $x : y$~; [là](un : lien)~!"
    assert made == expected.replace("~", "\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    "text", ["# %% [en]\n# a\n# %%\n1\n", "# %% [fr]\n# a\n", "# %%\n1\n# %% [fr]\n# a\n"]
)
def test_a_text_without_its_translation_is_refused(text, tmp_path):
    source = tmp_path / "1_lesson.py"
    source.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"1_lesson\.py"):
        read_cells(source)
