"""Which map is faithful to its model? `python -m benchmarks.faithfulness --data photos.zip`

All methods, and two baselines that know nothing of the model, explain the labels of images. See
vitexplain.faithfulness for the measures. Labels allow for more: the grid pointing game (Böhle,
Fritz & Schiele 2021) on mosaics of four images that are classified correctly and confidently; and
on data with boxes, the pointing game and the share of a map in the object's box.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor

from benchmarks.machine import machine
from vitexplain.attention.capture import forward
from vitexplain.device import choose_device
from vitexplain.drawing.charts import draw_randomisation
from vitexplain.errors import RequestError, run_command
from vitexplain.faithfulness.baselines import BASELINES
from vitexplain.faithfulness.measures import ALL, FEW, OTHERS, REMOVED, STEPS, evaluate_images
from vitexplain.faithfulness.passes import BATCH, masks_of
from vitexplain.faithfulness.removal import Removal
from vitexplain.faithfulness.sanity import randomisation
from vitexplain.faithfulness.table import Measure, Values, as_json, as_markdown, caption
from vitexplain.faithfulness.timing import alternating_medians
from vitexplain.markers import write_between
from vitexplain.models.loading import LoadedModel, load_model
from vitexplain.training.classify import classify, confident, label_of
from vitexplain.training.data import LabelledImages, category_of
from vitexplain.training.localisation import (
    MapFunction,
    cell_share,
    groups,
    in_boxes,
    map_functions,
    on_mosaics,
    read_boxes,
    thinned,
)

CELLS = 4
CONFIDENCE = 0.5  # smallest probability of an image in a mosaic
CANDIDATES = 200  # images that are classified to find those for the mosaics
TITLES = {name: method.title for name, method in ALL.items()}
TIMED_STEPS, TIMED_IMAGES = 20, 2
LOCALISED = (
    Measure("cell", "Mosaic ↑", "higher", "mosaics"),
    Measure("pointing", "Pointing ↑", "higher", "images with boxes"),
    Measure("energy", "Energy ↑", "higher", "images with boxes"),
)
COLUMNS = (*REMOVED, *LOCALISED, *OTHERS)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)

    def work() -> None:
        device, _ = choose_device(options.device)
        report = measure(load_model(options.model, options.checkpoint, device=device), options)
        print(report["table"])
        if options.write:
            write_between(Path(options.write), *markers(report["model"]), report["table"])
        if options.json:
            Path(options.json).write_text(json.dumps(report, indent=2), encoding="utf-8")

    return run_command("faithfulness", work)


def markers(model: str) -> tuple[str, str]:
    """Begin and end of a model's table in its page."""
    return (
        f"<!-- faithfulness of {model}: made by benchmarks.faithfulness -->",
        f"<!-- faithfulness of {model} end -->",
    )


def measure(loaded: LoadedModel, options: argparse.Namespace) -> dict:
    """Measure everything, draw the figure if one is wanted, and return the report."""
    data = LabelledImages(options.data)
    names, labels, probabilities = classify(
        loaded, data, sample(data.names, max(options.pictures, CANDIDATES), options.seed), BATCH
    )
    chosen, categories = names[: options.pictures], labels[: options.pictures].tolist()
    images = torch.stack([loaded.transform(data.read(name)) for name in chosen])
    found = evaluate_images(
        loaded.model,
        images,
        loaded.transform.std,
        {name: ALL[name] for name in options.methods},
        categories,
        steps=options.steps,
        few=options.few,
        seed=options.seed,
    )
    values = found.values
    sure = confident(labels, probabilities, CONFIDENCE)
    labelled = [(names[i], int(labels[i])) for i in sure]
    add_localisation(values, loaded, data, labelled, options)
    if options.figure:
        few = images[: options.few], categories[: options.few]
        # baselines do not change with the model: their lines would only hide others
        drawn = [name for name in values if name not in BASELINES]
        draw(loaded, *few, drawn, options.figure, options.seed)
    report = {
        "model": Path(loaded.name).name,
        "data": [Path(p).name for p in (options.data, options.boxes) if p],
        "pictures": len(chosen),
        "rightly_classified": int((probabilities.argmax(axis=1) == labels)[: len(chosen)].sum()),
        "steps": options.steps,
        "machine": machine(str(next(loaded.model.parameters()).device)),
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "deletion_cost": deletion_cost(loaded, images, categories),
        "left_out": found.left_out,
        "methods": as_json(values, COLUMNS, BASELINES),
    }
    return report | {"table": as_text(report, values)}


def add_localisation(
    values: dict[str, dict[str, np.ndarray]],
    loaded: LoadedModel,
    data: LabelledImages,
    labelled: Sequence[tuple[str, int]],
    options: argparse.Namespace,
) -> None:
    """Add the values of LOCALISED to those of each method.

    Args:
        labelled: (name, label) of the images for the mosaics.
    """
    maps = map_functions({name: ALL[name] for name in values}, loaded.model)
    labels = [label for _, label in labelled]
    chosen = groups(labels, CELLS, options.mosaics, options.seed)
    mosaics = [[labelled[i] for i in group] for group in chosen]
    for name, shares in cell_shares(maps, loaded, data, mosaics).items():
        values[name]["cell"] = shares
    if options.boxes:
        boxed = pointing(maps, loaded, LabelledImages(options.boxes), options.boxed)
        for name, columns in values.items():
            columns |= boxed[name]


def cell_shares(
    maps: Mapping[str, MapFunction],
    loaded: LoadedModel,
    data: LabelledImages,
    groups: Sequence[Sequence[tuple[str, int]]],
) -> dict[str, np.ndarray]:
    """Method -> for each mosaic, the share of a map in its own cell, mean over the four cells."""
    shares: dict[str, list[float]] = {}
    for _, masks in on_mosaics(maps, loaded, data, groups):
        for name, of_each in masks.items():
            each = [cell_share(mask, cell, CELLS) for cell, mask in enumerate(of_each)]
            shares.setdefault(name, []).append(np.mean(each))
    return {name: np.array(means) for name, means in shares.items()}


def pointing(
    maps: Mapping[str, MapFunction], loaded: LoadedModel, data: LabelledImages, count: int
) -> dict[str, dict[str, np.ndarray]]:
    """Method -> "pointing", "energy" -> its value for each of `count` images with boxes.

    Raises:
        RequestError: if the data have no boxes.csv.
    """
    text = data.side_file("boxes.csv")
    if text is None:
        raise RequestError(f"{data.path} holds no boxes.csv")
    boxes = read_boxes(text)
    chosen = thinned([name for name in data.names if name in boxes], count)
    labels = {name: label_of(loaded, category_of(name)) for name in chosen}
    return in_boxes(maps, loaded, data, labels, boxes)


def sample(names: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of them, in a random order."""
    order = np.random.default_rng(seed).permutation(len(names))
    return [names[i] for i in order[:count]]


def draw(
    loaded: LoadedModel,
    images: Tensor,
    categories: Sequence[int],
    methods: Sequence[str],
    path: str,
    seed: int,
) -> None:
    """Draw the randomisation test, stage by stage."""
    stages, alike = randomisation(
        loaded.model, images, categories, {name: ALL[name] for name in methods}, seed=seed
    )
    draw_randomisation(stages, alike, TITLES).save(path)


def deletion_cost(loaded: LoadedModel, images: Tensor, categories: Sequence[int]) -> float:
    """Seconds of a deletion curve ÷ seconds of as many plain forward passes as it has steps."""
    device = next(loaded.model.parameters()).device
    images, categories = images[:TIMED_IMAGES].to(device), categories[:TIMED_IMAGES]
    masks = masks_of(BASELINES["random"], loaded.model, images, categories)

    @torch.inference_mode()
    def passes() -> None:
        for _ in range(TIMED_STEPS):
            forward(loaded.model, images)

    def deletion() -> None:
        # in batches of the same size as the plain passes
        removal = Removal(
            loaded.model, images, categories, "mean", TIMED_STEPS, batch_size=len(images)
        )
        removal.deletion(masks)

    seconds = alternating_medians({"passes": passes, "deletion": deletion}, device)
    return seconds["deletion"] / seconds["passes"]


def as_text(report: dict, values: Values) -> str:
    """Markdown: what was measured, and two tables, as one would be too wide."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"{report['model']} on {report['pictures']} images of {' and '.join(report['data'])}, "
        f"{report['rightly_classified']} of them correctly classified; curves of "
        f"{report['steps']} steps; {report['machine']}; {versions}. "
        f"{caption(values, COLUMNS, BASELINES)}",
        "",
        as_markdown(values, REMOVED, TITLES, BASELINES),
        "",
        as_markdown(values, (*LOCALISED, *OTHERS), TITLES, BASELINES),
        "",
        f"A deletion curve of {TIMED_STEPS} steps took {report['deletion_cost']:.2f} times as long "
        f"as {TIMED_STEPS} forward passes.",
    ]
    for name, reason in report["left_out"].items():
        lines.append(f"{TITLES[name]} is left out: {reason}.")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--data", required=True, help="folder of folders, or a zip file of the same layout")
    add("--boxes", help="the same with a boxes.csv; may be small images")
    add("--model", default="bundled", help="as for vit_explain.py")
    add("--checkpoint", help="as for vit_explain.py")
    add("--device", default="cpu", help="auto, cpu, cuda or mps")
    add("--methods", nargs="+", choices=ALL, default=list(ALL), metavar="METHOD")
    add("--pictures", type=int, default=30, help="for insertion, deletion and perturbation")
    add("--steps", type=int, default=STEPS, help="of the curves, a multiple of 10")
    add("--few", type=int, default=FEW, help="images for randomisation, stability and the figure")
    add("--mosaics", type=int, default=10, help="of four images each")
    add("--boxed", type=int, default=24, help="images with boxes")
    add("--seed", type=int, default=0)
    add("--write", metavar="PAGE", help="put the tables between the model's markers")
    add("--json", metavar="FILE", help="write the whole report as JSON")
    add("--figure", metavar="PNG", help="draw the randomisation test, stage by stage")
    return parser


if __name__ == "__main__":
    sys.exit(main())
