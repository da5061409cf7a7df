"""What the documents say, taken apart: blocks of code, commands, links, headings."""

import re
import string
from pathlib import Path

from helpers import ROOT

README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "README.fr.md", *sorted((ROOT / "docs").glob("*.md"))]


def fenced(document: Path, language: str) -> list[str]:
    """The blocks of code in a language."""
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(document: Path) -> list[str]:
    """The lines of its shell blocks that run vit_explain.py."""
    lines = "".join(fenced(document, "bash")).splitlines()
    return [line for line in lines if line.startswith("python vit_explain.py")]


def every_command(document: Path) -> list[str]:
    """Everything that runs Python, wherever it stands: in blocks, indented or in a sentence."""
    text = document.read_text(encoding="utf-8")
    start = r"python (?:vit_explain\.py|-m [\w.]+)"
    lines = re.findall(rf"^(?:    )?({start}.*)$", text, re.MULTILINE)
    return lines + [" ".join(span.split()) for span in re.findall(rf"`({start}[^`]*)`", text)]


def links(document: Path) -> list[str]:
    """Where links and images point to, the web left out."""
    text = document.read_text(encoding="utf-8")
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)


def anchors(document: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.S | re.M)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        kept = (c for c in heading.lower() if c not in string.punctuation or c in "-_")
        found.add("".join(kept).replace(" ", "-"))
    return found
