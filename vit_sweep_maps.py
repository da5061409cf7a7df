"""A sweep's maps of one picture, and how they are drawn: a labelled sheet, and an animation."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import vit_torchvision  # noqa: F401

import numpy as np
from PIL import Image
from torch import Tensor, nn

from vit_attention import Factor
from vit_checks import check_settings
from vit_files import write_whole
from vit_grad_rollout import VITAttentionGradRollout
from vit_model import LoadedModel
from vit_rollout import Explanation, VITAttentionRollout, product_masks
from vit_settings import Settings
from vit_sheet import GAP, draw_sheet, fit, line_height
from vit_sweep import Sweep, Value, label
from vit_tokens import TokenLayout, blocks_of

Region = tuple[float, float, float, float]
Draw = Callable[[np.ndarray], Image.Image]  # a mask (h, w) -> its overlay

CELL = 224
COLUMNS = 6  # of the sheet of one parameter
FRAME = 480  # pixels that an animation is at most wide and high
MILLISECONDS = 700  # that each of its frames stays
SAMPLES = 100_000  # pixels that its palette is made from


@dataclasses.dataclass(frozen=True)
class SweepMap:
    """One map of a sweep.

    Attributes:
        labels: of each value that it was made with, "discard_ratio 0.9".
        values: these by parameter, as the sweep has them.
        explanation: of the one picture.
    """

    labels: tuple[str, ...]
    values: Mapping[str, Value]
    explanation: Explanation

    @property
    def caption(self) -> str:
        """In one line: "discard_ratio 0.9, head_fusion max"."""
        return ", ".join(self.labels)

    @property
    def mask(self) -> np.ndarray:
        """(h, w) float32, largest value 1."""
        return self.explanation.masks[0]


@dataclasses.dataclass(frozen=True)
class _Pass:
    """What needs a pass of its own, out of which come the maps of all discard ratios.

    Attributes:
        category: index, "top" or None (attention rollout).
    """

    category: int | str | None
    head_fusion: str
    start_block: int
    as_published: bool


def sweep_maps(
    loaded: LoadedModel, tensor: Tensor, settings: Settings, sweep: Sweep
) -> list[list[SweepMap]]:
    """The maps of one picture (1, 3, H, W): a row for each value of the first parameter.

    The second parameter's values are the columns; a single parameter's are one row. What the
    sweep does not name is as in `settings`.

    Raises:
        ValueError: if the model can't be explained with one of the values, or two of them name
            the same category.
    """
    _check_categories(loaded, sweep.get("category", ()))
    points = [
        dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())
    ]
    variants = [dataclasses.replace(settings, **point) for point in points]
    passes = [_pass_of(loaded, variant) for variant in variants]
    ratios: dict[_Pass, list[float]] = {}
    for needed, variant in zip(passes, variants, strict=True):
        ratios.setdefault(needed, []).append(variant.discard_ratio)
    for needed in ratios:  # before the first pass, which may take long
        _check(loaded.model, needed, ratios[needed])
    found = {needed: _explain(loaded.model, tensor, needed, ratios[needed]) for needed in ratios}
    maps = []
    for needed, variant, point in zip(passes, variants, points, strict=True):
        explanation = found[needed][variant.discard_ratio]
        maps.append(SweepMap(_labels(loaded, point, explanation), point, explanation))
    columns = len(list(sweep.values())[-1])
    return [maps[start : start + columns] for start in range(0, len(maps), columns)]


def shrunk(picture: Image.Image, region: Region) -> tuple[Image.Image, Region]:
    """The picture no larger than anything that is drawn of a sweep, and the region in it.

    A hundred overlays of a photograph at its own size would take minutes and gigabytes.
    """
    if max(picture.size) <= FRAME:
        return picture, region
    small = fit(picture, (FRAME, FRAME))
    across, down = small.width / picture.width, small.height / picture.height
    left, top, right, bottom = region
    return small, (left * across, top * down, right * across, bottom * down)


def draw_sweep(picture: Image.Image, rows: Sequence[Sequence[SweepMap]], draw: Draw) -> Image.Image:
    """A sheet: the picture, then the overlays of all maps with their values as captions.

    The maps of a single parameter are wrapped.
    """
    first = ("input", picture)
    drawn = [[("\n".join(each.labels), draw(each.mask)) for each in row] for row in rows]
    if len(rows) == 1:
        cells = [first, *drawn[0]]
        columns = math.ceil(len(cells) / math.ceil(len(cells) / COLUMNS))
        drawn = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    else:
        drawn = [[("", None) if below else first, *row] for below, row in enumerate(drawn)]
    pictures = [overlay for row in drawn for _, overlay in row if overlay]
    height = max(fit(overlay, (CELL, CELL)).height for overlay in pictures)
    return draw_sheet(drawn, (CELL, height))


def write_gif(
    path: Path, maps: Sequence[SweepMap], draw: Draw, texts: Mapping[str, str] | None = None
) -> None:
    """An endless animation of the overlays, their values above, in frames of at most FRAME.

    Args:
        texts: what a PNG would have as text chunks; here they make up the comment.
    """
    frames = [_frame(each.caption, draw(each.mask)) for each in maps]
    palette = _palette(frames)
    first, *others = [frame.quantize(palette=palette) for frame in frames]
    comment = "\n".join(f"{key}: {text}" for key, text in (texts or {}).items())

    def write(file: BinaryIO) -> None:
        first.save(
            file,
            "GIF",
            save_all=True,
            append_images=others,
            duration=MILLISECONDS,
            loop=0,
            comment=comment.encode("utf-8", "backslashreplace"),
        )

    write_whole(path, write)


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """One for all frames: with one each, also what does not change would flicker."""
    strip = Image.new("RGB", (frames[0].width, frames[0].height * len(frames)))
    for number, frame in enumerate(frames):
        strip.paste(frame, (0, number * frame.height))
    # more samples take longer and make no better palette
    step = max(1, round((strip.width * strip.height / SAMPLES) ** 0.5))
    size = math.ceil(strip.width / step), math.ceil(strip.height / step)
    return strip.resize(size, Image.Resampling.NEAREST).quantize(256, Image.Quantize.MAXCOVERAGE)


def _frame(caption: str, overlay: Image.Image) -> Image.Image:
    width = FRAME - 2 * GAP
    height = min(fit(overlay, (width, width)).height, width - line_height(width))
    return draw_sheet([[(caption, overlay)]], (width, height), lines=1)


def _check_categories(loaded: LoadedModel, names: Sequence[Value]) -> None:
    seen: dict[int, Value] = {}
    for name in names:
        if name == "top":
            continue
        index = loaded.category_index(name)
        if index in seen:
            raise ValueError(
                f"--sweep category: {seen[index]!r} and {name!r} are both category {index} "
                f"({loaded.categories[index]}); a comma separates values, so give one synonym"
            )
        seen[index] = name


def _pass_of(loaded: LoadedModel, settings: Settings) -> _Pass:
    category = settings.category
    if category is not None and category != "top":
        category = loaded.category_index(category)
    fusion = settings.head_fusion or ("max" if category is None else "mean")
    return _Pass(category, fusion, settings.start_block, settings.as_published)


def _check(model: nn.Module, needed: _Pass, ratios: Sequence[float]) -> None:
    for ratio in ratios:
        check_settings(
            ratio,
            needed.head_fusion,
            needed.start_block,
            needed.as_published,
            len(blocks_of(model)),
        )


def _explain(
    model: nn.Module, tensor: Tensor, needed: _Pass, ratios: Sequence[float]
) -> dict[float, Explanation]:
    """The explanation for each discard ratio."""
    if needed.as_published:  # its arithmetic keeps nothing that ratios could share
        return {ratio: _run(model, tensor, needed, [ratio]) for ratio in ratios}
    ratios = sorted(ratios)
    every = _run(model, tensor, needed, ratios)
    return {
        ratio: dataclasses.replace(every, masks=masks)
        for ratio, masks in zip(ratios, every.masks, strict=True)
    }


def _run(model: nn.Module, tensor: Tensor, needed: _Pass, ratios: Sequence[float]) -> Explanation:
    common = {
        "head_fusion": needed.head_fusion,
        "discard_ratio": ratios[0],
        "start_block": needed.start_block,
        "as_published": needed.as_published,
    }
    if needed.category is None:
        rollout = _RolloutByRatio(model, **common)
        rollout.ratios = ratios
        return rollout.explain(tensor)
    graded = _GradRolloutByRatio(model, **common)
    graded.ratios = ratios
    return graded.explain(tensor, None if needed.category == "top" else [needed.category])


class _ByRatio:
    """Mixed into an explainer: masks are (R, B, h, w), for R ascending discard ratios."""

    ratios: Sequence[float]

    def _masks(
        self, factors: Sequence[Factor], layout: TokenLayout, pooled: Tensor | None
    ) -> np.ndarray:
        readout = layout.readout_weights(factors[-1].matrix, pooled)
        # what one ratio drops the next drops too, so each goes on where the one before stopped
        return np.stack([product_masks(factors, readout, layout, ratio) for ratio in self.ratios])


class _RolloutByRatio(_ByRatio, VITAttentionRollout):
    pass


class _GradRolloutByRatio(_ByRatio, VITAttentionGradRollout):
    pass


def _labels(
    loaded: LoadedModel, values: Mapping[str, Value], explanation: Explanation
) -> tuple[str, ...]:
    labels = {name: label(name, value) for name, value in values.items()}
    if "category" in values:
        name = loaded.categories[explanation.categories[0]]
        if str(values["category"]).casefold() not in name.casefold():  # an index, or "top"
            labels["category"] += f": {name.split(',')[0]}"
    return tuple(labels.values())
