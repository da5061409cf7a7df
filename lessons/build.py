"""Make the notebooks of both languages from one source: `python -m lessons.build`.

A lesson is a file of `lessons/source/` in the percent format, which editors run cell by cell:

    # %% [en]     text in English, each line behind "# "
    # %% [fr]     the same in French, always right after the English
    # %%          code, which both languages share

It becomes `lessons/en/NAME.ipynb` and `lessons/fr/NAME.ipynb`, without outputs: those would give
away what the reader is asked to predict. The first cell of each makes the clone importable. The
same source always makes the same bytes, so that a test can hold the notebooks against it.
"""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LANGUAGES = ("en", "fr")
MARKER = re.compile(r"^# %%(?: \[(\w+)\])?$", re.MULTILINE)
# what French typography leaves as it is: code, formulas and the targets of links
VERBATIM = re.compile(r"(`[^`]*`|\$[^$]*\$|\]\([^)]*\))")

SETUP = """\
import os
import sys
from pathlib import Path

folders = [Path.cwd(), *Path.cwd().parents]
root = next(folder for folder in folders if (folder / "vit_explain.py").is_file())
sys.path.insert(0, str(root))
os.chdir(root)  # so that "examples/both.png" is the clone's"""


def lessons() -> list[Path]:
    """The sources, in the order of the lessons."""
    return sorted((FOLDER / "source").glob("*.py"))


def read_cells(source: Path) -> list[tuple[str, str]]:
    """(kind, text) of each cell of a source, kind being "en", "fr" or "code".

    Raises:
        ValueError: if an English text and its French one do not stand side by side.
    """
    _, *parts = MARKER.split(source.read_text(encoding="utf-8"))
    kinds = [kind or "code" for kind in parts[::2]]
    for number, kind in enumerate(kinds):
        before = kinds[number - 1] if number else "code"
        if (kind == "fr") != (before == "en"):
            raise ValueError(f"{source.name}, cell {number + 1}: [fr] must follow each [en]")
    texts = (text.strip() for text in parts[1::2])
    return [
        (kind, text if kind == "code" else _uncommented(text))
        for kind, text in zip(kinds, texts, strict=True)
    ]


def notebook(source: Path, language: str) -> str:
    """The notebook of a source in one language, as JSON (nbformat 4.5)."""
    title, *rest = [cell for cell in read_cells(source) if cell[0] in (language, "code")]
    cells = []
    for number, (kind, text) in enumerate([title, ("code", SETUP), *rest]):
        text = typeset(text) if kind == "fr" else text
        cell = {
            "cell_type": "code" if kind == "code" else "markdown",
            "id": f"lesson-{source.stem[0]}-{number:02}",
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    made = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


def typeset(text: str) -> str:
    """French with its non-breaking spaces; the source has plain ones, which are easier to type."""
    parts = VERBATIM.split(text)
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r" (?=[:;?!»%])|(?<=«) ", "\N{NO-BREAK SPACE}", parts[number])
    return "".join(parts)


def _uncommented(text: str) -> str:
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())


def main() -> None:
    for source in lessons():
        for language in LANGUAGES:
            target = FOLDER / language / f"{source.stem}.ipynb"
            target.parent.mkdir(exist_ok=True)
            target.write_text(notebook(source, language), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
