"""Which other maps would be better than the product's, and which would not?

    python -m benchmarks.candidates --data photos.zip --masks masks.zip --values FILE.jsonl

Each candidate is compared with methods of the product, image by image, for two questions: which
patches change the answer (faithfulness, of each image's most likely category), and where the object
is (foreground IoU). Every other image is for exploring; a candidate is judged by the rest.

It takes long, and may be interrupted: see benchmarks.faithfulness.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch

from benchmarks import evidence, pages
from benchmarks.candidate_list import CANDIDATES, FIVE
from benchmarks.evidence import Bench, bench_for
from benchmarks.faithfulness import Pictures, pictures, with_masks
from benchmarks.pages import model_of
from vitexplain.errors import RequestError
from vitexplain.faithfulness.intervals import interval_of
from vitexplain.faithfulness.measures import STEPS
from vitexplain.faithfulness.states import FILLS
from vitexplain.faithfulness.table import known
from vitexplain.methods.registry import METHODS
from vitexplain.models.loading import LoadedModel
from vitexplain.training.data import LabelledImages

ALL = {name: METHODS[name] for name in FIVE} | {
    name: candidate.method for name, candidate in CANDIDATES.items()
}
QUESTIONS = {"faithfulness": "Faithfulness", "foreground_iou": "Foreground IoU"}
HALVES = {"explored": slice(0, None, 2), "confirmed": slice(1, None, 2)}

# key of a question -> method -> its value for each image
ByQuestion = Mapping[str, Mapping[str, np.ndarray]]


markers = partial(pages.markers, "candidates on", "candidates")


def main(arguments: list[str] | None = None) -> int:
    return pages.run("candidates", parser().parse_args(arguments), measure, markers)


def measure(loaded: LoadedModel, options: argparse.Namespace) -> str:
    """Measure what is not kept yet, and return the table."""
    wanted = {name: ALL[name] for name in dict.fromkeys((*FIVE, *options.candidates))}
    bench, left_out = bench_for(loaded, wanted, options, 0, FILLS)
    images = pictures(options, LabelledImages(options.data))
    evidence.removal(bench, images.read, images.names)
    answers = {"faithfulness": columns(bench, "removal", images.names, "faithfulness")}
    if options.masks:
        names = with_masks(bench, options)
        answers["foreground_iou"] = columns(bench, "masks", names, "foreground_iou")
    return as_text(heading(loaded, images, options), answers, left_out)


def columns(bench: Bench, part: str, images: Sequence[str], key: str) -> dict[str, np.ndarray]:
    """Method -> (n,), all kept values of one measure, NaN where there is none.

    Raises:
        RequestError: if there is no value at all.
    """
    found = bench.kept.columns(part, images)
    if not found:
        raise RequestError(f"nothing to compare: no image for {key} was measured")
    return {name: found[name][key] for name in ALL if name in found}


def as_text(heading: str, answers: ByQuestion, left_out: Mapping[str, str]) -> str:
    """Markdown: what was measured, and a row for each candidate and each that it has to beat."""
    best = {key: best_single(values) for key, values in answers.items()}
    columns = [Column(key, half, answers[key]) for key in answers for half in HALVES]
    lines = [
        f"{heading} {caption(best)}",
        "",
        f"| candidate | compared with | {' | '.join(column.head for column in columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, candidate in CANDIDATES.items():
        if name not in answers["faithfulness"]:
            continue
        title = f" {candidate.method.title} "
        for other in candidate.others:
            cells = " | ".join(column.cell(name, other) for column in columns)
            lines.append(f"|{title}| {ALL[other].title} | {cells} |")
            title = " "
        cells = " | ".join(column.cell(name, best[column.key]) for column in columns)
        lines.append(f"| | the best single method | {cells} |")
    lines += [f"\n{ALL[name].title} is left out: {reason}." for name, reason in left_out.items()]
    return "\n".join(lines)


@dataclass(frozen=True)
class Column:
    """One half of the images, for one question.

    Attributes:
        key: in QUESTIONS.
        half: in HALVES.
        values: method -> its value for each image of both halves.
    """

    key: str
    half: str
    values: Mapping[str, np.ndarray]

    @property
    def count(self) -> int:
        """Images that were measured."""
        return max(len(known(self.of_half(name))) for name in self.values)

    @property
    def head(self) -> str:
        return f"{QUESTIONS[self.key]}, {self.half}, n = {self.count}"

    def of_half(self, name: str) -> np.ndarray:
        return self.values[name][HALVES[self.half]]

    def cell(self, name: str, other: str) -> str:
        """The mean paired difference with its interval, bold if the first is better by it."""
        if not {name, other} <= self.values.keys():
            return ""
        pairs = known(self.of_half(name) - self.of_half(other))
        if not len(pairs):
            return ""
        text, interval = f"{pairs.mean():+.3f}", interval_of(pairs)
        if interval is not None:
            text += " [{:+.3f}, {:+.3f}]".format(*interval)
            text = f"**{text}**" if interval[0] > 0 else text
        return text if len(pairs) == self.count else f"{text}, n = {len(pairs)}"


def best_single(values: Mapping[str, np.ndarray]) -> str:
    """The one of FIVE with the highest mean over the explored images."""
    means = {name: known(values[name][HALVES["explored"]]) for name in FIVE if name in values}
    return max(means, key=lambda name: means[name].mean())


def heading(loaded: LoadedModel, images: Pictures, options: argparse.Namespace) -> str:
    """What was measured, on what, by what."""
    data = " and ".join(dict.fromkeys(source.path.name for source in images.sources.values()))
    held_out = ", none of which trained it" if options.held_out else ""
    masks = f", objects of {Path(options.masks).name}" if options.masks else ""
    return (
        f"{model_of(loaded)}: images of {data}{held_out}{masks}; curves of {options.steps} steps; "
        f"torch {torch.__version__}, timm {timm.__version__}."
    )


def caption(best: Mapping[str, str]) -> str:
    """What is in the cells."""
    singles = ", ".join(f"{ALL[name].title} for {QUESTIONS[key]}" for key, name in best.items())
    return (
        "Mean paired differences with 95 % intervals by Student's t; bold where the candidate is "
        f"better by the whole interval. The best single method of the explored images is {singles}."
    )


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=formatter
    )
    add = parser.add_argument
    pages.add_options(parser)
    add("--masks", help="images with masks of their objects, see vitexplain.training.masks")
    add(
        "--candidates",
        nargs="+",
        choices=CANDIDATES,
        default=list(CANDIDATES),
        metavar="NAME",
        help="that are measured; the table has all whose values are kept",
    )
    add("--pictures", type=int, default=80, help="whose patches are removed, half of them explored")
    add("--masked", type=int, default=60, help="images with masks, half of them explored")
    add("--steps", type=int, default=STEPS, help="of the curves, a multiple of 10")
    add("--values", metavar="JSONL", help="keeps the values of each image: a run can be resumed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
