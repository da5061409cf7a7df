import json

import pytest
from timm.data import ImageNetInfo

from vitexplain.models.categories import CategoryError, default_names, find_category, read_names

IMAGENET = ImageNetInfo().label_descriptions()


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (243, 243),
        ("bull mastiff", 243),
        ("Tiger Cat", 282),
        ("  tiger   cat ", 282),
        ("tabby", 281),
        ("tabby cat", 281),
        ("tabby, tabby cat", 281),
        ("282", 282),
        ("maillot, tank suit", 639),
    ],
)
def test_by_number_or_name(wanted, index):
    assert find_category(IMAGENET, wanted) == index


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        ("crane", ["ambiguous", "134 crane", "517 crane"]),
        ("tigercat", ["no category", "282 tiger cat"]),
        ("mastiff", ["no category", "243 bull mastiff", "244 Tibetan mastiff"]),
        ("zzzzqqqq", ["no category", "no name is like it"]),
        ("", ["no category"]),
        (1000, ["out of range", "from 0 to 999"]),
        (-1, ["out of range"]),
        ("1000", ["out of range"]),
    ],
)
def test_errors_help(wanted, parts):
    with pytest.raises(CategoryError) as caught:
        find_category(IMAGENET, wanted)
    for part in parts:
        assert part in str(caught.value)


def test_a_name_that_is_a_number_wins():
    assert find_category(["7", "0"], "0") == 1


def test_no_categories():
    with pytest.raises(CategoryError, match="this model has no categories"):
        find_category([], 0)


def test_default_names():
    assert default_names(1000, {})[282] == "tiger cat"
    assert len(default_names(21841, {})) == 21841
    assert default_names(3, {}) == ["category 0", "category 1", "category 2"]
    assert default_names(2, {"label_names": ["a", "b"]}) == ["a", "b"]
    described = {"label_names": ["a", "b"], "label_descriptions": {"a": "ant"}}
    assert default_names(2, described) == ["ant", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\n",
        "\ufeffcat\r\n\r\n dog ",
        json.dumps(["cat", "dog"]),
        json.dumps({"1": "dog", "0": "cat"}),
    ],
)
def test_names_from_a_file(tmp_path, text):
    path = tmp_path / "names"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_names(path, 2) == ["cat", "dog"]


def test_bad_files_of_names(tmp_path):
    path = tmp_path / "names"
    with pytest.raises(CategoryError, match="can't be read"):
        read_names(path, 2)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CategoryError, match="can't be read"):
        read_names(path, 2)
    path.write_text("cat\n")
    with pytest.raises(CategoryError, match="holds 1 names, the model has 2"):
        read_names(path, 2)
    path.write_text("[1, 2]")
    with pytest.raises(CategoryError, match="one name a line"):
        read_names(path, 2)
