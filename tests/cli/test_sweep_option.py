"""What --sweep takes, and what it refuses in one sentence."""

import subprocess
import sys

import pytest

from helpers import ROOT
from vitexplain.cli.sweep_option import MOST_MAPS, parse_sweep
from vitexplain.runs.sweep import label


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["discard_ratio=0,0.5,.9,9.5e-1"], {"discard_ratio": (0.0, 0.5, 0.9, 0.95)}),
        (["discard_ratio=-0.0"], {"discard_ratio": (0.0,)}),
        (
            ["head_fusion=max,min,mean", "start_block=0,11"],
            {"head_fusion": ("max", "min", "mean"), "start_block": (0, 11)},
        ),
        (
            ["category= Egyptian cat, 243 ,top,Pomeranian=", "discard_ratio=0.9"],
            {"category": ("Egyptian cat", "243", "top", "Pomeranian="), "discard_ratio": (0.9,)},
        ),
    ],
)
def test_parameters_and_values_in_the_order_given(texts, expected):
    found = parse_sweep(texts)
    assert list(found.items()) == list(expected.items())
    for name, values in expected.items():
        assert [repr(value) for value in found[name]] == [repr(value) for value in values]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "one or two parameters, not 0"),
        (
            ["alpha=0,1"],
            "one of discard_ratio, head_fusion, start_block, category, not 'alpha=0,1'",
        ),
        (["category=tiger", "cat"], "PARAMETER=VALUE,VALUE with .* not 'cat'"),
        (["a\udcff=1"], r"not 'a\\udcff=1'"),
        (["discard_ratio"], "discard_ratio= lacks a value"),
        (["discard_ratio="], "discard_ratio= lacks a value"),
        (["discard_ratio=0,,0.5"], "discard_ratio=0,,0.5 lacks a value"),
        (["category=a, "], "category=a, lacks a value"),
        (["discard_ratio=0", "discard_ratio=0.5"], "has discard_ratio twice"),
        (["discard_ratio=0.5,0.9,0.50"], "discard_ratio has the value 0.50 twice"),
        (["category=top,dog,top"], "category has the value top twice"),
        (
            ["discard_ratio=0", "head_fusion=max", "start_block=0"],
            "one or two parameters, not 3",
        ),
        (["discard_ratio=0,1"], "at least 0 and below 1, not '1'"),
        (["discard_ratio=-0.1"], "at least 0 and below 1, not '-0.1'"),
        (["discard_ratio=nan"], "at least 0 and below 1, not 'nan'"),
        (["discard_ratio=half"], "at least 0 and below 1, not 'half'"),
        (["head_fusion=mean,median"], "one of mean, max, min, not 'median'"),
        (["start_block=-1"], "start_block must be 0 or a whole number above, not '-1'"),
        (["start_block=1.5"], "start_block must be 0 or a whole number above, not '1.5'"),
        (["start_block=²"], "start_block must be 0 or a whole number above, not '²'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(texts, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_sweep(texts)
    assert str(caught.value).startswith("--sweep")
    assert "\n" not in str(caught.value)


def test_a_hundred_maps_are_the_most():
    ratios = ",".join(str(number / 1000) for number in range(50))
    assert len(parse_sweep([f"discard_ratio={ratios}", "head_fusion=max,min"])) == 2
    with pytest.raises(ValueError, match=f"150 maps: at most {MOST_MAPS}"):
        parse_sweep([f"discard_ratio={ratios}", "head_fusion=max,min,mean"])


def test_labels():
    assert label("discard_ratio", 0.0) == "discard_ratio 0"
    assert label("discard_ratio", 0.9) == "discard_ratio 0.9"
    assert label("discard_ratio", 0.9999999) == "discard_ratio 0.9999999"
    assert label("start_block", 11) == "start_block 11"
    assert label("category", "tiger cat") == "category tiger cat"


def test_checking_an_option_loads_nothing_heavy():
    heavy = "{'torch', 'timm', 'cv2', 'numpy', 'PIL'}"
    code = f"import sys, vitexplain.cli.sweep_option; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
