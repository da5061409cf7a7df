"""Learning curves."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

from vitexplain.drawing.charts import as_image


def draw_curves(rows: Sequence[dict]) -> Image.Image:
    """An image of the losses (left) and of validation accuracy (right) by epoch."""
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name in ("train_loss", "validation_loss"):
        losses.plot(epochs, [row[name] for row in rows], marker="o", label=name.replace("_", " "))
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend()
    accuracy.plot(epochs, [row["validation_top1"] for row in rows], marker="o", color="tab:green")
    accuracy.set(xlabel="epoch", ylabel="validation top-1", ylim=(0, 1))
    return as_image(figure)
