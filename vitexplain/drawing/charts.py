"""Charts of the measures and of the randomisation test, as images."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vitexplain.faithfulness.intervals import interval_of
from vitexplain.faithfulness.table import BETTER, Behind, Measure, Values, arranged, behind, known

GREEN = "#00963c"


def draw_randomisation(
    stages: Sequence[str], correlations: Mapping[str, np.ndarray], titles: Mapping[str, str]
) -> Image.Image:
    """A line for each method: the mean rank correlation (B, S), stage by stage."""
    figure = Figure(figsize=(9, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(correlations.items()):
        line = [1, *values.mean(axis=0)]
        axes.plot(line, marker="osv^D"[number % 5], markersize=4, label=titles[name])
    axes.set_xticks(range(len(stages) + 1), ["whole model", *stages], rotation=45, ha="right")
    axes.set(xlabel="randomised down to", ylabel="rank correlation with the whole model's map")
    axes.axhline(0, color="grey", linewidth=0.8)
    figure.legend(loc="outside right upper")
    return as_image(figure)


def draw_measures(
    values: Values,
    measures: Sequence[Measure],
    titles: Mapping[str, str],
    baselines: Collection[str] = (),
) -> Image.Image:
    """A panel for each measure: means, 95 % intervals; who is not worse than the best is green."""
    names, measures, best = arranged(values, measures, baselines)
    figure, panels = _panels(len(measures), columns=3, height=1 + 0.25 * len(names))
    for number, (panel, measure) in enumerate(zip(panels, measures, strict=False)):
        for place, name in enumerate(names):
            if measure.key not in values[name]:
                continue
            each = known(values[name][measure.key])
            color = "grey" if name in baselines else GREEN if name in best[measure.key] else "black"
            _mark(panel, place, each.mean(), interval_of(each), color=color)
        labels = [titles[name] for name in names] if number % 3 == 0 else []
        _finish(panel, measure.title, labels or [""] * len(names))
        if measure.key == "time":  # some methods take hundreds of passes
            panel.set_xscale("log")
    return as_image(figure)


def draw_differences(
    values: Values,
    measures: Sequence[Measure],
    titles: Mapping[str, str],
    baselines: Collection[str] = (),
) -> Image.Image:
    """A forest plot for each measure: paired differences to its best method, with 95 % intervals.

    Methods are sorted from the best to the worst of a measure; those that are not worse than the
    best are green. A difference without an interval is drawn as a dot alone.
    """
    _, measures, best = arranged(values, measures, baselines)
    figure, panels = _panels(len(measures), columns=2, height=1 + 0.22 * len(values))
    for panel, measure in zip(panels, measures, strict=False):
        compared = behind(values, measure, baselines)
        found = [name for name in values if measure.key in values[name]]
        found.sort(key=lambda name: BETTER[measure.better](_mean_of(compared, name)))
        for place, name in enumerate(found):
            color = "grey" if name in baselines else GREEN if name in best[measure.key] else "black"
            interval = compared[name].interval if name in compared else None
            _mark(panel, place, _mean_of(compared, name), interval, markersize=4, color=color)
        panel.axvline(0, color="black", linewidth=0.8)
        title = f"{measure.title}: difference to the best"
        _finish(panel, title, [titles[name] for name in found])
    return as_image(figure)


def _panels(count: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure, and its panels, some of them left empty.

    Args:
        height: of a panel, in inches.
    """
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(13, rows * height), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels


def _mark(
    panel: Axes, place: int, mean: float, interval: tuple[float, float] | None, **style: Any
) -> None:
    """A dot in one row, on a line as long as its interval."""
    if interval is not None:
        panel.plot(interval, [place, place], color=style["color"])
    panel.plot(mean, place, "o", **style)


def _finish(panel: Axes, title: str, labels: Sequence[str]) -> None:
    """The title, and a label for each row, the first one above."""
    panel.set_yticks(range(len(labels)), labels)
    panel.invert_yaxis()
    panel.set_title(title, fontsize=10)
    panel.grid(axis="x", alpha=0.3)


def _mean_of(compared: Mapping[str, Behind], name: str) -> float:
    return compared[name].mean if name in compared else 0.0


def as_image(figure: Figure) -> Image.Image:
    """A matplotlib figure as an RGB image, at its own size and resolution."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
