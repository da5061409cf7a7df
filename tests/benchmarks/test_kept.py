"""benchmarks.kept: values survive interruptions, and are never those of something else."""

import json
import re

import numpy as np
import pytest

from benchmarks.kept import Kept
from vitexplain.errors import RequestError

ABOUT = {"model": "tiny", "steps": 10}
GOLDFISH = {"relevance": {"a": 0.123456789, "b": True}, "random": {"a": -1.0, "b": 0}}


def test_values_are_kept(tmp_path):
    path = tmp_path / "values" / "tiny.jsonl"
    Kept(path, ABOUT).add("removal", "goldfish", GOLDFISH)
    kept = Kept(path, ABOUT)
    kept.add("removal", "ray", {"relevance": {"a": 2.0, "b": 1}})
    kept = Kept(path, ABOUT)
    assert kept.lacking("removal", "goldfish", ["relevance", "legrad"]) == ["legrad"]
    assert kept.lacking("masks", "goldfish", ["relevance"]) == ["relevance"]
    found = kept.columns("removal", ["ray", "goldfish", "unseen"])
    np.testing.assert_array_equal(found["relevance"]["a"], [2.0, 0.12346, np.nan])
    np.testing.assert_array_equal(found["relevance"]["b"], [1, 1, np.nan])
    np.testing.assert_array_equal(found["random"]["a"], [np.nan, -1, np.nan])
    assert len(path.read_text().splitlines()) == 3


def test_methods_may_have_keys_of_their_own(tmp_path):
    kept = Kept(tmp_path / "v.jsonl", ABOUT)
    kept.add("removal", "ray", {"one": {"a": 1}, "two": {"a": 2, "drop": 3}})
    found = Kept(tmp_path / "v.jsonl", ABOUT).columns("removal", ["ray"])
    assert {name: list(columns) for name, columns in found.items()} == {
        "one": ["a"], "two": ["a", "drop"],
    }  # fmt: skip


def test_a_line_that_was_cut_off_is_measured_again(tmp_path):
    path = tmp_path / "v.jsonl"
    kept = Kept(path, ABOUT)
    for name in ("goldfish", "ray"):
        kept.add("removal", name, GOLDFISH)
    whole = path.read_text()
    path.write_text(whole[:-20])
    kept = Kept(path, ABOUT)
    assert kept.lacking("removal", "goldfish", GOLDFISH) == []
    assert kept.lacking("removal", "ray", GOLDFISH) == list(GOLDFISH)
    kept.add("removal", "ray", GOLDFISH)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(ABOUT | {"steps": 20}) + "\n", "another run (steps: 20, now 10): delete it"),
        (json.dumps(ABOUT | {"seed": 1}) + "\n", "another run (seed: 1, now None)"),
        ("a,b\n1,2\n", "holds no values of this benchmark"),
        ("[1]\n", "holds no values of this benchmark"),
        ("", "holds no values of this benchmark"),
        (json.dumps(ABOUT) + '\n{"part": "removal"}\n', "holds no values of this benchmark"),
    ],
)
def test_other_files_are_refused_and_stay_as_they_are(tmp_path, text, message):
    path = tmp_path / "v.jsonl"
    path.write_text(text)
    with pytest.raises(RequestError, match=re.escape(message)):
        Kept(path, ABOUT)
    assert path.read_text() == text
