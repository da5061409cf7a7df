"""The maps of one image for all values of a sweep."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from vitexplain.drawing.sweep import SweepMap
from vitexplain.errors import RequestError
from vitexplain.explainer import Explainer, Map
from vitexplain.models.loading import LoadedModel
from vitexplain.settings import MapOptions, Sweep, Value


def sweep_maps(
    loaded: LoadedModel, tensor: Tensor, options: MapOptions, sweep: Sweep
) -> list[list[SweepMap]]:
    """The maps of one image (1, 3, H, W): a row for each value of the first parameter.

    The second parameter's values are the columns; a single parameter's are one row. What the
    sweep does not name is as in `options`.

    Raises:
        RequestError: if the model can't be explained with one of the values, or two of them name
            the same category.
    """
    _check_categories(loaded, sweep.get("category", ()))
    points = [
        dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())
    ]
    # all of them before the first pass: they say what is wrong with a value
    explainers = [Explainer(replace(options, **point), loaded) for point in points]
    maps = []
    for point, explainer in zip(points, explainers, strict=True):
        (explained,) = explainer(tensor)
        (found,) = explained.maps
        maps.append(SweepMap(_labels(point, found), point, found))
    columns = len(list(sweep.values())[-1])
    return [maps[start : start + columns] for start in range(0, len(maps), columns)]


def label(name: str, value: Value) -> str:
    """A parameter and its value in words: "discard_ratio 0.9"."""
    return f"{name} {value:.10g}" if isinstance(value, float) else f"{name} {value}"


def _check_categories(loaded: LoadedModel, names: Sequence[Value]) -> None:
    seen: dict[int, Value] = {}
    for name in names:
        if name == "top":
            continue
        index = loaded.category_index(name)
        if index in seen:
            raise RequestError(
                f"--sweep category: {seen[index]!r} and {name!r} are both category {index} "
                f"({loaded.categories[index]}); a comma separates values, so give one synonym"
            )
        seen[index] = name


def _labels(values: Mapping[str, Value], found: Map) -> tuple[str, ...]:
    labels = {name: label(name, value) for name, value in values.items()}
    if "category" in values:
        name = found.category.name
        if str(values["category"]).casefold() not in name.casefold():  # an index, or "top"
            labels["category"] += f": {found.category.short_name}"
    return tuple(labels.values())
