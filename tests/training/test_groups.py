"""Groups stay whole, categories keep their shares, and names that suggest groups are noticed."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitexplain.training.data import DataError, category_of, split
from vitexplain.training.groups import SUGGESTED, groups_in, groups_of, split_by_group, torn_apart

# (category, group) of up to 80 images
IMAGES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=4, max_size=80)


def named(images):
    return {
        f"{category}/s{group}_{n}.png": f"s{group}" for n, (category, group) in enumerate(images)
    }


def test_the_group_is_what_the_name_says():
    names = ["cat/B-30_0047.jpg", "dog/B-30_0002.jpg", "dog/B-9_1.jpg"]
    assert list(groups_of(names, "^[^_]+").values()) == ["B-30", "B-30", "B-9"]
    assert list(groups_of(names, "^B-([0-9]+)").values()) == ["30", "30", "9"]
    assert list(groups_of(names, SUGGESTED).values()) == ["B-30", "B-30", "B-9"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("([", r"is no regular expression: "),
        ("^C", r"matches nothing in cat/B-30_0047.jpg and 1 other names"),
        ("^B", r"all images are of one group, 'B'"),
    ],
)
def test_patterns_that_make_no_groups(pattern, said):
    with pytest.raises(DataError, match=said):
        groups_of(["cat/B-30_0047.jpg", "dog/B-9_1.jpg"], pattern)


def test_groups_in_a_table(tmp_path):
    """By category and file, or by the file's name alone."""
    table, names = tmp_path / "groups.csv", ["cat/a.png", "cat/b.png", "dog/a.png"]
    table.write_text("file,group\ncat/a.png,Ann\nb.png,Bob\ndog/a.png,Bob\n", encoding="utf-8-sig")
    assert list(groups_in(table, names).values()) == ["Ann", "Bob", "Bob"]
    for text, said in (
        ("file,patient\na.png,Ann\n", "has no column 'group'"),
        ("file,group\nb.png,Ann\n", "has no group of cat/a.png and 1 others"),
        ("file,group\na.png,Ann\nb.png,Ann\n", "all images are of one group"),
    ):
        table.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=said):
            groups_in(table, names)
    with pytest.raises(DataError, match=r"can't be read: .*No such file"):
        groups_in(tmp_path / "none.csv", names)


@given(IMAGES, st.floats(0.05, 0.5), st.integers(0, 3))
def test_groups_stay_whole_and_every_category_is_trained(images, share, seed):
    groups = named(images)
    try:
        train, validation = split_by_group(groups, share, seed)
    except DataError:  # whatever is held out, some category would have no training left
        held = {g for g in groups.values() if not _exhausts(groups, g)}
        assert not held
        return
    assert sorted([*train, *validation]) == sorted(groups)
    assert not {groups[name] for name in train} & {groups[name] for name in validation}
    assert {category_of(name) for name in train} == {category for category, _ in images}
    assert split_by_group(dict(reversed(groups.items())), share, seed) == (train, validation)


def _exhausts(groups, group):
    left = {category_of(name) for name in groups if groups[name] != group}
    return left != {category_of(name) for name in groups}


def test_shares_are_as_near_as_groups_allow():
    """Ten groups of ten images in each of three categories: 20 % are exactly two of each."""
    groups = named([(category, (place, g)) for place, category in enumerate("abc")
                    for g in range(10) for _ in range(10)])  # fmt: skip
    _, validation = split_by_group(groups, 0.2, seed=1)
    assert Counter(map(category_of, validation)) == {"a": 20, "b": 20, "c": 20}
    assert split_by_group(groups, 0.2, seed=2)[1] != validation


def test_a_category_of_one_group_is_trained_only():
    groups = named([("a", 0)] * 6 + [("b", 1)] * 3 + [("b", 2)] * 3)
    train, validation = split_by_group(groups, 0.3, seed=0)
    assert Counter(map(category_of, train)) == {"a": 6, "b": 3}
    assert Counter(map(category_of, validation)) == {"b": 3}
    with pytest.raises(DataError, match="no group can be held out"):
        split_by_group(named([("a", 0)] * 6 + [("b", 1)] * 3), 0.3, seed=0)
    assert split_by_group(groups, 0, seed=0) == (sorted(groups), [])


def test_slides_that_a_random_split_tears_apart():
    names = [f"{category}/{category}{slide}_{n:03}.jpg"
             for category in "xy" for slide in range(4) for n in range(10)]  # fmt: skip
    said = torn_apart(*split(names, 0.2, 0))
    assert "“x0” and 7 others are in training and in validation, 16 of 16 images" in said
    assert "--group '^(.+)[_-]'" in said
    assert torn_apart(*split([*names, "x/cover.jpg"], 0.2, 0)) is not None
    groups = groups_of(names, SUGGESTED)
    assert torn_apart(*split_by_group(groups, 0.2, 0)) is None


@pytest.mark.parametrize(
    "names",
    [
        [f"{c}/IMG_{n:04}.jpg" for c in "xy" for n in range(40)],  # a camera's numbers
        [f"{c}/n{c}0144_{n}.jpg" for c in "xy" for n in range(40)],  # one name a category: ImageNet
        [f"{c}/{n}.jpg" for c in "xy" for n in range(40)],
        [f"{c}/{c}{n}_{m}.jpg" for c in "xy" for n in range(20) for m in range(2)],  # pairs
    ],
)
def test_names_that_suggest_no_groups(names):
    assert torn_apart(*split(names, 0.2, 0)) is None
