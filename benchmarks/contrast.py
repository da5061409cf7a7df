"""Do maps keep to their object when it is set against others? `python -m benchmarks.contrast`

The grid pointing game (Böhle, Fritz & Schiele 2021) on mosaics of four images that are classified
correctly and confidently: the share of a category's map, its positive part, in that category's
cell. Each mosaic is explained as it is, and with `--against auto`; the difference is paired.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.evidence import CELLS, mosaics_of, own_cells
from vitexplain.device import choose_device
from vitexplain.errors import RequestError, run_command
from vitexplain.markers import write_between
from vitexplain.methods.base import CategoryMethod
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import LoadedModel, load_model
from vitexplain.progress import bar_or_lines
from vitexplain.training.data import LabelledImages
from vitexplain.training.localisation import MapFunction, map_functions, on_mosaics

TWO_SIDED = 1.97  # deviations of 95 % of Student's t, from some 200 mosaics on


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)

    def work() -> None:
        device, _ = choose_device(options.device)
        loaded = load_model(options.model, options.checkpoint, device=device)
        table = as_table(loaded, shares(loaded, options))
        print(table)
        if options.write:
            write_between(Path(options.write), *markers(Path(loaded.name).name), table)

    return run_command("contrast", work)


def markers(model: str) -> tuple[str, str]:
    """Begin and end of a model's table in its page."""
    return (
        f"<!-- contrast of {model}: made by benchmarks.contrast -->",
        f"<!-- contrast of {model} end -->",
    )


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
        f"{Path(loaded.name).name}, {count} mosaics of {CELLS} images: share of a map in its cell.",
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
    add("--data", required=True, help="folders of images named by category index, or a zip file")
    add("--model", default="bundled", help="as for vit_explain.py")
    add("--checkpoint", help="as for vit_explain.py")
    add("--device", default="cpu", help="auto, cpu, cuda or mps")
    add("--held_out", action="store_true", help="only categories whose index mod 5 is 1")
    add("--methods", nargs="+", choices=of_category, default=["grad_rollout", "relevance"])
    add("--mosaics", type=int, default=240)
    add("--seed", type=int, default=0, help="decides which images form a mosaic")
    add("--write", help="page with this model's markers, whose table is replaced")
    return parser


if __name__ == "__main__":
    sys.exit(main())
