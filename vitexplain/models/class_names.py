"""The names of categories in the forms in which people keep them.

One a line; "0: cat" or "0 cat" or "0<tab>cat" lines, in any order; CSV; JSON or a Python literal: a
list, index -> name, name -> index, index -> ["n01440764", "tench"].
"""

import ast
import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vitexplain.errors import RequestError, one_line

# where files of weights keep names beside them, and in which of their entries
KEYS = ("class_to_idx", "idx_to_class", "id2label", "label2id", "label_names", "class_names",
        "classes", "categories")  # fmt: skip
WITHIN = ("hyper_parameters", "hparams", "config", "args", "meta", "datamodule_hyper_parameters")
INDEX = {"index", "id", "idx", "label", "class_id", "class_index", "category_id", "target"}
NAME = {"name", "class", "class_name", "label_name", "category", "label", "description", "title"}
WORDNET = re.compile(r"n\d{8}")


class ClassNamesError(RequestError):
    """Names can't be read, or don't fit the model."""


def names_in_file(path: str | Path) -> list[str]:
    """The names in a file, in the order of their indices.

    Raises:
        ClassNamesError: if it can't be read, or its form is none of these.
    """
    text = _decoded(path).strip().removeprefix("\ufeff")
    try:
        if text[:1] in ("{", "["):
            return names_of_data(_literal(text))
        return _of_lines(text.splitlines())
    except ClassNamesError as error:
        raise ClassNamesError(f"{path}: {error}") from None


def names_of_data(data: object) -> list[str]:
    """Names from a list, index -> name, or name -> index.

    Raises:
        ClassNamesError: if it is none of these.
    """
    if isinstance(data, Mapping):
        if len(data) == 1:  # {"names": [...]}
            (only,) = data.values()
            if isinstance(only, Mapping | Sequence) and not isinstance(only, str):
                return names_of_data(only)
        if data and all(type(value) is int for value in data.values()):
            return _ordered([(index, str(name)) for name, index in data.items()], "entry")
        pairs = [(_whole(index), _name(value)) for index, value in data.items()]
        if any(index is None for index, _ in pairs):
            raise ClassNamesError("it must map indices to names, or names to indices")
        return _ordered(pairs, "entry")
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [_name(each) for each in data]
    raise ClassNamesError("it must hold one name a line, or a JSON list of names")


def names_beside(extras: Mapping, count: int) -> tuple[list[str], str]:
    """The names of `count` categories that a file keeps beside its weights, and a remark.

    Args:
        extras: what the file holds beside tensors.

    Returns:
        ([], "") if it holds none; ([], a remark) if what it holds is of another number.
    """
    remark = ""
    for place in (extras, *(extras.get(name) for name in WITHIN)):
        for key in KEYS:
            value = place.get(key) if isinstance(place, Mapping) else None
            if not isinstance(value, Mapping | list | tuple):
                continue
            try:
                names = names_of_data(value)
            except ClassNamesError:
                continue
            if len(names) == count:
                return names, ""
            if names and count:
                remark = f"its {key} names {len(names)} categories, not {count}: passed over"
    return [], remark


def _decoded(path: str | Path) -> str:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ClassNamesError(f"class names can't be read from {path}: {error.strerror}") from None
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ClassNamesError(f"class names can't be read from {path}: {error}") from None


def _literal(text: str) -> object:
    """JSON, or a Python literal as in the file of ImageNet's names that is passed around."""
    try:
        return json.loads(text)
    except ValueError as as_json:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ClassNamesError(
                f"it is neither JSON nor a Python literal: {one_line(as_json, 80)}"
            ) from None
    except RecursionError:
        raise ClassNamesError("it is nested too deeply") from None


def _name(value: object) -> str:
    """A name, also of ["n01440764", "tench"] or {"name": "tench"}."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        for key in ("name", "label", "class", "class_name", "title"):
            if isinstance(value.get(key), str):
                return value[key].strip()
    if isinstance(value, Sequence) and value and all(isinstance(part, str) for part in value):
        parts = [part for part in value if not WORDNET.fullmatch(part)] or list(value)
        return ", ".join(part.strip() for part in parts)
    raise ClassNamesError(
        f"{one_line(value, 40)} is no name: it must hold one name a line, or a list of names"
    )


def _of_lines(lines: Iterable[str]) -> list[str]:
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ClassNamesError("it holds no names")
    table = _table(numbered)
    if table is not None:
        return table
    found = [re.fullmatch(r"(\d+)\s*[:\t,;=]\s*(.+)|(\d+)\s+(.+)", line) for _, line in numbered]
    if all(found):
        pairs = [(int(each[1] or each[3]), each[2] or each[4]) for each in found]
        return _ordered([(i, _unquoted(n)) for i, n in pairs], "line", [n for n, _ in numbered])
    if any(found) and len(numbered) > 1 and sum(map(bool, found)) > len(numbered) / 2:
        first = next(n for (n, _), each in zip(numbered, found, strict=True) if not each)
        raise ClassNamesError(f"line {first} has no index, unlike most others")
    return [_without_wordnet(line) for _, line in numbered]


def _table(numbered: Sequence[tuple[int, str]]) -> list[str] | None:
    """Of CSV or tab-separated lines with a heading; None if there is no such heading."""
    heading = numbered[0][1]
    separator = next((mark for mark in "\t,;" if mark in heading), None)
    if separator is None:
        return None
    rows = list(csv.reader([line for _, line in numbered], delimiter=separator))
    titles = [title.strip().lower() for title in rows[0]]
    index = next((i for i, title in enumerate(titles) if title in INDEX - {"label"}), None)
    if index is None and "label" in titles and set(titles) & NAME - {"label"}:
        index = titles.index("label")
    name = next((i for i, title in enumerate(titles) if title in NAME and i != index), None)
    if name is None:
        return None
    short = next((n for (n, _), row in zip(numbered, rows, strict=True) if len(row) <= name), None)
    if short is not None:
        raise ClassNamesError(f"line {short} has no name")
    if index is None:
        return [row[name].strip() for row in rows[1:]]
    places = [number for number, _ in numbered[1:]]
    pairs = [(_whole(row[index]), row[name].strip()) for row in rows[1:]]
    for place, (value, _) in zip(places, pairs, strict=True):
        if value is None:
            raise ClassNamesError(f"line {place} has no index")
    return _ordered(pairs, "line", places)


def _ordered(
    pairs: Sequence[tuple[int, str]], what: str, places: Sequence[int] | None = None
) -> list[str]:
    """Names by their indices, which must be 0 to n - 1, each once."""
    places = places or range(1, len(pairs) + 1)
    seen: dict[int, int] = {}
    for place, (index, _) in zip(places, pairs, strict=True):
        if index in seen:
            raise ClassNamesError(f"{what} {place} gives index {index} a second name")
        seen[index] = place
    if sorted(seen) == list(range(1, len(pairs) + 1)) and 0 not in seen:
        raise ClassNamesError(
            f"its indices go from 1 to {len(pairs)}, the model's from 0 to {len(pairs) - 1}: "
            "subtract 1, or leave the numbers out"
        )
    missing = next(index for index in range(len(pairs) + 1) if index not in seen)
    if missing < len(pairs):
        beyond = next((p for i, p in seen.items() if not 0 <= i < len(pairs)), None)
        raise ClassNamesError(f"index {missing} has no name, {what} {beyond} is beyond the last")
    return [name for _, name in sorted(pairs)]


def _without_wordnet(line: str) -> str:
    """ "tench" of "n01440764 tench"."""
    first, _, rest = line.partition(" ")
    return rest.strip() if WORDNET.fullmatch(first) and rest.strip() else line


def _unquoted(name: str) -> str:
    name = name.strip().rstrip(",").strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"" else name


def _whole(value: object) -> int | None:
    if type(value) is int:
        return value
    text = str(value).strip()
    return int(text) if text.isdecimal() else None
