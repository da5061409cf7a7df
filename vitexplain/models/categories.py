"""The names of a model's categories, and finding a category by name."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset

from vitexplain.errors import RequestError
from vitexplain.models.class_names import ClassNamesError, names_in_file


class CategoryError(RequestError):
    """A category is unknown, ambiguous or out of range, or names don't fit the model."""


def default_names(num_classes: int, pretrained_cfg: dict) -> list[str]:
    """The model's own names, else ImageNet's if their number fits, else numbers."""
    labels = pretrained_cfg.get("label_names") or ()
    if len(labels) == num_classes:
        descriptions = pretrained_cfg.get("label_descriptions") or {}
        return [str(descriptions.get(label, label)) for label in labels]
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset:
        return ImageNetInfo(subset).label_descriptions()
    return [f"category {index}" for index in range(num_classes)]


def read_names(path: str | Path, num_classes: int) -> list[str]:
    """Names from a file, see models.class_names.

    Raises:
        CategoryError: if the file can't be read, or has another number of names.
    """
    try:
        names = names_in_file(path)
    except ClassNamesError as error:
        raise CategoryError(str(error)) from None
    if len(names) != num_classes:
        raise CategoryError(f"{path} holds {len(names)} names, the model has {num_classes} classes")
    return names


def find_category(names: Sequence[str], wanted: int | str) -> int:
    """The index of a category given by index or name: any synonym, in any case.

    Raises:
        CategoryError: out of range, unknown (with the nearest names) or ambiguous.
    """
    if isinstance(wanted, str):
        return _find_name(names, wanted)
    if not 0 <= wanted < len(names):
        allowed = f"from 0 to {len(names) - 1}" if names else "none: this model has no categories"
        raise CategoryError(f"category {wanted} is out of range: {allowed}")
    return int(wanted)


def _find_name(names: Sequence[str], wanted: str) -> int:
    wanted = " ".join(wanted.casefold().split())
    synonyms: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        for synonym in {name.casefold(), *(part.strip() for part in name.casefold().split(","))}:
            synonyms.setdefault(synonym, []).append(index)
    found = synonyms.get(wanted, [])
    if len(found) == 1:
        return found[0]
    if found:
        raise CategoryError(
            f"category {wanted!r} is ambiguous: {_listed(names, found)}; give the index"
        )
    if wanted.isdecimal():
        return find_category(names, int(wanted))
    near = [index for index, name in enumerate(names) if wanted and wanted in name.casefold()]
    for synonym in difflib.get_close_matches(wanted, synonyms, n=5, cutoff=0.5):
        near += [index for index in synonyms[synonym] if index not in near]
    hint = f"nearest: {_listed(names, near[:8])}" if near else "no name is like it"
    raise CategoryError(f"no category is called {wanted!r}; {hint}")


def _listed(names: Sequence[str], indices: Sequence[int]) -> str:
    return "; ".join(f"{index} {names[index]}" for index in indices)
