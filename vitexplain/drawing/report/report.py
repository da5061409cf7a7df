"""One page with all images of a run: it needs no network and no other file.

The page holds a thumbnail of each image, and each of its maps as a small heatmap that the browser
lays over it: fading from input to overlay changes an opacity. Names come from files and models, so
the page builds everything from JSON as text, and its Content-Security-Policy forbids any script
but its own.
"""

import base64
import html
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import numpy as np
from PIL import Image

from vitexplain.drawing.heatmap import (
    colored,
    enlarged,
    on_the_image,
    scale,
    smooth,
    two_sides,
)
from vitexplain.drawing.html import filled, json_text, policy, printable_name, webp
from vitexplain.images.reading import PictureError, open_image
from vitexplain.images.region import Region
from vitexplain.images.writing import write_whole
from vitexplain.methods.questions import QUESTIONS, by_question, in_words, look_at, questions_of
from vitexplain.methods.registry import METHODS
from vitexplain.parallel import in_order
from vitexplain.words import UNBEATEN

SIDE = 320  # of thumbnails, in pixels; of many images they are smaller
SIDE_OF_MANY, MANY = 192, 1000
PATCH = 8  # pixels of the heatmap per patch


def write_report(
    results: Sequence[dict],
    path: Path,
    title: str,
    alpha: float = 0.5,
    colormap: str = "turbo",
    failures: Sequence[tuple[str, str]] = (),
    accuracy: dict | None = None,
) -> None:
    """Write the page to `path`, next to the files that the results name.

    Args:
        results: lines of results.jsonl; an image that can't be opened any more has no thumbnail.
        alpha: initial position of the slider.
        colormap: name of an OpenCV colour map.
        failures: (file, reason) of each image that could not be explained.
        accuracy: how many of the predictions are right: "right", "of", "value", "interval".
    """
    side = SIDE if len(results) <= MANY else SIDE_OF_MANY
    run = {
        "made": _made(results),
        "scales": _scales(results, colormap),
        "failures": [(printable_name(file), printable_name(reason)) for file, reason in failures],
        "accuracy": accuracy,
    }

    def write(file: BinaryIO) -> None:
        head, tail = _frame(title, alpha)
        file.write(head.encode())
        file.write(f'<script type="application/json" id="run">{json_text(run)}</script>\n'.encode())
        for number, (about, images) in enumerate(_ahead(results, path.parent, side, colormap)):
            file.write(f'<script type="application/json" class="about">{about}</script>\n'
                       f'<script type="application/json" id="images-{number}">{images}</script>\n'
                       .encode())  # fmt: skip
        file.write(tail.encode())

    write_whole(path, write)


def _made(results: Sequence[dict]) -> str:
    """By which methods, and what their maps answer.

    "Maps by LeGrad: which patches change the answer"; where methods answer different questions,
    "Maps of which patches change the answer: LeGrad; of where the object is: relevance".
    """
    answers: dict[str, set[str]] = {}  # name of a method -> the questions
    for found in (found for result in results for found in result["maps"]):
        answers.setdefault(found["method"]["name"], set()).update(questions_of(found))
    if len(set(map(frozenset, answers.values()))) == 1:
        said = " and ".join(each for each in QUESTIONS if each in next(iter(answers.values())))
        return f"Maps by {_titles(answers)}" + (f": {said}" if said else "")
    groups = {
        question: [name for name in names if question in answers[name]]
        for question, names in by_question(answers).items()
    }
    said = "; of ".join(
        f"{question}: {_titles(names)}" for question, names in groups.items() if names
    )
    others = [name for name in answers if not answers[name]]
    return f"Maps of {said}" + (f"; others: {_titles(others)}" if others else "")


def _titles(names: Iterable[str]) -> str:
    return ", ".join(METHODS[name].title for name in names)


def _ahead(
    results: Iterable[dict], folder: Path, side: int, colormap: str
) -> Iterator[tuple[str, str]]:
    """The page's part of each result, in order; a few are made in parallel."""
    with ThreadPoolExecutor() as pool:
        submitted = (
            (None, pool.submit(_image, result, folder, side, colormap)) for result in results
        )
        for _, future in in_order(submitted, ahead=16):
            yield future.result()


def _image(result: dict, folder: Path, side: int, colormap: str) -> tuple[str, str]:
    """(description of an image, its thumbnail and heatmaps), both as JSON."""
    maps, heat = [], []
    for found in result["maps"]:
        grey = np.frombuffer(base64.b64decode(found["mask"]), np.uint8).reshape(found["grid"])
        place, mask = _placed(grey, result)
        maps.append(
            {
                "method": METHODS[found["method"]["name"]].title,
                "category": found["category"],
                "against": found.get("against", []),
                "answers": " and ".join(questions_of(found)),
                "faithfulness": found.get("faithfulness"),
                "best": found.get("most_faithful", False),
                "overlay": quote(os.fsencode(found["overlay"])),
                "place": place,
            }
        )
        size = mask.shape[1] * PATCH, mask.shape[0] * PATCH
        heat.append(webp(_heat(mask, size, colormap, signed="against" in found)))
    about = {
        "name": printable_name(result["name"]),
        "file": _link(Path(result["path"]), folder),
        "size": result["size"],
        "top": result["top"],
        "truth": result.get("truth"),
        "correct": result.get("correct"),
        "maps": maps,
        "unbeaten": _unbeaten(result["maps"]),
        "lookAt": in_words(look_at(result["maps"])),
        "facts": _facts(result),
        "details": _details(result),
    }
    return json_text(about), json_text(
        {"thumbnail": _thumbnail(result["path"], side), "heat": heat}
    )


def _unbeaten(maps: Sequence[dict]) -> str:
    """A sentence where maps were measured, and none of them beats the baselines."""
    beaten = [found["beats_baselines"] for found in maps if "beats_baselines" in found]
    return "" if any(beaten) or not beaten else f"{UNBEATEN}."


def _heat(mask: np.ndarray, size: tuple[int, int], colormap: str, *, signed: bool) -> Image.Image:
    """A map's 8 bits in colours; of a signed one, the weaker the more transparent."""
    if not signed:
        return Image.fromarray(colored(enlarged(mask, size), colormap))
    return _transparent(smooth(mask, size))


def _transparent(levels: np.ndarray) -> Image.Image:
    colors, weights = two_sides()
    pixels = np.dstack([colors[levels], 255 * weights[levels]])
    return Image.fromarray(np.uint8(np.round(pixels)))


def _scales(results: Sequence[dict], colormap: str) -> list[dict]:
    """What the colours mean: a bar, and words at its ends, for each kind of map there is."""
    kinds = {"against" in found for result in results for found in result["maps"]}
    scales = [scale(256, 8, colormap, signed=signed) for signed in sorted(kinds)]
    return [{"bar": webp(bar), "words": words} for bar, words in scales]


def _placed(mask: np.ndarray, result: dict) -> tuple[list[float], np.ndarray]:
    """Left, top, width and height of the map in percent of the image; its part that is there."""
    width, height = result["size"]
    visible, (left, top, right, bottom) = on_the_image(
        mask, Region(*result["region_seen"]), width, height
    )
    place = left / width, top / height, (right - left) / width, (bottom - top) / height
    return [round(100 * share, 3) for share in place], visible


def _link(file: Path, folder: Path) -> str:
    """The address of an image's own file, seen from the folder of the page."""
    try:
        relative = os.path.relpath(file.absolute(), folder.absolute())
    except ValueError:  # on another drive of Windows
        return file.absolute().as_uri()
    return quote(os.fsencode(Path(relative).as_posix()))


def _facts(result: dict) -> list[tuple[str, str]]:
    width, height = result["size"]
    titles = dict.fromkeys(METHODS[found["method"]["name"]].title for found in result["maps"])
    return [
        ("model", result["model"]),
        ("method" if len(titles) == 1 else "methods", ", ".join(titles)),
        ("image", f"{width} × {height} pixels"),
    ]


def _details(result: dict) -> list[tuple[str, str]]:
    """What few readers need: the methods' options, and how long each step took."""
    methods = {found["method"]["name"]: found["method"] for found in result["maps"]}
    return [
        *((METHODS[name].title, _options(method)) for name, method in methods.items()),
        *((f"{step}, ms", f"{value:.1f}") for step, value in result["milliseconds"].items()),
    ]


def _options(method: dict) -> str:
    options = [(name, value) for name, value in method.items() if name != "name"]
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options) or "-"


def _thumbnail(path: str, side: int) -> str | None:
    try:
        image = open_image(path)
    except (PictureError, OSError):
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return webp(image)


def _frame(title: str, alpha: float) -> tuple[str, str]:
    """The page before the images, and after them."""
    folder = resources.files("vitexplain.drawing.report")
    style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    style += f":root {{ --blend: {alpha}; }}\n"
    head = (folder / "page.html").read_text(encoding="utf-8")
    parts = {
        "POLICY": policy(style, script),
        "TITLE": html.escape(title),
        "STYLE": style,
        "ALPHA": str(round(100 * alpha)),
    }
    return filled(head, parts), f"<script>{script}</script>\n</body>\n</html>\n"
