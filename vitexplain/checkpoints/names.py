"""The names of categories that a file of weights holds beside them."""

from collections.abc import Mapping

KEYS = (
    "class_to_idx",
    "idx_to_class",
    "id2label",
    "label2id",
    "label_names",
    "class_names",
    "classes",
    "categories",
)
WITHIN = ("hyper_parameters", "hparams", "config", "args", "meta", "datamodule_hyper_parameters")


def names_in(extras: Mapping, count: int) -> list[str]:
    """The names of `count` categories, in their order; [] if the file holds none that fit."""
    for place in (extras, *(extras.get(name) for name in WITHIN)):
        if isinstance(place, Mapping):
            for key in KEYS:
                names = _names(place.get(key))
                if count and len(names) == count:
                    return names
    return []


def _names(value: object) -> list[str]:
    """From a list of names, index -> name, or name -> index; [] if it is none of these."""
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return list(value)
    if not isinstance(value, Mapping) or not value:
        return []
    if all(isinstance(index, int) for index in value.values()):
        value = {index: name for name, index in value.items()}
    try:
        by_index = {int(index): name for index, name in value.items()}
    except (TypeError, ValueError):
        return []
    if sorted(by_index) != list(range(len(value))):
        return []
    return [str(by_index[index]) for index in range(len(value))]
