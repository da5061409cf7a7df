"""Do maps keep to their object when it is set against others? `python -m benchmarks.contrast`

The grid pointing game (Böhle, Fritz & Schiele 2021) on mosaics of four images that are classified
correctly and confidently: the share of a category's map, its positive part, in that category's
cell. Each mosaic is explained as it is, and with `--against auto`; the difference is paired.
"""

import argparse
import sys
from functools import partial

import numpy as np

from benchmarks import pages
from benchmarks.evidence import CELLS, mosaics_of, own_cells
from benchmarks.pages import model_of
from vitexplain.errors import RequestError
from vitexplain.methods.base import CategoryMethod
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import LoadedModel
from vitexplain.progress import bar_or_lines
from vitexplain.training.data import LabelledImages
from vitexplain.training.localisation import MapFunction, map_functions, on_mosaics

TWO_SIDED = 1.97  # deviations of 95 % of Student's t, from some 200 mosaics on


markers = partial(pages.markers, "contrast of", "contrast")


def main(arguments: list[str] | None = None) -> int:
    return pages.run("contrast", parser().parse_args(arguments), measure, markers)


def measure(loaded: LoadedModel, options: argparse.Namespace) -> str:
    return as_table(loaded, shares(loaded, options))


def shares(loaded: LoadedModel, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Method -> (mosaics, 2): the mean share of a map in its own cell, plain and in contrast."""
    data = LabelledImages(options.data)
    given = {"held_out": options.held_out, "seed": options.seed}
    mosaics = mosaics_of(loaded, data, options.mosaics, **given)
    if not mosaics:
        raise RequestError(f"{options.data}: too few categories are recognised for mosaics")
    methods = {name: METHODS[name] for name in options.methods}
    contrasts = {
        f"{name} auto": in_contrast(method.make(loaded.model)) for name, method in methods.items()
    }
    maps = map_functions(methods, loaded.model) | contrasts
    found = on_mosaics(maps, loaded, data, bar_or_lines(mosaics, "mosaics"))
    of_each = [{name: own_cells(of) for name, of in masks.items()} for _, masks in found]
    return {
        name: np.array([[shares[name], shares[f"{name} auto"]] for shares in of_each])
        for name in methods
    }


def in_contrast(made: CategoryMethod) -> MapFunction:
    """Each category of an image against its own rivals: what speaks for it."""
    return lambda x, categories: np.concatenate(
        [made.explain(x, [each], "auto").masks.clip(min=0) for each in categories]
    )


def as_table(loaded: LoadedModel, values: dict[str, np.ndarray]) -> str:
    """Means, and the paired difference with its 95 % interval."""
    count = len(next(iter(values.values())))
    lines = [
        f"{model_of(loaded)}, {count} mosaics of {CELLS} images: share of a map in its cell.",
        "",
        "| method | plain | `--against auto` | paired difference |",
        "|---|---|---|---|",
    ]
    for name, pairs in values.items():
        difference = pairs[:, 1] - pairs[:, 0]
        margin = TWO_SIDED * difference.std(ddof=1) / count**0.5
        low, high = difference.mean() - margin, difference.mean() + margin
        lines.append(
            f"| {METHODS[name].title} | {pairs[:, 0].mean():.3f} | {pairs[:, 1].mean():.3f} "
            f"| {difference.mean():+.3f} ({low:+.3f} to {high:+.3f}) |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    of_category = [name for name, method in METHODS.items() if method.of_category]
    pages.add_options(parser)
    add("--methods", nargs="+", choices=of_category, default=["grad_rollout", "relevance"])
    add("--mosaics", type=int, default=240)
    return parser


if __name__ == "__main__":
    sys.exit(main())
