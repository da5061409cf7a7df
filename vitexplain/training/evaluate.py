"""Evaluate a model on labels: `python -m vitexplain.training.evaluate --data FOLDER_OR_ZIP`.

Accuracy, calibration and confusion; and, because these models are made to be looked at, whether
their maps fall on what they are about: on boxes, where boxes.csv gives some, and on mosaics of
confidently classified images of several categories.
"""

import argparse
import csv
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitexplain.choices import CROPS
from vitexplain.device import in_batches
from vitexplain.drawing.heatmap import draw_overlay
from vitexplain.errors import run_command
from vitexplain.faithfulness.baselines import centre_blob
from vitexplain.faithfulness.table import bootstrap_interval
from vitexplain.images.writing import writable_folder
from vitexplain.models.loading import LoadedModel, load_model
from vitexplain.training.accuracy import Share, calibration_error, confusion, top_k
from vitexplain.training.data import DataError, LabelledImages, category_of, is_held_out
from vitexplain.training.localisation import (
    cell_share,
    groups,
    in_box,
    mosaic,
    read_boxes,
    seen_box,
)
from vitexplain.training.maps import OF_CATEGORY, explainers_of
from vitexplain.training.page import confusion_image, page

SHOWN_MOSAICS = 6


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)

    def work() -> None:
        report = evaluate(options)
        print(json.dumps(report, indent=2) if options.json else as_text(report))

    return run_command("evaluate", work, less_memory="lower --batch_size")


def evaluate(options: argparse.Namespace) -> dict:
    """Everything that can be measured on the data, and the files that show it."""
    output = writable_folder(options.output)
    data = LabelledImages(options.data)
    loaded = load_model(
        options.model,
        options.checkpoint,
        options.class_names,
        options.device,
        options.crop,
        explainable=False,
    )
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
    if explainers := explainers_of(loaded.model, *loaded.transform.size):
        if boxes := data.side_file("boxes.csv"):
            report["boxes"] = on_boxes(
                explainers, loaded, data, names, labels, read_boxes(boxes), options
            )
        sure = confident(labels, probabilities, options.confidence)
        for cells in (2, 4):
            chosen = [names[i] for i in sure]
            report[f"mosaics_{cells}"], samples = on_mosaics(
                explainers, loaded, data, chosen, labels[sure], cells, options
            )
            shown += samples
    counts = confusion(probabilities.argmax(axis=1), labels)
    image = confusion_image(*counts, loaded.categories)
    image.save(output / "confusion.png")
    text = page(as_text(report), [("Confusion", image), *shown])
    (output / "report.html").write_text(text, encoding="utf-8")
    (output / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def classify(
    loaded: LoadedModel, data: LabelledImages, names: list[str], batch_size: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the images that can be read, their labels (M,), and probabilities (M, K)."""
    labels_of = {c: label_of(loaded, c) for c in sorted({category_of(name) for name in names})}
    good, probabilities = [], []
    device = next(loaded.model.parameters()).device

    @torch.inference_mode()
    def run(tensors: list[torch.Tensor]) -> np.ndarray:
        return loaded.model(torch.stack(tensors).to(device)).softmax(dim=1).cpu().numpy()

    for start in range(0, len(names), batch_size):
        batch = list(data.good(names[start : start + batch_size]))
        tensors = [loaded.transform(image) for _, image in batch]
        probabilities += in_batches(run, tensors, batch_size, partial(print, file=sys.stderr))
        good += [name for name, _ in batch]
    if not good:
        raise DataError(f"{data.path}: no image can be read")
    labels = np.array([labels_of[category_of(name)] for name in good])
    return good, labels, np.concatenate(probabilities)


def label_of(loaded: LoadedModel, folder: str) -> int:
    """A folder's category: an index ("0243"), unless a category is called so, or a name."""
    if folder in loaded.categories:
        return loaded.categories.index(folder)
    return loaded.category_index(int(folder) if folder.isdecimal() else folder)


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> dict:
    described = {}
    for k in (1, 5):
        share = top_k(probabilities, labels, k)
        described[f"top{k}"] = {
            "value": share.value,
            "interval": share.interval,
            "right": share.hits,
            "of": share.count,
        }
    return described | {"calibration_error": calibration_error(probabilities, labels)}


def per_category(
    loaded: LoadedModel, labels: np.ndarray, probabilities: np.ndarray, output: Path
) -> str:
    """Writes one row a category; the file's path."""
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


def on_boxes(explainers, loaded, data, names, labels, boxes, options) -> dict:
    """Every map, and a spot in the middle, on the objects' boxes."""
    chosen = [i for i, name in enumerate(names) if name in boxes]
    chosen = chosen[:: max(1, len(chosen) // options.boxes)]
    results: dict[str, list[tuple[bool, float]]] = {m: [] for m in (*explainers, "centre_blob")}
    for i in chosen:
        image = data.read(names[i])
        tensor = loaded.transform(image)[None]
        masks = {m: explain(tensor, [labels[i]])[0] for m, explain in explainers.items()}
        masks["centre_blob"] = centre_blob(*next(iter(masks.values())).shape)
        seen = seen_box(loaded.transform, image.size, boxes[names[i]])
        for method, mask in masks.items():
            results[method].append(in_box(mask, *seen))
    return {method: _box_figures(values) for method, values in results.items() if values}


def _box_figures(values: list[tuple[bool, float]]) -> dict:
    hits, energy = (np.array(column, dtype=float) for column in zip(*values, strict=True))
    share = Share(hits.sum(), len(hits))
    return {
        "pictures": len(values),
        "pointing": share.value,
        "pointing_interval": share.interval,
        "energy": energy.mean(),
        "energy_interval": bootstrap_interval(energy),
    }


def on_mosaics(
    explainers, loaded, data, names, labels, cells: int, options
) -> tuple[dict, list[tuple[str, Image.Image]]]:
    """The map of each cell's category, on mosaics of 2 or 4 images; and some of the mosaics."""
    height, width = loaded.transform.size
    shares: dict[str, list[float]] = {}
    shown = []
    for number, group in enumerate(groups(labels, cells, options.mosaics, options.seed)):
        canvas = mosaic([data.read(names[i]) for i in group], max(height, width))
        tensor = loaded.transform(canvas)[None]
        categories = [int(labels[i]) for i in group]
        for method in explainers.keys() & OF_CATEGORY:
            masks = explainers[method](tensor, categories)
            shares.setdefault(method, []).extend(
                cell_share(mask, index, cells) for index, mask in enumerate(masks)
            )
        if number < SHOWN_MOSAICS:
            name = loaded.categories[categories[0]]
            shown.append((f"{cells} images, for: {name}", draw_overlay(canvas, masks[0])))
    return {m: _mosaic_figures(np.array(v), cells) for m, v in shares.items()}, shown


def _mosaic_figures(shares: np.ndarray, cells: int) -> dict:
    return {
        "maps": len(shares),
        "chance": 1 / cells,
        "in_right_cell": shares.mean(),
        "interval": bootstrap_interval(shares),
        "right_cell_heavier_than_the_rest": float((shares > 0.5).mean()),
    }


def _chosen(names: list[str], held_out: bool) -> list[str]:
    if not held_out:
        return names
    chosen = [n for n in names if is_held_out(int(category_of(n)))]
    if not chosen:
        raise DataError("no image of the data is in the held-out split")
    return chosen


def confident(labels: np.ndarray, probabilities: np.ndarray, least: float) -> np.ndarray:
    """Places of images that are rightly classified with at least this probability."""
    right = probabilities.argmax(axis=1) == labels
    return np.flatnonzero(right & (probabilities.max(axis=1) >= least))


def as_text(report: dict) -> str:
    figures = report["accuracy"]
    lines = [f"{report['model']} on {report['pictures']} images of {report['data']}"]
    for k in (1, 5):
        top = figures[f"top{k}"]
        low, high = top["interval"]
        lines.append(f"  top-{k}: {top['value']:.3f} ({low:.3f} to {high:.3f}), {top['right']}")
    lines.append(f"  expected calibration error: {figures['calibration_error']:.3f}")
    for method, found in report.get("boxes", {}).items():
        lines.append(
            f"  boxes, {method}: pointing {found['pointing']:.3f}, energy {found['energy']:.3f} "
            f"({found['energy_interval'][0]:.3f} to {found['energy_interval'][1]:.3f})"
        )
    for cells in (2, 4):
        for method, found in report.get(f"mosaics_{cells}", {}).items():
            lines.append(
                f"  mosaics of {cells}, {method}: {found['in_right_cell']:.3f} of the map in the "
                f"right cell ({found['interval'][0]:.3f} to {found['interval'][1]:.3f}), heavier "
                f"there in {found['right_cell_heavier_than_the_rest']:.3f} of {found['maps']}"
            )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--data", required=True, help="folder of folders, or a zip file of the same layout")
    add("--output", default="evaluation", help="folder for report, tables and images")
    add("--model", default="auto", help="as for vit_explain.py")
    add("--checkpoint", help="as for vit_explain.py")
    add("--class_names", help="as for vit_explain.py")
    add("--device", default="cpu", help="cpu, cuda or mps")
    add("--crop", default="none", choices=CROPS, help="as for vit_explain.py")
    add("--held_out", action="store_true", help="only categories whose index mod 5 is 1")
    add("--confidence", type=float, default=0.5, help="least probability for mosaics")
    add("--mosaics", type=int, default=100, help="mosaics of each size")
    add("--boxes", type=int, default=500, help="images with boxes to look at, at most")
    add("--batch_size", type=int, default=32)
    add("--seed", type=int, default=0, help="which images meet in a mosaic")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
