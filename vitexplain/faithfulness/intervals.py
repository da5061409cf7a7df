"""How far the mean of a few values can be trusted: 95 % intervals by Student's t.

A percentile bootstrap covers the mean of 10 values 87 to 91 % of the time, of 24 values 93 %, as it
resamples as if they were the whole population. Of fewer than FEWEST values, which are seldom
normal, nothing is said.
"""

import numpy as np

FEWEST = 10
NORMAL = 1.959963984540054  # the normal distribution's quantile at 97.5 %


def interval_of(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of (n,) independent values; None where n is below FEWEST."""
    values = np.asarray(values, dtype=float)
    if len(values) < FEWEST:
        return None
    half = student(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def student(freedom: int) -> float:
    """The quantile of Student's t at 97.5 %, for 5 degrees of freedom or more.

    Abramowitz & Stegun 1964, equation 26.7.5, within 0.0005 of it.
    """
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
