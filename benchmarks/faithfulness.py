"""Which map is faithful to its model, and which finds the object?

    python -m benchmarks.faithfulness --data photos.zip --boxes thumbs_val.zip --values FILE.jsonl

All methods, and two baselines that know nothing of the model, explain images. Which patches change
the answer is measured by removing them (see vitexplain.faithfulness), of each image's most likely
category. Labels allow for more: the grid pointing game (Böhle, Fritz & Schiele 2021) on mosaics of
four images that are classified correctly and confidently; and on data with boxes, the pointing game
and the share of a map in the object's box.

It takes hours, and may be interrupted: with --values, each image's values are kept in a file, and
the next run measures what that file lacks.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks import evidence, pages
from benchmarks.evidence import CEILING, Bench, bench_for
from benchmarks.machine import machine
from benchmarks.pages import model_of
from vitexplain.drawing.charts import draw_differences, draw_randomisation
from vitexplain.errors import RequestError
from vitexplain.faithfulness.baselines import BASELINES
from vitexplain.faithfulness.measures import ALL, OTHERS, REMOVED, STEPS
from vitexplain.faithfulness.passes import top1
from vitexplain.faithfulness.sanity import randomisation
from vitexplain.faithfulness.segmentation import SEGMENTED
from vitexplain.faithfulness.table import Behind, Measure, Values, as_markdown, behind, caption
from vitexplain.methods.questions import sentence
from vitexplain.models.loading import LoadedModel
from vitexplain.training.classify import label_of
from vitexplain.training.data import LabelledImages, category_of
from vitexplain.training.localisation import read_boxes, thinned
from vitexplain.training.masks import MaskedImages
from vitexplain.training.placement import BOXED
from vitexplain.words import CHANGES, OBJECT

DRAWN = 5  # images of the randomisation test's figure
TITLES = {name: method.title for name, method in ALL.items()} | {CEILING: "greedy order"}
IN_ITALICS = {*BASELINES, CEILING}  # never the best
LOCALISED = (Measure("cell", "Mosaic ↑", "higher", "mosaics"), *BOXED)
TABLES = {
    sentence(CHANGES): REMOVED,
    sentence(OBJECT): (*SEGMENTED, *LOCALISED),
    "Whether the map is of this model and image, and what it costs": OTHERS,
}
DECISIVE = {sentence(CHANGES): "faithfulness", sentence(OBJECT): "foreground_iou"}
COLUMNS = tuple(measure for table in TABLES.values() for measure in table)
FOREST = ("faithfulness", "foreground_iou", "cell", "energy")


markers = partial(pages.markers, "faithfulness of", "faithfulness")


def main(arguments: list[str] | None = None) -> int:
    return pages.run("faithfulness", parser().parse_args(arguments), measure, markers)


def machine_of(loaded: LoadedModel) -> str:
    return machine(str(next(loaded.model.parameters()).device))


def measure(loaded: LoadedModel, options: argparse.Namespace) -> str:
    """Measure what is not kept yet, draw the figures that are wanted, and return the tables."""
    methods = {name: ALL[name] for name in options.methods}
    bench, left_out = bench_for(loaded, methods, options, options.fewer)
    data = LabelledImages(options.data)
    images = pictures(options, data)
    few = images.names[: options.few]
    parts = {
        "removal": images.names,
        "stability": few,
        "randomisation": evidence.SHUFFLED,
        "time": [machine_of(loaded)],
    }
    evidence.removal(bench, images.read, images.names)
    evidence.ceilings(bench, images.read, images.names[: options.ceiling])
    evidence.changes(bench, images.read, few)
    evidence.times(bench, images.read, images.names, machine_of(loaded))
    if options.masks:
        parts["masks"] = with_masks(bench, options)
    if options.boxes:
        parts["boxes"] = with_boxes(bench, options)
    parts["mosaics"] = on_mosaics(bench, data, options)
    values = merged(bench, parts)
    if options.figure:
        draw(bench, images, options.figure)
    if options.forest:
        shown = [measure for measure in COLUMNS if measure.key in FOREST]
        draw_differences(values, shown, TITLES, BASELINES).save(options.forest)
    return as_text(heading(loaded, images, options), values, left_out)


def merged(bench: Bench, parts: Mapping[str, Sequence[str]]) -> Values:
    """Method -> key -> its values, of all parts; a ceiling is a row of its own."""
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in (*bench.methods, CEILING)}
    for part, images in parts.items():
        for method, columns in bench.kept.columns(part, images).items():
            if method in found:
                found[method] |= columns
    return {method: columns for method, columns in found.items() if columns}


@dataclass(frozen=True)
class Pictures:
    """Those whose most likely category is explained.

    Attributes:
        names: in a random order.
        sources: where each is read.
    """

    names: list[str]
    sources: dict[str, LabelledImages | MaskedImages]

    def read(self, name: str) -> Image.Image:
        return self.sources[name].read(name)


def pictures(options: argparse.Namespace, data: LabelledImages) -> Pictures:
    """`options.pictures` of the data; and where these do not suffice, of the images with masks."""
    names = sample(evidence.chosen(data, options.held_out), options.pictures, options.seed)
    sources: dict[str, LabelledImages | MaskedImages] = dict.fromkeys(names, data)
    if options.masks and len(names) < options.pictures:
        masked = MaskedImages(options.masks)
        others = sample(masked.names, options.pictures - len(names), options.seed)
        sources |= dict.fromkeys(others, masked)
    return Pictures(list(sources), sources)


def sample(names: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of them, in a random order: the first ones are the same of any count."""
    order = np.random.default_rng(seed).permutation(len(names))
    return [names[i] for i in order[:count]]


def with_masks(bench: Bench, options: argparse.Namespace) -> list[str]:
    """Measure on images with masks; returns their names."""
    data = MaskedImages(options.masks)
    names = sample(data.names, options.masked, options.seed)
    evidence.masks(bench, data, names)
    return names


def with_boxes(bench: Bench, options: argparse.Namespace) -> list[str]:
    """Measure on images with boxes; returns their names.

    Raises:
        RequestError: if the data have no boxes.csv.
    """
    data = LabelledImages(options.boxes)
    text = data.side_file("boxes.csv")
    if text is None:
        raise RequestError(f"{data.path} holds no boxes.csv")
    found = read_boxes(text)
    names = thinned([name for name in data.names if name in found], options.boxed)
    names = sample(names, len(names), options.seed)
    labels = {name: label_of(bench.loaded, category_of(name)) for name in names}
    evidence.boxes(bench, data, names, labels, found)
    return names


def on_mosaics(bench: Bench, data: LabelledImages, options: argparse.Namespace) -> list[str]:
    """Measure on mosaics; returns their names."""
    given = {"held_out": options.held_out, "seed": options.seed}
    groups = evidence.mosaics_of(bench.loaded, data, options.mosaics, **given)
    evidence.mosaics(bench, data, groups)
    return [evidence.name_of(group) for group in groups]


def draw(bench: Bench, images: Pictures, path: str) -> None:
    """Draw the randomisation test, stage by stage."""
    tensors = bench.tensors(images.read, images.names[:DRAWN])
    categories = top1(bench.loaded.model, tensors)
    # baselines do not change with the model: their lines would only hide others
    left_out = {*BASELINES, *evidence.SLOW}
    methods = {name: each for name, each in bench.methods.items() if name not in left_out}
    stages, alike = randomisation(bench.loaded.model, tensors, categories, methods)
    draw_randomisation(stages, alike, TITLES).save(path)


def heading(loaded: LoadedModel, images: Pictures, options: argparse.Namespace) -> str:
    """What was measured, on what, by what."""
    counts = Counter(str(source.path.name) for source in images.sources.values())
    of = " and ".join(f"{count} of {name}" for name, count in counts.items())
    held_out = ", none of which trained it" if options.held_out else ""
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    return (
        f"{model_of(loaded)}: {of}{held_out}; curves of {options.steps} steps; methods that need "
        f"a hundred passes on fewer; times on {machine_of(loaded)}; {versions}."
    )


def as_text(heading: str, values: Values, left_out: Mapping[str, str]) -> str:
    """Markdown: what was measured, and a table for each question, as one would be too wide."""
    lines = [f"{heading} {caption(values, COLUMNS, IN_ITALICS)}"]
    for question, measures in TABLES.items():
        if any(measure.key in columns for columns in values.values() for measure in measures):
            rows = {
                name: columns
                for name, columns in values.items()
                if any(measure.key in columns for measure in measures)
            }
            table = as_markdown(rows, measures, TITLES, IN_ITALICS)
            lines += ["", f"**{question}**", "", table, *advice(question, values)]
    lines += [f"\n{TITLES[name]} is left out: {reason}." for name, reason in left_out.items()]
    return "\n".join(lines)


def advice(question: str, values: Values) -> list[str]:
    """What to use for a question: the best by its decisive measure, and who is not worse."""
    measure = next((measure for measure in COLUMNS if measure.key == DECISIVE.get(question)), None)
    measured = {name: of for name, of in values.items() if measure and measure.key in of}
    if not measured:
        return []
    compared = behind(measured, measure, IN_ITALICS)
    methods = sorted(
        (name for name in measured if name not in IN_ITALICS),
        key=lambda name: -compared[name].mean if name in compared else -np.inf,
    )
    best = [name for name in methods if name not in compared or not compared[name].worse]
    use = " or ".join(TITLES[name] for name in best)
    worse = [name for name in methods if name not in best]
    sentence = f"For {question[0].lower()}{question[1:]}, use {use}"
    if worse:
        of = measure.title[0].lower() + measure.title[1:].rstrip(" ↑")
        sentence += f"; {TITLES[worse[0]]} comes next, {_in_words(compared[worse[0]])} in {of}"
    return ["", f"{sentence}."]


def _in_words(each: Behind) -> str:
    if each.interval is None:
        return f"{each.mean:+.3f} (n = {each.count})"
    low, high = each.interval
    return f"{each.mean:+.3f} ({low:+.3f} to {high:+.3f}, n = {each.count})"


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=formatter
    )
    add = parser.add_argument
    pages.add_options(parser)
    add("--boxes", help="the same with a boxes.csv; may be small images")
    add("--masks", help="images with masks of their objects, see vitexplain.training.masks")
    add("--methods", nargs="+", choices=ALL, default=list(ALL), metavar="METHOD")
    add("--pictures", type=int, default=300, help="whose patches are removed; of --data first")
    add("--fewer", type=int, default=100, help=f"of any images, for {' and '.join(evidence.SLOW)}")
    add("--steps", type=int, default=STEPS, help="of the curves, a multiple of 10")
    add("--ceiling", type=int, default=10, help="images for the greedy order")
    add("--few", type=int, default=10, help="images for stability")
    add("--mosaics", type=int, default=200, help="of four images each")
    add("--masked", type=int, default=300, help="images with masks")
    add("--boxed", type=int, default=500, help="images with boxes")
    add("--values", metavar="JSONL", help="keeps the values of each image: a run can be resumed")
    add("--figure", metavar="PNG", help="draw the randomisation test, stage by stage")
    add("--forest", metavar="PNG", help="draw the paired differences to the best method")
    return parser


if __name__ == "__main__":
    sys.exit(main())
