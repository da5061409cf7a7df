"""Evaluate a model on labels: `python -m vitexplain.training.evaluate --data FOLDER_OR_ZIP`.

Accuracy, calibration and confusion, and whether the model's maps fall on what they explain: in
boxes, if the data have a boxes.csv, on masks, if they have an index.csv (see training.masks) or
--masks names some, and on mosaics of confidently classified images of several categories.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vitexplain.choices import CROPS
from vitexplain.device import choose_device
from vitexplain.errors import run_command
from vitexplain.images.writing import writable_folder
from vitexplain.models.categories import CategoryError
from vitexplain.models.loading import LoadedModel, any_model, load_model
from vitexplain.training.accuracy import confusion
from vitexplain.training.classify import accuracy, classify, confident, label_of
from vitexplain.training.data import DataError, LabelledImages, category_of, is_held_out
from vitexplain.training.localisation import methods_for, read_boxes
from vitexplain.training.masks import INDEX, MaskedImages
from vitexplain.training.page import confusion_image, page
from vitexplain.training.placement import placement
from vitexplain.words import to_json


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
    masked = _masked(options, data)
    loaded = loaded or loaded_for(options)
    names = _chosen(_labelled(loaded, data, masked), options.held_out)
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
        text = data.side_file("boxes.csv")
        sure = confident(labels, probabilities, options.confidence)
        found = placement(
            loaded,
            methods,
            data,
            dict(zip(names, labels.tolist(), strict=True)),
            [(names[i], int(labels[i])) for i in sure],
            read_boxes(text) if text else None,
            masked,
            most={"boxes": options.boxes, "mosaics": options.mosaics, "masks": options.masked},
            seed=options.seed,
        )
        report |= found.report() | {"table": found.as_text()}
        shown = found.shown
        if found.values:
            (output / "maps.md").write_text(found.as_markdown(), encoding="utf-8")
    counts = confusion(probabilities.argmax(axis=1), labels)
    image = confusion_image(*counts, loaded.categories)
    image.save(output / "confusion.png")
    text = page(as_text(report), [("Confusion", image), *shown])
    (output / "report.html").write_text(text, encoding="utf-8")
    (output / "report.json").write_text(to_json(report, indent=2), encoding="utf-8")
    return report


def _masked(options: argparse.Namespace, data: LabelledImages) -> MaskedImages | None:
    """The images with masks: those of --masks, or of the data themselves."""
    if options.masks is not None:
        return MaskedImages(options.masks)
    return None if data.side_file(INDEX) is None else MaskedImages(options.data)


def _labelled(loaded: LoadedModel, data: LabelledImages, masked: MaskedImages | None) -> list[str]:
    """The images that have a label: neither masks of the same data, nor what only has a mask."""
    if masked is None or masked.path.resolve() != data.path.resolve():
        return data.names
    masks, with_mask = masked.masks, set(masked.names)
    names = [
        name
        for name in data.names
        if name not in masks and (name not in with_mask or _has_label(loaded, name))
    ]
    if not names:
        raise DataError(
            f"{data.path} holds no images in folders named by category; for masks alone there is "
            "vit_explain.py --evaluate --masks"
        )
    return names


def _has_label(loaded: LoadedModel, name: str) -> bool:
    try:
        label_of(loaded, category_of(name))
    except CategoryError:
        return False
    return True


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
    if table := report.get("table"):
        lines += ["", table]
    lines += report.get("boxes_in_words", ())
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
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--crop", default="none", choices=CROPS, help="as for vit_explain.py")
    add("--held_out", action="store_true", help="only categories whose index mod 5 is 1")
    add("--confidence", type=float, default=0.5, help="least probability for mosaics")
    add("--mosaics", type=int, default=100, help="mosaics of each size")
    add("--boxes", type=int, default=500, help="how many images with boxes, at most")
    add("--masks", help="images with masks, a folder or a zip file; by default those of --data")
    add("--masked", type=int, default=500, help="how many images with masks, at most")
    add("--batch_size", type=int, default=32)
    add("--seed", type=int, default=0, help="decides which images form a mosaic")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
