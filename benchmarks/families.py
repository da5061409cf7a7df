"""Which models work? `python -m benchmarks.families --write docs/models.md` asks all of timm's.

Every model is built without memory, and either has a token layout or is refused with a reason. The
smallest model of each class that is not refused is then explained with random weights, by rollout
and by gradient rollout, so that what its hooks see has to pass the acceptance test.
"""

import argparse
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
import torch
from tqdm import tqdm

from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.attention.tokens import UnsupportedModel, token_layout
from vitexplain.markers import write_between

BEGIN, END = "<!-- families: made by benchmarks.families -->", "<!-- families end -->"


@dataclass
class Family:
    """The models of one class.

    Attributes:
        sizes: parameters of each supported model, by name.
        readouts: what their classifiers pool, in words, and how often.
        refused: reason -> names.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    readouts: Counter = field(default_factory=Counter)
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    families = walk(timm.list_models(options.models))
    tried = {kind: try_smallest(family) for kind, family in families.items() if family.sizes}
    text = table(families, tried)
    print(text)
    if options.write:
        write_between(Path(options.write), BEGIN, END, text)
    return 0


def walk(names: list[str]) -> dict[str, Family]:
    """The families of these models, by class; a model may only raise UnsupportedModel."""
    families: dict[str, Family] = defaultdict(Family)
    for name in tqdm(names, disable=not sys.stderr.isatty()):
        with torch.device("meta"):
            model = timm.create_model(name)
        family = families[type(model).__name__]
        try:
            layout = token_layout(model, *model.pretrained_cfg["input_size"][1:])
        except UnsupportedModel as error:
            family.refused[error.reason].append(name)
        else:
            family.sizes[name] = sum(p.numel() for p in model.parameters())
            readout = layout.readout.removesuffix(f" from {layout.tokens}")
            family.readouts["".join(c for c in readout if not c.isdigit())] += 1
    return dict(sorted(families.items()))


def try_smallest(family: Family) -> str:
    """Explain the smallest model; returns its name."""
    name = min(family.sizes, key=family.sizes.__getitem__)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    grid = token_layout(model, *image.shape[2:]).grid
    masks = [
        VITAttentionRollout(model, discard_ratio=0.5).batch(image)[0],
        VITAttentionGradRollout(model, discard_ratio=0.5).batch(image, [3])[0],
    ]
    for mask in masks:
        if mask.shape != grid or not np.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1:
            raise AssertionError(f"{name}: a map {mask.shape} of {mask.min()} to {mask.max()}")
    return name


def table(families: dict[str, Family], tried: dict[str, str]) -> str:
    """Markdown: a row for each class that works, and a row for each reason for refusal."""
    count = sum(
        len(f.sizes) + sum(len(names) for names in f.refused.values()) for f in families.values()
    )
    lines = [
        f"timm {timm.__version__}: {count} models of {len(families)} classes.",
        "",
        "| works | models | pooling | tried |",
        "|---|---|---|---|",
    ]
    for kind, name in tried.items():
        family = families[kind]
        readouts = [" ".join(words.split()) for words, _ in family.readouts.most_common()]
        lines.append(f"| {kind} | {len(family.sizes)} | {'; '.join(readouts)} | `{name}` |")
    reasons: dict[str, list[str]] = defaultdict(list)
    for kind, family in families.items():
        for reason, names in family.refused.items():
            partly = f" ({', '.join(f'`{n}`' for n in names)})" if family.sizes else ""
            reasons[reason].append(f"{kind}{partly}")
    lines += ["", "| refused, because | classes |", "|---|---|"]
    for reason, kinds in sorted(reasons.items(), key=lambda item: len(item[1])):
        lines.append(f"| {reason} | {', '.join(kinds)} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="*", help="only models whose names match this pattern")
    parser.add_argument("--write", metavar="PAGE", help="put the table between its markers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
