"""Values that are measured once: a file that grows by one line for each image of each part.

A run that was interrupted goes on where it stopped; a method or an image that is new is measured
alone.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitexplain.errors import RequestError
from vitexplain.faithfulness.table import Values

DIGITS = 5  # behind the point: more would be noise, and a megabyte

# method -> key of a measure -> its value for an image
OfImage = Mapping[str, Mapping[str, float]]


class Kept:
    """Values by part, image and method.

    Args:
        path: of the file; None keeps them in memory alone.
        about: what all of them depend on, JSON-ready, as the model and the versions.

    Raises:
        RequestError: if the file holds values about something else, or is none of these.
    """

    def __init__(self, path: Path | None, about: Mapping[str, object]):
        self.path = path
        self._values: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(dict)
        if path is None:
            return
        if path.exists():
            self._read(about)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(dict(about))

    def _read(self, about: Mapping[str, object]) -> None:
        *lines, last = self.path.read_text(encoding="utf-8").split("\n")
        try:
            first, *records = map(json.loads, lines)
            first = dict(first)
            for record in records:
                self._take(record)
        except (ValueError, KeyError, TypeError):
            raise RequestError(f"{self.path} holds no values of this benchmark") from None
        if first != dict(about):
            other = next(key for key in {**first, **about} if first.get(key) != about.get(key))
            raise RequestError(
                f"{self.path} holds values of another run ({other}: {first.get(other)}, now "
                f"{about.get(other)}): delete it, or name another file"
            )
        if last:  # the line that was being written when a run was interrupted
            self.path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _take(self, record: Mapping) -> None:
        for method, values in record["values"].items():
            pairs = zip(record["keys"], values, strict=True)
            self._values[record["part"], record["image"]][method] = dict(pairs)

    def _append(self, record: Mapping[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def lacking(self, part: str, image: str, methods: Collection[str]) -> list[str]:
        """Those of the methods that have no values for an image yet."""
        return [name for name in methods if name not in self._values[part, image]]

    def add(self, part: str, image: str, values: OfImage) -> None:
        """Keep values of an image."""
        for keys in dict.fromkeys(tuple(of_method) for of_method in values.values()):
            rows = {
                name: [round(float(value), DIGITS) for value in of_method.values()]
                for name, of_method in values.items()
                if tuple(of_method) == keys
            }
            record = {"part": part, "image": image, "keys": keys, "values": rows}
            self._take(record)
            if self.path is not None:
                self._append(record)

    def columns(self, part: str, images: Sequence[str]) -> Values:
        """Method -> key -> (n,), a value for each image, NaN where it was not measured."""
        of_images = [self._values[part, image] for image in images]
        keys = {
            method: list(values) for of_image in of_images for method, values in of_image.items()
        }
        return {
            method: {
                key: np.array([of.get(method, {}).get(key, np.nan) for of in of_images])
                for key in of_method
            }
            for method, of_method in keys.items()
        }
