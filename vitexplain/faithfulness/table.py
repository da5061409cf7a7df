"""Methods by measures, as a table: means with their uncertainty, and the best of each column."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# which way is better -> the number that is smallest for the best mean
BETTER = {"lower": lambda mean: mean, "higher": lambda mean: -mean, "nearer to 0": abs}


@dataclass(frozen=True)
class Measure:
    """A column of a table.

    Attributes:
        key: in JSON.
        title: its head; an arrow says which way is better.
        better: the same, as one of BETTER.
        of: what its values are of, in words; "" where there is one value for all images.
    """

    key: str
    title: str
    better: str
    of: str = "images"


COLUMN = 15  # characters of a column in a terminal

# method -> key of a measure -> its value for each image
Values = Mapping[str, Mapping[str, np.ndarray]]


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean, from 2000 resamples."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def winners(
    values: Values, measures: Sequence[Measure], baselines: Collection[str]
) -> dict[str, list[str]]:
    """Key of a measure -> the methods with the best printed mean, not counting baselines."""
    best = {}
    for measure in measures:
        scores = {
            name: BETTER[measure.better](round(float(np.mean(found[measure.key])), 3))
            for name, found in values.items()
            if name not in baselines and measure.key in found
        }
        least = min(scores.values(), default=None)
        best[measure.key] = [name for name, score in scores.items() if score == least]
    return best


def arranged(
    values: Values, measures: Sequence[Measure], baselines: Collection[str]
) -> tuple[list[str], list[Measure], dict[str, list[str]]]:
    """Rows (baselines last), columns (measures that have values), and each column's `winners`."""
    present = [m for m in measures if any(m.key in found for found in values.values())]
    names = sorted(values, key=lambda name: name in baselines)
    return names, present, winners(values, present, baselines)


def as_markdown(
    values: Values,
    measures: Sequence[Measure],
    titles: Mapping[str, str],
    baselines: Collection[str] = (),
) -> str:
    """A row for each method: mean [95 % interval], as `caption` says."""
    names, measures, best = arranged(values, measures, baselines)
    heads = " | ".join(measure.title for measure in measures)
    lines = [f"| method | {heads} |", "|---" * (len(measures) + 1) + "|"]
    for name in names:
        cells = []
        for measure in measures:
            text = _cell(values[name].get(measure.key))
            cells.append(f"**{text}**" if name in best[measure.key] else text)
        title = f"*{titles[name]}*" if name in baselines else titles[name]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def caption(values: Values, measures: Sequence[Measure], baselines: Collection[str] = ()) -> str:
    """The sentences above a table in Markdown: what is in its cells, of how many values."""
    text = (
        f"Means with 95 % bootstrap intervals, of {_counts(values, measures)}. "
        "The best method of each column is bold"
    )
    if any(name in baselines for name in values):
        text += "; baselines, which know nothing of the model, are in italics"
    return f"{text}."


def as_text(
    values: Values,
    measures: Sequence[Measure],
    titles: Mapping[str, str],
    baselines: Collection[str] = (),
) -> str:
    """For a terminal: a row of means for each method, the best of each column marked with *."""
    names, measures, best = arranged(values, measures, baselines)
    heads = [textwrap.wrap(measure.title, COLUMN - 2) for measure in measures]
    first = max(map(len, titles.values())) + 1
    lines = []
    for number in reversed(range(max(map(len, heads)))):
        cells = [head[-number - 1] if number < len(head) else "" for head in heads]
        lines.append(" " * first + "".join(cell.rjust(COLUMN) for cell in cells))
    for name in names:
        cells = []
        for measure in measures:
            found = values[name].get(measure.key)
            mark = "*" if name in best[measure.key] else " "
            cells.append("" if found is None else f"{np.mean(found):.3f}{mark}")
        lines.append(titles[name].ljust(first) + "".join(cell.rjust(COLUMN) for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def as_json(values: Values, measures: Sequence[Measure]) -> dict:
    """Method -> key of a measure -> mean, 95 % interval, number of values, which way is better."""
    described: dict[str, dict] = {}
    for name, found in values.items():
        described[name] = {}
        for measure in measures:
            if measure.key not in found:
                continue
            numbers = np.asarray(found[measure.key], dtype=float)
            described[name][measure.key] = {
                "mean": float(numbers.mean()),
                "interval": bootstrap_interval(numbers),
                "n": len(numbers),
                "better": measure.better,
            }
    return described


def _counts(values: Values, measures: Sequence[Measure]) -> str:
    """As in: n = 24 images; of 6 mosaics and 16 images with boxes."""
    counts: dict[str, int] = {}
    for measure in measures:
        sizes = [len(found[measure.key]) for found in values.values() if measure.key in found]
        if measure.of and sizes:
            counts[measure.of] = max(sizes)
    common, *others = [f"{count} {of}" for of, count in counts.items()] or ["0 images"]
    if not others:
        return f"n = {common}"
    *first, last = others
    comma = "," if len(first) > 1 else ""
    return f"n = {common}; of " + (f"{', '.join(first)}{comma} and {last}" if first else last)


def _cell(values: np.ndarray | None) -> str:
    if values is None:
        return ""
    mean = np.mean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    low, high = bootstrap_interval(np.asarray(values, dtype=float))
    return f"{mean:.3f} [{low:.2f}, {high:.2f}]"
