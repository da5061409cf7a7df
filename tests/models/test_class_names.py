"""Names of categories in the forms in which people keep them."""

import json

import pytest

from vitexplain.models.categories import CategoryError, read_names
from vitexplain.models.class_names import names_of_data

NAMES = ["cat", "great dane, dog", "owl"]
FORMS = {
    "lines": "cat\ngreat dane, dog\nowl\n",
    "empty lines": "\ncat\n\ngreat dane, dog\n   \nowl",
    "list": json.dumps(NAMES),
    "index to name": json.dumps({str(i): n for i, n in enumerate(NAMES)}),
    "name to index": json.dumps({n: i for i, n in enumerate(NAMES)}),
    "name to index, in another order": '{"owl": 2, "cat": 0, "great dane, dog": 1}',
    "Python's dict": "{0: 'cat',\n 1: 'great dane, dog',\n 2: 'owl',}",
    "Python's list": "['cat', 'great dane, dog', 'owl']",
    "Keras": json.dumps({str(i): [f"n0000000{i}", name] for i, name in enumerate(NAMES)}),
    "within an entry": json.dumps({"names": NAMES}),
    "objects": json.dumps([{"id": i, "name": n} for i, n in enumerate(NAMES)]),
    "colons": "2: owl\n0: cat\n1: great dane, dog\n",
    "spaces": "0 cat\n1 great dane, dog\n2 owl",
    "tabs, in another order": "1\tgreat dane, dog\n0\tcat\n2\towl",
    "quoted": "0: 'cat',\n1: 'great dane, dog',\n2: 'owl',",
    "CSV": 'index,name\n1,"great dane, dog"\n2,owl\n0,cat\n',
    "CSV with more": 'name,wnid,id\ncat,n1,0\n"great dane, dog",n2,1\nowl,n3,2\n',
    "CSV without an index": 'class_name,count\ncat,7\n"great dane, dog",8\nowl,9\n',
    "WordNet": "n01440764 cat\nn01443537 great dane, dog\nn01484850 owl",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, encoding, tmp_path):
    path = tmp_path / "names"
    path.write_bytes(FORMS[form].encode(encoding))
    found = read_names(path, 3)
    assert found == NAMES


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1: cat\n2: dog\n3: owl", "go from 1 to 3, the model's from 0 to 2: subtract 1"),
        ("0: cat\n2: dog\n5: owl", "index 1 has no name, line 3 is beyond the last"),
        ("0: cat\n1: dog\n\n1: owl", "line 4 gives index 1 a second name"),
        ('{"cat": 0, "dog": 0, "owl": 1}', "entry 2 gives index 0 a second name"),
        ("0: cat\n1: dog\nowl", "line 3 has no index"),
        ("index,name\n0,cat\nx,dog\n2,owl", "line 3 has no index"),
        ("index,name\n0,cat\n1\n2,owl", "line 3 has no name"),
        ('{"0": "cat", "1": {"a": 1}, "2": "owl"}', "is no name"),
        ('{"a": "cat", "b": "dog", "c": "owl"}', "must map indices to names, or names to indices"),
        ("{0: cat, 1: dog", "neither JSON nor a Python literal"),
        ("[" * 100_000, "neither JSON|too deeply"),
        ("", "holds no names"),
        ("cat\ndog", "holds 2 names, the model has 3 classes"),
        ("{'a': __import__('os').system('true')}", "neither JSON nor a Python literal"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, reason, tmp_path):
    path = tmp_path / "names"
    path.write_text(text)
    with pytest.raises(CategoryError, match=reason) as caught:
        read_names(path, 3)
    assert "\n" not in str(caught.value)


def test_names_that_begin_with_a_number_are_names(tmp_path):
    path = tmp_path / "names"
    path.write_text("cat\n3 point hitch\nowl\n")
    assert read_names(path, 3) == ["cat", "3 point hitch", "owl"]


def test_names_of_data_of_a_checkpoint():
    assert names_of_data({"b": 1, "a": 0}) == ["a", "b"]
    assert names_of_data(("x", "y")) == ["x", "y"]
