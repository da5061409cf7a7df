"""Methods by measures, as a table: means with their uncertainty, and the best of each column."""

import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitexplain.faithfulness.intervals import FEWEST, interval_of

# which way is better -> the number that is smallest for the best one
BETTER = {"lower": lambda value: value, "higher": lambda value: -value}


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

# method -> key of a measure -> its value for each image, NaN where it was not measured
Values = Mapping[str, Mapping[str, np.ndarray]]


def known(values: np.ndarray) -> np.ndarray:
    """Those of (n,) values that were measured."""
    values = np.asarray(values, dtype=float)
    return values[~np.isnan(values)]


@dataclass(frozen=True)
class Behind:
    """A method's values less those of the best one, on the same images.

    Attributes:
        mean: of the differences, in the measure's own unit.
        interval: 95 %, see vitexplain.faithfulness.intervals.
        count: of the differences.
        worse: so says the whole interval; of values too few for one, the mean as it is printed.
    """

    mean: float
    interval: tuple[float, float] | None
    count: int
    worse: bool


def behind(values: Values, measure: Measure, baselines: Collection[str]) -> dict[str, Behind]:
    """How far each method is behind the best that is no baseline; nothing of that one itself.

    Scores of one image are alike for all methods, so that pairs tell apart what the intervals of
    two means do not. The best is one of those with the most values. Where there are no pairs, the
    count is 0.
    """
    found = {
        name: np.asarray(columns[measure.key], dtype=float)
        for name, columns in values.items()
        if measure.key in columns
    }
    better = BETTER[measure.better]
    methods = [name for name in found if name not in baselines]
    if not methods:
        return {}
    most = max(len(known(found[name])) for name in methods)
    whole = [name for name in methods if len(known(found[name])) == most]
    best = min(whole, key=lambda name: better(known(found[name]).mean()))
    return {
        name: _behind(each, found[best], better) for name, each in found.items() if name != best
    }


def _behind(each: np.ndarray, best: np.ndarray, better: Callable[[float], float]) -> Behind:
    pairs = known(each - best) if len(each) == len(best) else np.array([])
    mean = pairs.mean() if len(pairs) else known(each).mean() - known(best).mean()
    interval = interval_of(pairs)
    worse = min(map(better, interval or (round(float(mean), 3),))) > 0
    return Behind(float(mean), interval, len(pairs), worse)


def winners(
    values: Values, measures: Sequence[Measure], baselines: Collection[str]
) -> dict[str, list[str]]:
    """Key of a measure -> the best method and those that are not worse, not counting baselines."""
    found = {}
    for measure in measures:
        compared = behind(values, measure, baselines)
        worse = {name for name, each in compared.items() if each.worse}
        found[measure.key] = [
            name
            for name, columns in values.items()
            if name not in {*baselines, *worse} and measure.key in columns
        ]
    return found


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
    """A row for each method: mean [95 % interval], distance to the best; see `caption`."""
    names, measures, best = arranged(values, measures, baselines)
    compared = {measure.key: behind(values, measure, baselines) for measure in measures}
    heads = " | ".join(measure.title for measure in measures)
    lines = [f"| method | {heads} |", "|---" * (len(measures) + 1) + "|"]
    for name in names:
        cells = []
        for measure in measures:
            text = _cell(values[name].get(measure.key))
            text = f"**{text}**" if name in best[measure.key] else text
            cells.append(text + _behind_in_words(compared[measure.key].get(name)))
        title = f"*{titles[name]}*" if name in baselines else titles[name]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def caption(values: Values, measures: Sequence[Measure], baselines: Collection[str] = ()) -> str:
    """The sentences above a table in Markdown: what is in its cells, of how many values."""
    text = (
        f"Means with 95 % intervals by Student's t, of {_counts(values, measures)}; below, the "
        "mean paired difference to the best of the column, with its interval and n. Of fewer than "
        f"{FEWEST} values there is no interval. Bold are the best method of each column, and those "
        "not worse by this difference"
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
    """For a terminal: a row of means for each method; * marks the best, and who is not worse."""
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
            cells.append("" if found is None else f"{known(found).mean():.3f}{mark}")
        lines.append(titles[name].ljust(first) + "".join(cell.rjust(COLUMN) for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def as_json(values: Values, measures: Sequence[Measure], baselines: Collection[str] = ()) -> dict:
    """Method -> key of a measure -> mean, interval, values, and the paired difference to the best.

    Intervals are null where there are too few values, and values where there are none; of the best
    itself, "behind_best" is null.
    """
    described: dict[str, dict] = {}
    compared = {measure.key: behind(values, measure, baselines) for measure in measures}
    for name, found in values.items():
        described[name] = {}
        for measure in measures:
            if measure.key not in found:
                continue
            every = np.asarray(found[measure.key], dtype=float)
            numbers = known(every)
            described[name][measure.key] = {
                "mean": float(numbers.mean()),
                "interval": interval_of(numbers),
                "n": len(numbers),
                "better": measure.better,
                "values": [None if np.isnan(value) else value for value in every.tolist()],
                "behind_best": _as_fields(compared[measure.key].get(name)),
            }
    return described


def _counts(values: Values, measures: Sequence[Measure]) -> str:
    """As in: n = 24 images; of 6 mosaics and 16 images with boxes."""
    counts: dict[str, int] = {}
    for measure in measures:
        found = [columns[measure.key] for columns in values.values() if measure.key in columns]
        sizes = [len(known(each)) for each in found]
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
    values = known(values)
    mean, interval = values.mean(), interval_of(values)
    return (
        f"{mean:.3f}" if interval is None else f"{mean:.3f} [{interval[0]:.2f}, {interval[1]:.2f}]"
    )


def _behind_in_words(each: Behind | None) -> str:
    """The second line of a cell."""
    if each is None or each.count < 2:
        return ""
    interval = "" if each.interval is None else " [{:+.3f}, {:+.3f}]".format(*each.interval)
    return f"<br>{each.mean:+.3f}{interval}, n = {each.count}"


def _as_fields(each: Behind | None) -> dict | None:
    if each is None:
        return None
    return {
        "mean": each.mean,
        "interval": each.interval,
        "n": each.count,
        "worse": each.worse,
    }
