"""The randomisation test as a picture."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


def draw_randomisation(
    stages: Sequence[str], correlations: Mapping[str, np.ndarray], titles: Mapping[str, str]
) -> Image.Image:
    """A line for each method: the mean rank correlation (B, S), stage by stage."""
    figure = Figure(figsize=(9, 4.5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, values) in enumerate(correlations.items()):
        line = [1, *values.mean(axis=0)]
        axes.plot(line, marker="osv^D"[number % 5], markersize=4, label=titles[name])
    axes.set_xticks(range(len(stages) + 1), ["whole model", *stages], rotation=45, ha="right")
    axes.set(xlabel="randomised down to", ylabel="rank correlation with the whole model's map")
    axes.axhline(0, color="grey", linewidth=0.8)
    figure.legend(loc="outside right upper")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
