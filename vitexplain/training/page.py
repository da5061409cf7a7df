"""The HTML page of an evaluation, in one file, and the image of its confusion matrix."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vitexplain.drawing.charts import as_image
from vitexplain.words import short_name

NAMED = 30  # with more categories than this the matrix is drawn without their names


def confusion_image(
    categories: np.ndarray, counts: np.ndarray, names: Sequence[str]
) -> Image.Image:
    """A row for each category, a column for each prediction; shades are shares of the row.

    Args:
        categories: (C,), indices into `names`.
        counts: (C, C) images; see accuracy.confusion.
    """
    figure = Figure(figsize=(8, 7), dpi=100, layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    drawn = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    figure.colorbar(drawn, label="share of the category's images")
    axes.set(xlabel="predicted", ylabel="true category", title=f"{counts.sum()} images")
    if len(categories) <= NAMED:
        labels = [short_name(names[index]) for index in categories]
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
    return as_image(figure)


def page(text: str, images: Sequence[tuple[str, Image.Image]]) -> str:
    """One HTML page: the figures as text, then the images with their captions."""
    shown = "\n".join(
        f'<figure><img src="{_address(image)}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, image in images
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 1.5rem; }}
pre {{ background: #f4f4f4; padding: 1rem; overflow-x: auto; }}
main {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ margin: 0; max-width: 100%; }}
img {{ max-width: 100%; }}
</style>
<h1>Evaluation</h1>
<pre>{html.escape(text)}</pre>
<main>
{shown}
</main>
</html>
"""


def _address(image: Image.Image) -> str:
    """A data URL, so that the page needs no other file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
