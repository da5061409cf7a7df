"""Compare models: `python -m vitexplain.training.compare --data DATA --checkpoints A B C`.

Each is evaluated as by vitexplain.training.evaluate, timed against the others in one run, and
explained on the same images: a Vision Transformer by both rollouts, a CNN by Grad-CAM.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from vitexplain.attention.checks import images_for
from vitexplain.drawing.heatmap import draw_overlay
from vitexplain.drawing.sheet import draw_sheet
from vitexplain.errors import run_command
from vitexplain.faithfulness.timing import alternating_medians
from vitexplain.images.writing import writable_folder
from vitexplain.models.loading import LoadedModel
from vitexplain.training import evaluate
from vitexplain.training.classify import label_of
from vitexplain.training.data import LabelledImages, category_of
from vitexplain.training.localisation import MapFunction, map_functions, methods_for, thinned
from vitexplain.words import to_json

TIMED_BATCH, TIMED_ROUNDS = 16, 15


def main(arguments: list[str] | None = None) -> int:
    options, rest = parser().parse_known_args(arguments)
    return run_command("compare", lambda: print(compare(options, rest)))


def compare(options: argparse.Namespace, rest: list[str]) -> str:
    """Evaluate, time and draw; returns the table in Markdown.

    Args:
        rest: options of vitexplain.training.evaluate, for every model.
    """
    output = writable_folder(options.output)
    models, reports = {}, {}
    for path in options.checkpoints:
        name = Path(path).name
        given = ["--data", options.data, "--checkpoint", path, "--output", str(output / name)]
        asked = evaluate.parser().parse_args(given + rest)
        models[name] = evaluate.loaded_for(asked)
        reports[name] = evaluate.evaluate(asked, models[name])
    milliseconds = timed(models)
    for name, report in reports.items():
        report["parameters"] = sum(p.numel() for p in models[name].model.parameters())
        report["milliseconds_per_picture"] = milliseconds[name]
    data = LabelledImages(options.data)
    sheet(models, data, options.pictures).save(output / "maps.png")
    text = table(reports)
    (output / "comparison.md").write_text(text + "\n", encoding="utf-8")
    (output / "comparison.json").write_text(to_json(reports, indent=2), encoding="utf-8")
    return text


@torch.inference_mode()
def timed(models: dict[str, LoadedModel]) -> dict[str, float]:
    """Milliseconds per image of a forward pass, on the models' device."""
    device = next(next(iter(models.values())).model.parameters()).device
    runs = {
        name: partial(
            loaded.model, torch.zeros(TIMED_BATCH, 3, *loaded.transform.size, device=device)
        )
        for name, loaded in models.items()
    }
    seconds = alternating_medians(runs, device, TIMED_ROUNDS)
    return {name: 1000 * each / TIMED_BATCH for name, each in seconds.items()}


def sheet(models: dict[str, LoadedModel], data: LabelledImages, count: int) -> Image.Image:
    """A row for each of `count` images of different categories: the image, then all maps."""
    first = {category_of(name): name for name in reversed(data.names)}
    names = thinned([first[category] for category in sorted(first)], count)
    maps = {
        name: map_functions(methods_for(loaded.model), loaded.model)
        for name, loaded in models.items()
    }
    return draw_sheet([_row(models, maps, data.read(n), category_of(n)) for n in names])


def _row(
    models: dict[str, LoadedModel],
    maps: dict[str, dict[str, MapFunction]],
    image: Image.Image,
    folder: str,
) -> list[tuple[str, Image.Image]]:
    """The image, and every map of its category, with the probability that the model gives it."""
    cells = []
    for name, loaded in models.items():
        label = label_of(loaded, folder)
        tensor = loaded.transform(image)[None]
        with torch.inference_mode():
            logits = loaded.model(images_for(loaded.model, tensor))
            probability = logits.softmax(dim=1)[0, label].item()
        if not cells:
            cells.append((loaded.categories[label], image))
        for method, explain in maps[name].items():
            mask = explain(tensor, [label])[0]
            cells.append((f"{name} {method}, {probability:.0%}", draw_overlay(image, mask)))
    return cells


def table(reports: dict[str, dict]) -> str:
    """Markdown: a row for each model."""
    lines = [
        "| model | parameters | top-1 (95 % interval) | top-5 | calibration error "
        "| ms per image | share of the map in the right cell of four |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        accuracy = report["accuracy"]
        low, high = accuracy["top1"]["interval"]
        cells = ", ".join(
            f"{method} {found['in_right_cell']:.2f}"
            for method, found in report.get("mosaics_4", {}).items()
        )
        lines.append(
            f"| {name} | {report['parameters'] / 1e6:.1f} M "
            f"| {accuracy['top1']['value']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {accuracy['top5']['value']:.3f} | {accuracy['calibration_error']:.3f} "
            f"| {report['milliseconds_per_picture']:.1f} | {cells or '-'} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="other options are those of vitexplain.training.evaluate"
    )
    add = parser.add_argument
    add("--data", required=True, help="folder of folders, or a zip file of the same layout")
    add(
        "--checkpoints",
        nargs="+",
        required=True,
        help="folders that vitexplain.training.train wrote",
    )
    add("--output", default="comparison", help="folder for table, maps and the evaluations")
    add("--pictures", type=int, default=4, help="how many images to explain in maps.png")
    return parser


if __name__ == "__main__":
    sys.exit(main())
