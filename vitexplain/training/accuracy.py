"""How good a classifier is: accuracy with its uncertainty, calibration, confusion."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """The share that `hits` are of `count`, with a 95 % interval (Wilson 1927)."""

    hits: float
    count: int

    @property
    def value(self) -> float:
        return self.hits / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if not self.count:
            return float("nan"), float("nan")
        z, n, p = 1.96, self.count, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f} to {high:.3f}, n = {self.count})"


def top_k(probabilities: np.ndarray, labels: np.ndarray, k: int) -> Share:
    """How often the label is among the k most likely: probabilities (M, K), labels (M,)."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return Share(int((best == labels[:, None]).any(axis=1).sum()), len(labels))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3), bins of equal width.

    It is 0 if, of all predictions made with confidence p, a share of p is correct.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence[index == b].mean() - right[index == b].mean()) * (index == b).mean()
        for b in np.unique(index)
    ]
    return float(sum(gaps))


def confusion(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(categories, counts): of categories[i], counts[i, j] images were predicted as the j-th."""
    categories = np.unique(np.concatenate([labels, predicted]))
    counts = np.zeros((len(categories), len(categories)), dtype=int)
    cells = np.searchsorted(categories, labels), np.searchsorted(categories, predicted)
    np.add.at(counts, cells, 1)
    return categories, counts
