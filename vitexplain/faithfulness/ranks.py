"""How alike two maps are: Spearman's rank correlation."""

import numpy as np


def rank_correlation(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each pair of (B, h, w) and (B, h, w), as (B,), -1 to 1.

    Only the order of the patches counts, as the maps of two methods or models have no common
    scale. A constant map has no order: with another constant map the correlation is taken to be 1,
    with any other map 0.
    """
    return np.array([_correlation(a, b) for a, b in zip(masks, others, strict=True)])


def average_ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, 1 the smallest; equal values get their mean rank. Any shape."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse].reshape(values.shape)


def _correlation(mask: np.ndarray, other: np.ndarray) -> float:
    a, b = average_ranks(mask).ravel(), average_ranks(other).ravel()
    a, b = a - a.mean(), b - b.mean()
    if not a.any() or not b.any():
        return float(not a.any() and not b.any())
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
