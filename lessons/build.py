"""Make the notebooks of both languages: `python -m lessons.build`.

A lesson is one file of `lessons/source/`: cells begin with a line `# %%` (code), `# %% [en]` or
`# %% [fr]` (the same text in English and in French, in comments). Code is the same in both
languages, so that they can't drift apart. Notebooks have no outputs: they would give away what each
step asks the reader to predict.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
LANGUAGES = ("en", "fr")
CELL = re.compile(r"^# %%(?: \[(en|fr)\])?\n", re.MULTILINE)


class Cell(NamedTuple):
    """One cell of a source file.

    Attributes:
        language: of a text; None of code.
        text: Markdown, or Python.
    """

    language: str | None
    text: str


def cells_of(source: str) -> list[Cell]:
    """The cells of a lesson, in order.

    Raises:
        ValueError: if a text is not followed by the same one in the other language.
    """
    _, *parts = CELL.split(source)
    cells = []
    for language, text in zip(parts[::2], parts[1::2], strict=True):
        if language:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        if language == "fr":
            text = _spaced(text)
        cells.append(Cell(language, text.strip("\n")))
    spoken = [cell.language for cell in cells if cell.language]
    if spoken != [*LANGUAGES] * (len(spoken) // 2):
        raise ValueError("each English text must be followed by its French one")
    return cells


def _spaced(french: str) -> str:
    """With the spaces that French sets before ; : ? ! and within « », none of which may break."""
    parts = french.split("`")  # every second one is code
    parts[::2] = (
        re.sub(r" (?=[;:?!»])|(?<=«) ", "\N{NO-BREAK SPACE}", part) for part in parts[::2]
    )
    return "`".join(parts)


def notebook(cells: list[Cell], language: str) -> str:
    """The notebook of one language, as JSON (nbformat 4.5)."""
    chosen = [cell for cell in cells if cell.language in (None, language)]
    made = {
        "cells": [_json_cell(number, cell) for number, cell in enumerate(chosen)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


def _json_cell(number: int, cell: Cell) -> dict:
    common = {"id": f"cell-{number}", "metadata": {}, "source": cell.text.splitlines(True)}
    if cell.language:
        return {"cell_type": "markdown", **common}
    return {"cell_type": "code", **common, "execution_count": None, "outputs": []}


def notebooks() -> Iterator[tuple[Path, str]]:
    """Path and text of every notebook."""
    for source in sorted((FOLDER / "source").glob("*.py")):
        cells = cells_of(source.read_text(encoding="utf-8"))
        for language in LANGUAGES:
            yield FOLDER / language / f"{source.stem}.ipynb", notebook(cells, language)


def main() -> int:
    for path, text in notebooks():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
