"""Which models work? `python -m benchmarks.families --write docs/models.md` asks all of timm's.

Every model is built without memory, and either has a token layout, or can be explained without its
attention, or is refused with a reason. The smallest model of each class is then explained with
random weights: by rollout and gradient rollout, so that what its hooks see has to pass the
acceptance test, or else by Grad-CAM.
"""

import argparse
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from tqdm import tqdm

from vitexplain.attention.class_attention import class_blocks
from vitexplain.attention.families import ENCODERS, check_classifier
from vitexplain.attention.pyramid import PYRAMIDS, check_rollable, rollout_layout
from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.markers import write_between
from vitexplain.methods.base import ImageMethod
from vitexplain.methods.registry import METHODS

BEGIN, END = "<!-- families: made by benchmarks.families -->", "<!-- families end -->"
CATEGORIES = 10


@dataclass
class Family:
    """The models of one class.

    Attributes:
        rolled: parameters of each model that rollout explains, by name.
        others: of each that only methods without attention explain.
        readouts: what the classifiers of the former pool, in words, and how often.
        reasons: why rollout does not explain the latter -> names.
        refused: why no method explains a model -> names.
        shrinks: whether both rollouts follow its grid as it shrinks, and other methods of attention
            do not.
        class_attention: whether a class token reads the patches in blocks of its own.
    """

    rolled: dict[str, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    readouts: Counter = field(default_factory=Counter)
    reasons: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    class_attention: bool = False
    shrinks: bool = False


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    families = walk(timm.list_models(options.models))
    tried = {kind: try_smallest(family) for kind, family in tqdm(families.items())}
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
        _sort_in(families[type(model).__name__], name, model)
    return dict(sorted(families.items()))


def _sort_in(family: Family, name: str, model: nn.Module) -> None:
    size = sum(p.numel() for p in model.parameters())
    try:
        family.shrinks = isinstance(check_rollable(model), PYRAMIDS)
        images = torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta")
        layout = rollout_layout(model, images)
    except UnsupportedModel as error:
        family.reasons[error.reason].append(name)
    else:
        family.rolled[name] = size
        readout = layout.readout.removesuffix(f" from {layout.tokens}")
        family.readouts["".join(c for c in readout if not c.isdigit())] += 1
        return
    if not model.num_classes and type(model).__name__ not in ENCODERS:
        model.reset_classifier(CATEGORIES)  # it takes any number of them
    try:
        check_classifier(model)
    except UnsupportedModel as error:
        family.refused[error.reason].append(name)
    else:
        family.others[name] = size
        family.class_attention = bool(class_blocks(model))


def try_smallest(family: Family) -> str:
    """Explain the smallest model, by rollouts if they can; returns its name, or "" if none can."""
    sizes = family.rolled or family.others
    if not sizes:
        return ""
    name = min(sizes, key=sizes.__getitem__)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CATEGORIES).eval()
    image = torch.randn(1, *model.pretrained_cfg["input_size"])
    if family.rolled:
        methods = ["attention_rollout", "grad_rollout"]
    else:
        methods = ["gradcam", *(["attention"] if family.class_attention else [])]
    for method in methods:
        made = METHODS[method].make(model)
        found = made.explain(image) if isinstance(made, ImageMethod) else made.explain(image, [3])
        mask = found.masks[0]
        fits = found.layout is None or not family.rolled or mask.shape == found.layout.grid
        if not (fits and np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
            raise AssertionError(f"{name}: a map {mask.shape} of {mask.min()} to {mask.max()}")
    return name


def table(families: dict[str, Family], tried: dict[str, str]) -> str:
    """Markdown: a row for each class, those that rollout explains first."""
    rolled = {kind: family for kind, family in families.items() if family.rolled}
    others = {kind: family for kind, family in families.items() if not family.rolled}
    count = sum(
        len(f.rolled) + len(f.others) + sum(map(len, f.refused.values())) for f in families.values()
    )
    explained = sum(len(f.rolled) for f in families.values() if not f.shrinks)
    shrinking = sum(len(f.rolled) for f in families.values() if f.shrinks)
    any_model = sum(len(f.others) for f in families.values())
    lines = [
        f"timm {timm.__version__}: {count} models of {len(families)} classes. {explained} by all "
        f"methods, {shrinking} by both rollouts and those that need no attention, {any_model} by "
        "the latter.",
        "",
        "| all methods | models | pooling | tried |",
        "|---|---|---|---|",
    ]
    for kind, family in rolled.items():
        readouts = [" ".join(words.split()) for words, _ in family.readouts.most_common()]
        others_of = f" (and {len(family.others)} by other methods)" if family.others else ""
        only = ", by both rollouts and without attention" if family.shrinks else ""
        lines.append(
            f"| {kind}{only} | {len(family.rolled)}{others_of} | {'; '.join(readouts)} "
            f"| `{tried[kind]}` |"
        )
    lines += [
        "",
        "| without attention | models | explained by | no rollout, because | tried |",
        "|---|---|---|---|---|",
    ]
    for kind, family in others.items():
        lines.append(_row_of_others(kind, family, tried[kind]))
    return "\n".join(lines)


def _row_of_others(kind: str, family: Family, tried: str) -> str:
    reason = "; ".join(family.reasons)
    if not family.others:
        count, refused = sum(map(len, family.refused.values())), "; ".join(family.refused)
        return f"| {kind} | {count} | refused: {refused} | {reason} | - |"
    methods = ["attention (of its class token)"] if family.class_attention else []
    methods += ["gradcam", "integrated_gradients", "occlusion"]
    return f"| {kind} | {len(family.others)} | {', '.join(methods)} | {reason} | `{tried}` |"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="*", help="only models whose names match this pattern")
    parser.add_argument("--write", metavar="PAGE", help="put the table between its markers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
