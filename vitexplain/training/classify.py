"""A model's predictions on labelled images, and how good they are."""

import sys
from functools import partial

import numpy as np
import torch

from vitexplain.device import in_batches
from vitexplain.models.loading import LoadedModel
from vitexplain.outputs import are_values
from vitexplain.outputs import probabilities as probabilities_of
from vitexplain.progress import bar_or_lines
from vitexplain.training.accuracy import calibration_error, top_k
from vitexplain.training.data import DataError, LabelledImages, category_of


def classify(
    loaded: LoadedModel, data: LabelledImages, names: list[str], batch_size: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the M images that can be read, their labels (M,), and probabilities (M, K).

    Raises:
        DataError: if none can be read, or the outputs are no probabilities.
        CategoryError: if a folder is not named by a category of the model.
    """
    if are_values(loaded.labels):
        raise DataError("the model's outputs are values, no probabilities of categories")
    labels_of = {c: label_of(loaded, c) for c in sorted({category_of(name) for name in names})}
    good, probabilities = [], []
    device = next(loaded.model.parameters()).device

    @torch.inference_mode()
    def run(tensors: list[torch.Tensor]) -> np.ndarray:
        logits = loaded.model(torch.stack(tensors).to(device))
        return probabilities_of(logits, loaded.labels).cpu().numpy()

    for start in bar_or_lines(range(0, len(names), batch_size), "batches of images"):
        batch = list(data.good(names[start : start + batch_size]))
        tensors = [loaded.transform(image) for _, image in batch]
        probabilities += in_batches(run, tensors, batch_size, partial(print, file=sys.stderr))
        good += [name for name, _ in batch]
    if not good:
        raise DataError(f"{data.path}: no image can be read")
    labels = np.array([labels_of[category_of(name)] for name in good])
    return good, labels, np.concatenate(probabilities)


def label_of(loaded: LoadedModel, folder: str) -> int:
    """A folder's category: a name, or an index ("0243") if no category has that name."""
    if folder in loaded.categories:
        return loaded.categories.index(folder)
    return loaded.category_index(int(folder) if folder.isdecimal() else folder)


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> dict:
    """Top-1, top-5 and calibration of probabilities (M, K) for labels (M,), JSON-ready."""
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


def confident(labels: np.ndarray, probabilities: np.ndarray, least: float) -> np.ndarray:
    """Indices of images that are correctly classified with at least this probability."""
    right = probabilities.argmax(axis=1) == labels
    return np.flatnonzero(right & (probabilities.max(axis=1) >= least))
