"""Evaluate a model on labels: `python -m vitexplain.training.evaluate --data FOLDER_OR_ZIP`.

Accuracy, calibration and confusion, and whether the model's maps fall on what they explain: in
boxes, if the data have a boxes.csv, and on mosaics of confidently classified images of several
categories.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitexplain.choices import CROPS
from vitexplain.device import choose_device
from vitexplain.drawing.heatmap import draw_overlay
from vitexplain.errors import run_command
from vitexplain.faithfulness.intervals import interval_of
from vitexplain.images.region import Region
from vitexplain.images.writing import writable_folder
from vitexplain.models.loading import LoadedModel, any_model, load_model
from vitexplain.progress import bar_or_lines
from vitexplain.training.accuracy import Share, confusion
from vitexplain.training.classify import accuracy, classify, confident
from vitexplain.training.data import DataError, LabelledImages, category_of, is_held_out
from vitexplain.training.localisation import (
    MapFunction,
    cell_share,
    groups,
    in_boxes,
    map_functions,
    methods_for,
    on_mosaics,
    read_boxes,
    thinned,
)
from vitexplain.training.page import confusion_image, page
from vitexplain.training.pointing import in_words, worst
from vitexplain.words import to_json

SHOWN_MOSAICS = 6
SHOWN_MISSES = 6


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)

    def work() -> None:
        report = evaluate(options)
        print(to_json(report, indent=2) if options.json else as_text(report))

    return run_command("evaluate", work, less_memory="lower --batch_size")


def evaluate(options: argparse.Namespace, loaded: LoadedModel | None = None) -> dict:
    """Measure all that the data allow, and write the files that show it.

    Args:
        loaded: the model, if it is loaded already.

    Returns:
        The report, as in report.json.
    """
    output = writable_folder(options.output)
    data = LabelledImages(options.data)
    loaded = loaded or loaded_for(options)
    names = _chosen(data.names, options.held_out)
    names, labels, probabilities = classify(loaded, data, names, options.batch_size)
    report = {
        "model": loaded.name,
        "data": str(options.data),
        "pictures": len(names),
        "crop": options.crop,
        "accuracy": accuracy(labels, probabilities),
    }
    report["per_category"] = per_category(loaded, labels, probabilities, output)
    shown: list[tuple[str, Image.Image]] = []
    if methods := methods_for(loaded.model):
        maps = map_functions(methods, loaded.model)
        of_category = {name: maps[name] for name in maps if methods[name].of_category}
        if text := data.side_file("boxes.csv"):
            boxes = read_boxes(text)
            labelled = dict(zip(names, labels.tolist(), strict=True))
            found, chosen = _on_boxes(maps, loaded, data, labelled, boxes, options.boxes)
            report["boxes"] = {name: _box_figures(**columns) for name, columns in found.items()}
            report["boxes_in_words"] = in_words(found) if found else []
            if found:
                method = next(iter(of_category))
                missed = found[method]["energy"], chosen, boxes, maps[method]
                shown += worst(*missed, loaded, data, SHOWN_MISSES)
        sure = [
            (names[i], int(labels[i])) for i in confident(labels, probabilities, options.confidence)
        ]
        for cells in (2, 4):
            report[f"mosaics_{cells}"], samples = _on_mosaics(
                of_category, loaded, data, sure, cells, options
            )
            shown += samples
    counts = confusion(probabilities.argmax(axis=1), labels)
    image = confusion_image(*counts, loaded.categories)
    image.save(output / "confusion.png")
    text = page(as_text(report), [("Confusion", image), *shown])
    (output / "report.html").write_text(text, encoding="utf-8")
    (output / "report.json").write_text(to_json(report, indent=2), encoding="utf-8")
    return report


def loaded_for(options: argparse.Namespace) -> LoadedModel:
    """The model that the options name, whether or not it can be explained."""
    return load_model(
        options.model,
        options.checkpoint,
        options.class_names,
        choose_device(options.device)[0],
        options.crop,
        check=any_model,
    )


def per_category(
    loaded: LoadedModel, labels: np.ndarray, probabilities: np.ndarray, output: Path
) -> str:
    """Write a row per category to categories.csv; returns its path."""
    path = output / "categories.csv"
    predicted = probabilities.argmax(axis=1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "category", "pictures", "top1", "mean_probability"])
        for label in np.unique(labels):
            own = labels == label
            right, mean = (predicted[own] == label).mean(), probabilities[own, label].mean()
            name = loaded.categories[label]
            writer.writerow([label, name, own.sum(), f"{right:.4f}", f"{mean:.4f}"])
    return str(path)


def _on_boxes(
    maps: Mapping[str, MapFunction],
    loaded: LoadedModel,
    data: LabelledImages,
    labels: Mapping[str, int],
    boxes: Mapping[str, Region],
    count: int,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """Of every method, and of a centre Gaussian, the values of at most `count` images with boxes;
    and these images with their categories."""
    chosen = thinned([name for name in labels if name in boxes], count)
    chosen = {name: labels[name] for name in chosen}
    return in_boxes(maps, loaded, data, chosen, boxes, bar_or_lines), chosen


def _box_figures(pointing: np.ndarray, energy: np.ndarray) -> dict:
    share = Share(pointing.sum(), len(pointing))
    return {
        "pictures": len(pointing),
        "pointing": share.value,
        "pointing_interval": share.interval,
        "energy": energy.mean(),
        "energy_interval": interval_of(energy),
    }


def _on_mosaics(
    maps: Mapping[str, MapFunction],
    loaded: LoadedModel,
    data: LabelledImages,
    sure: Sequence[tuple[str, int]],
    cells: int,
    options: argparse.Namespace,
) -> tuple[dict, list[tuple[str, Image.Image]]]:
    """Figures of every method on mosaics of 2 or 4 images, and some mosaics with a map."""
    labels = [label for _, label in sure]
    chosen = groups(labels, cells, options.mosaics, options.seed)
    of_cells = [[sure[i] for i in group] for group in chosen]
    shares: dict[str, list[float]] = {}
    shown = []
    found = on_mosaics(maps, loaded, data, bar_or_lines(of_cells, f"mosaics of {cells}"))
    for number, (group, (canvas, masks)) in enumerate(zip(of_cells, found, strict=True)):
        for method, of_each in masks.items():
            shares.setdefault(method, []).extend(
                cell_share(mask, index, cells) for index, mask in enumerate(of_each)
            )
        if number < SHOWN_MOSAICS:
            name, drawn = loaded.categories[group[0][1]], next(iter(masks.values()))[0]
            shown.append((f"{cells} images, for: {name}", draw_overlay(canvas, drawn)))
    return {m: _mosaic_figures(np.array(v), cells) for m, v in shares.items()}, shown


def _mosaic_figures(shares: np.ndarray, cells: int) -> dict:
    return {
        "maps": len(shares),
        "chance": 1 / cells,
        "in_right_cell": shares.mean(),
        "interval": interval_of(shares),
        "right_cell_heavier_than_the_rest": float((shares > 0.5).mean()),
    }


def _chosen(names: list[str], held_out: bool) -> list[str]:
    if not held_out:
        return names
    chosen = [n for n in names if is_held_out(int(category_of(n)))]
    if not chosen:
        raise DataError("no image of the data is in the held-out split")
    return chosen


def as_text(report: dict) -> str:
    """The report in lines for a terminal."""
    figures = report["accuracy"]
    lines = [f"{report['model']} on {report['pictures']} images of {report['data']}"]
    for k in (1, 5):
        top = figures[f"top{k}"]
        low, high = top["interval"]
        lines.append(f"  top-{k}: {top['value']:.3f} ({low:.3f} to {high:.3f}), {top['right']}")
    lines.append(f"  expected calibration error: {figures['calibration_error']:.3f}")
    for method, found in report.get("boxes", {}).items():
        lines.append(
            f"  boxes, {method}: pointing {found['pointing']:.3f}, energy {found['energy']:.3f}"
            f"{_in_brackets(found['energy_interval'])}"
        )
    lines += (f"  {sentence}" for sentence in report.get("boxes_in_words", ()))
    for cells in (2, 4):
        for method, found in report.get(f"mosaics_{cells}", {}).items():
            lines.append(
                f"  mosaics of {cells}, {method}: {found['in_right_cell']:.3f} of the map in the "
                f"right cell{_in_brackets(found['interval'])}, heavier "
                f"there in {found['right_cell_heavier_than_the_rest']:.3f} of {found['maps']}"
            )
    return "\n".join(lines)


def _in_brackets(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--data", required=True, help="folder of folders, or a zip file of the same layout")
    add("--output", default="evaluation", help="folder for report, tables and images")
    add("--model", default="auto", help="as for vit_explain.py")
    add("--checkpoint", help="as for vit_explain.py")
    add("--class_names", help="as for vit_explain.py")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--crop", default="none", choices=CROPS, help="as for vit_explain.py")
    add("--held_out", action="store_true", help="only categories whose index mod 5 is 1")
    add("--confidence", type=float, default=0.5, help="least probability for mosaics")
    add("--mosaics", type=int, default=100, help="mosaics of each size")
    add("--boxes", type=int, default=500, help="how many images with boxes, at most")
    add("--batch_size", type=int, default=32)
    add("--seed", type=int, default=0, help="decides which images form a mosaic")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
