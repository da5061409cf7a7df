"""Images that belong together: of one patient, one slide, one film.

A model can know a group by what it has in common, such as its stain or its light. Where one part of
a group is in training and the other in validation, accuracy says how well that is known.
"""

import csv
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitexplain.errors import one_line
from vitexplain.training.data import DataError, category_of

# what a file's name has before its last separator, where a number comes after that
NUMBERED = re.compile(r"(.+)[_-][^_-]*\d[^_-]*")
SUGGESTED = "^(.+)[_-]"  # the same, as an option
SMALLEST = 3  # images of a group, on average
MOST = 0.9  # of all names


def groups_of(names: Sequence[str], pattern: str) -> dict[str, str]:
    """Name of image -> its group.

    Args:
        names: "CATEGORY/file" of each.
        pattern: a regular expression that is searched in the file's name; its first group, or
            else all that it matches, names the group of images.

    Raises:
        DataError: if it is no regular expression, some file doesn't match, or all are of one group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--group {pattern!r} is no regular expression: {error}") from None
    found = {name: compiled.search(_file(name)) for name in names}
    others = [name for name, match in found.items() if match is None]
    if others:
        raise DataError(
            f"--group {pattern!r} matches nothing in {others[0]}"
            + (f" and {len(others) - 1} other names" if len(others) > 1 else "")
        )
    groups = {name: _text(match) for name, match in found.items()}
    if len(set(groups.values())) == 1:
        (only,) = set(groups.values())
        raise DataError(f"--group {pattern!r}: all images are of one group, {only!r}")
    return groups


def groups_in(file: Path, names: Sequence[str]) -> dict[str, str]:
    """Name of image -> its group, from a CSV file with the columns "file" and "group".

    Args:
        names: "CATEGORY/file" of each; in the table they stand so, or as the file's name alone.

    Raises:
        DataError: if the table can't be read, lacks an image, or has one group only.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as table:
            rows = list(csv.DictReader(table))
        given = {row["file"]: row["group"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--group {file} can't be read: {one_line(error)}") from None
    except KeyError as error:
        raise DataError(f"--group {file} has no column {error}: it needs file and group") from None
    groups = {name: given.get(name) or given.get(_file(name)) for name in names}
    missing = [name for name, group in groups.items() if not group]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(f"--group {file} has no group of {missing[0]}{others}")
    if len(set(groups.values())) == 1:
        raise DataError(f"--group {file}: all images are of one group")
    return groups


def split_by_group(
    groups: Mapping[str, str], share: float, seed: int
) -> tuple[list[str], list[str]]:
    """(training, validation): every group whole in one of them.

    About `share` of every category is held out, as nearly as whole groups allow: first one group of
    each category by chance, of no more than twice the share if there is one; then others as long as
    that brings all shares nearer. A category of a single group is in training only, as is what
    would leave one without training.

    Raises:
        DataError: if no group can be held out.
    """
    if not share:
        return sorted(groups), []
    counts: dict[str, Counter] = defaultdict(Counter)  # group -> images of each category
    for name, group in groups.items():
        counts[group][category_of(name)] += 1
    totals = Counter(category_of(name) for name in groups)
    order = sorted(counts)
    random.Random(seed).shuffle(order)
    held: list[str] = []

    def distance(chosen: Sequence[str]) -> float:
        """From the share that is wanted, over categories; infinite if one has no training left."""
        taken = sum((counts[group] for group in chosen), Counter())
        if any(taken[category] == total for category, total in totals.items()):
            return float("inf")
        return sum((taken[category] / totals[category] - share) ** 2 for category in totals)

    def nearest(choices: Sequence[str]) -> str | None:
        free = [group for group in choices if group not in held]
        best = min(free, key=lambda group: distance([*held, group]), default=None)
        return best if best is not None and distance([*held, best]) < float("inf") else None

    for category in sorted(totals):
        own = [group for group in order if counts[group][category]]
        if any(group in held for group in own):
            continue
        small = [g for g in own if counts[g][category] <= 2 * share * totals[category]]
        first = next((g for g in small if distance([*held, g]) < float("inf")), nearest(own))
        if first is not None:
            held.append(first)
    while (best := nearest(order)) and distance([*held, best]) < distance(held):
        held.append(best)
    if not held:
        raise DataError("no group can be held out: each category's images are of one group")
    parts: tuple[list[str], list[str]] = ([], [])
    for name in sorted(groups):
        parts[groups[name] in held].append(name)
    return parts


def torn_apart(train: Sequence[str], validation: Sequence[str]) -> str | None:
    """A sentence, where names suggest groups and most of validation is of groups in training.

    None where files are only numbered, or each category has a name of its own, as in ImageNet.
    """
    names = (*train, *validation)
    matches = {name: NUMBERED.fullmatch(_stem(name)) for name in names}
    groups = {name: match[1] for name, match in matches.items() if match}
    if not validation or len(groups) < MOST * len(names):
        return None
    of_category = defaultdict(set)
    for name, group in groups.items():
        of_category[category_of(name)].add(group)
    several = any(len(each) > 1 for each in of_category.values())
    if not several or len(groups) < SMALLEST * len(set(groups.values())):
        return None
    shared = {groups.get(n) for n in train} & {groups.get(n) for n in validation} - {None}
    torn = sum(groups.get(name) in shared for name in validation)
    if 2 * torn <= len(validation):
        return None
    example, others = min(shared), len(shared) - 1
    also = f" and {others} others" if others else ""
    return (
        f"file names suggest groups: “{example}”{also} are in training and in validation, "
        f"{torn} of {len(validation)} images. If a group is one patient, slide or film, accuracy "
        f"says too much: keep groups together with --group '{SUGGESTED}'"
    )


def _file(name: str) -> str:
    return name.partition("/")[2]


def _stem(name: str) -> str:
    return _file(name).rpartition(".")[0] or _file(name)


def _text(match: re.Match) -> str:
    return (match[1] if match.re.groups else match[0]) or ""
