"""Benchmarks of one model, whose table has a place of its own in a page."""

import argparse
from collections.abc import Callable
from pathlib import Path

from vitexplain.device import choose_device
from vitexplain.errors import run_command
from vitexplain.markers import write_between
from vitexplain.models.loading import LoadedModel, load_model


def add_options(parser: argparse.ArgumentParser) -> None:
    """What all of them ask for: labelled images, a model, and where the table goes."""
    add = parser.add_argument
    add("--data", required=True, help="folder of folders, or a zip file of the same layout")
    add("--held_out", action="store_true", help="of --data, only categories whose index mod 5 is 1")
    add("--model", default="bundled", help="as for vit_explain.py")
    add("--checkpoint", help="as for vit_explain.py")
    add("--device", default="cpu", help="auto, cpu, cuda or mps")
    add("--seed", type=int, default=0, help="decides which images are taken")
    add("--write", metavar="PAGE", help="put the table between the model's markers")


def run(
    benchmark: str,
    options: argparse.Namespace,
    measure: Callable[[LoadedModel, argparse.Namespace], str],
    markers: Callable[[str], tuple[str, str]],
) -> int:
    """Measure, print the table, and put it into its page if that is wanted.

    Args:
        measure: returns the table in Markdown.
        markers: of a model's name, see `markers`.
    """

    def work() -> None:
        device, _ = choose_device(options.device)
        loaded = load_model(options.model, options.checkpoint, device=device)
        table = measure(loaded, options)
        print(table)
        if options.write:
            write_between(Path(options.write), *markers(model_of(loaded)), table)

    return run_command(benchmark, work)


def markers(subject: str, benchmark: str, model: str) -> tuple[str, str]:
    """Begin and end of a model's table in its page."""
    return (
        f"<!-- {subject} {model}: made by benchmarks.{benchmark} -->",
        f"<!-- {subject} {model} end -->",
    )


def model_of(loaded: LoadedModel) -> str:
    """The model's name in tables."""
    return Path(loaded.name).name
