"""Which map to look at for which question.

Two questions have different answers by measurement (docs/faithfulness.md): which patches change
the answer, measured by removing them, and where the object is, measured with masks of objects.
Maps that are the same for every category answer neither of a category. Imports nothing heavy.
"""

from collections.abc import Iterable, Mapping, Sequence

from vitexplain.methods.registry import METHODS
from vitexplain.words import CHANGES, OBJECT, TAKEN_IN, short_name

TIE = 0.01  # of faithfulness: a smaller lead is noise
QUESTIONS = (CHANGES, OBJECT, TAKEN_IN)
# what leads by measurement; others that answer a question follow in the registry's order
LEADING = {
    CHANGES: ("consensus", "grad_rollout"),
    OBJECT: ("relevance", "grad_rollout"),
    TAKEN_IN: (),
}


def by_question(names: Iterable[str] = METHODS) -> dict[str, tuple[str, ...]]:
    """Question -> names of those of these methods that answer it, the leading ones first."""
    among = set(names)
    found = {
        question: tuple(
            name
            for name in dict.fromkeys((*LEADING[question], *METHODS))
            if name in among and question in METHODS[name].answers
        )
        for question in QUESTIONS
    }
    return {question: methods for question, methods in found.items() if methods}


def questions_of(found: Mapping) -> tuple[str, ...]:
    """The questions that one map answers.

    A map of what speaks for one category against another, or of a value such as a similarity, does
    not show where the object is.

    Args:
        found: a map as reports and results have it: "method", "category" and, if any, "against".
    """
    category, answers = found["category"], METHODS[found["method"]["name"]].answers
    no_object = category and category["probability"] is None
    if found.get("against") or no_object:
        return tuple(question for question in answers if question != OBJECT)
    return answers


def look_at(maps: Sequence[Mapping]) -> list[dict]:
    """Whose map to look at for each question, among the maps of one image (JSON-ready).

    Which patches change the answer is measured on the image itself, if "faithfulness" is known: of
    the maps that beat the baselines and that the most faithful one leads by no more than noise, it
    is the method that leads by other images. Nothing is said of a single method, nor where no map
    beats the baselines.

    Args:
        maps: as for `questions_of`, perhaps with "faithfulness" and "beats_baselines".

    Returns:
        dicts with "question"; "method", its name, or None where no map of these categories beats
        the baselines; and "categories", those whose maps it is about, if the question is of one.
    """
    if len({found["method"]["name"] for found in maps}) < 2 or not any(map(_beats, maps)):
        return []
    answering = {
        question: [found for found in maps if question in questions_of(found)]
        for question in (OBJECT, TAKEN_IN)
    }
    others = [
        {
            "question": question,
            "method": by_question(_names(found))[question][0],
            "categories": _categories(found),
        }
        for question, found in answering.items()
        if found
    ]
    return [*_changing(maps), *others]


def _changing(maps: Sequence[Mapping]) -> list[dict]:
    """What to look at for CHANGES, for each method the categories that it is best for."""
    categories = _categories(maps)
    chosen: dict[str | None, list[Mapping]] = {}
    for category in categories or [None]:
        first = not categories or category is categories[0]  # as in a sheet's rows
        of_row = [
            found
            for found in maps
            if (found["category"]["index"] == category["index"] if found["category"] else first)
        ]
        measured = [found for found in of_row if found.get("faithfulness") is not None]
        method = _most_faithful(measured) if measured else _leading(_names(of_row))
        chosen.setdefault(method, []).extend(filter(None, [category]))
    if set(chosen) == {None}:
        return []
    return [
        {"question": CHANGES, "method": method, "categories": of} for method, of in chosen.items()
    ]


def _most_faithful(maps: Sequence[Mapping]) -> str | None:
    highest = max(found["faithfulness"] for found in maps)
    tied = _names(
        found for found in maps if _beats(found) and found["faithfulness"] >= highest - TIE
    )
    if len(tied) == 1:
        return tied[0]
    return _leading(tied) or next((name for name in tied if METHODS[name].of_category), None)


def _leading(names: Sequence[str]) -> str | None:
    return by_question(names).get(CHANGES, (None,))[0]


def _beats(found: Mapping) -> bool:
    return found.get("beats_baselines", True)


def _names(maps: Iterable[Mapping]) -> list[str]:
    return list(dict.fromkeys(found["method"]["name"] for found in maps))


def _categories(maps: Iterable[Mapping]) -> list[Mapping]:
    of = (found["category"] for found in maps if found["category"])
    return list({category["index"]: category for category in of}.values())


def in_words(advice: Sequence[Mapping]) -> list[tuple[str, str]]:
    """(question, methods) in words, of what `look_at` returned.

    Categories are named where they are not all for the same method.
    """
    said: dict[str, list[Mapping]] = {}
    for each in advice:
        said.setdefault(each["question"], []).append(each)
    return [
        (sentence(question), ", ".join(_method(each, alone=len(of) == 1) for each in of))
        for question, of in said.items()
    ]


def sentence(question: str) -> str:
    """The question at the beginning of a line."""
    return question[0].upper() + question[1:]


def _method(each: Mapping, *, alone: bool) -> str:
    title = METHODS[each["method"]].title if each["method"] else "none of these maps"
    if alone:
        return title
    return f"{title} for {' and '.join(short_name(c['name']) for c in each['categories'])}"
