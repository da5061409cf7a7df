"""The READMEs: the published commands as they were written down, and the same steps in French."""

import ast
import re
import shlex
import subprocess
import sys

import pytest

from documents import README, commands, fenced
from helpers import ROOT

FRENCH = ROOT / "README.fr.md"
PUBLISHED = [
    "--image_path examples/both.png --head_fusion max --discard_ratio 0.9 --use_cuda",
    "--image_path examples/both.png --head_fusion max --discard_ratio 0.9 --use_cuda "
    "--category_index 243",
]


def files_listed():
    """The names in the table of files that the published commands write."""
    return re.findall(r"^\| `(both_\S+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)


def test_commands_users_have_written_down():
    assert [shlex.split(command)[2:] for command in commands(README)[:2]] == [
        shlex.split(options) for options in PUBLISHED
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_published_commands_write_the_files_listed(number, tmp_path):
    command = shlex.split(commands(README)[number])
    done = subprocess.run(
        [sys.executable, *command[1:], "--output_dir", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    overlays, input_image = files_listed()[:2], files_listed()[2]
    assert {path.name for path in tmp_path.iterdir()} == {overlays[number], input_image}
    assert len(re.findall(r"^ +\d+\.\d%", done.stdout, re.MULTILINE)) == 5


def test_readme_is_short():
    assert len(README.read_bytes()) <= 8192


def test_french_readme_shows_the_same():
    """The same commands, code, images and files; only the words differ."""
    assert commands(FRENCH) == commands(README)
    english, french = (
        [ast.dump(ast.parse(code)) for code in fenced(document, "python")]
        for document in (README, FRENCH)
    )
    assert french == english
    texts = [document.read_text(encoding="utf-8") for document in (README, FRENCH)]
    for pattern in (r"!\[[^]]*\]\(([^)]+)\)", r"^\| `(both_\S+)` \|", r"`(--\w+)"):
        english, french = (re.findall(pattern, text, re.MULTILINE) for text in texts)
        assert french and set(french) <= set(english), pattern
    assert "](README.fr.md)" in texts[0] and "](README.md)" in texts[1]
