"""What the command can do, in one table: how it is asked for, and what excludes it."""

import gc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from vitexplain.cli import text
from vitexplain.errors import RequestError
from vitexplain.settings import Settings

Options = Mapping[str, object]  # by their own names

TARGETS = ("category", "against", "similar_to")  # what is explained, where data don't say it


@dataclass(frozen=True)
class Mode:
    """One thing that the command does.

    Attributes:
        flag: the option that asks for it, for messages.
        asked: whether the options ask for it, given whether they name one image.
        place: module and function that does it; imported when it is chosen, as torch takes seconds.
        text: puts its report into words.
        excludes: the options that it can't be combined with.
        one_image: whether it takes one image only.
        tells: whether the function takes `tell`, for what there is to say while it works.
        many: whether worker processes open and draw the images.
    """

    flag: str
    asked: Callable[[Options, bool], object]
    place: tuple[str, str]
    text: Callable[[dict], str]
    excludes: tuple[str, ...] = ()
    one_image: bool = False
    tells: bool = False
    many: bool = False


MODES = (
    Mode(
        "--features",
        lambda options, _one: options["features"] or options["save_features"],
        ("vitexplain.runs.features", "explain_features"),
        text.features_text,
        excludes=(
            *("query", "explore", "anatomy", "evaluate", "sweep", "compare", "report"),
            *("contact_sheet", "category", "top_k", "against", "method", "as_published", "truth"),
            "similar_to",
            *("class_embeddings", "text"),
        ),
        tells=True,
    ),
    Mode(
        "--query",
        lambda options, _one: options["query"],
        ("vitexplain.runs.queries", "explain_queries"),
        text.queries_text,
        excludes=(
            *("explore", "anatomy", "evaluate", "sweep", "compare", "report", "contact_sheet"),
            *("category", "top_k", "against", "method", "as_published", "truth"),
        ),
        tells=True,
    ),
    Mode(
        "--explore",
        lambda options, _one: options["explore"],
        ("vitexplain.runs.exploration", "explain_explore"),
        text.explore_text,
        excludes=(
            *("anatomy", "evaluate", "sweep", "compare", "report", "contact_sheet", "truth"),
            *("as_published",),
        ),
        one_image=True,
    ),
    Mode(
        "--anatomy",
        lambda options, _one: options["anatomy"],
        ("vitexplain.runs.anatomy", "explain_anatomy"),
        text.anatomy_text,
        excludes=(
            *("evaluate", "sweep", "compare", "report", "contact_sheet"),
            *("category", "top_k", "against", "other_method", "as_published", "truth"),
        ),
        one_image=True,
    ),
    Mode(
        "--evaluate",
        lambda options, _one: options["evaluate"],
        ("vitexplain.runs.evaluation", "evaluate"),
        text.evaluation_text,
        excludes=("report", "contact_sheet", "top_k", "sweep", "truth"),
        tells=True,
    ),
    Mode(
        "--sweep",
        lambda options, _one: options["sweep"],
        ("vitexplain.runs.single", "explain_sweep"),
        text.sweep_text,
        excludes=("compare", "report", "contact_sheet", "top_k", "several_methods", "truth"),
        one_image=True,
    ),
    Mode(
        "--compare",
        lambda options, one: options["compare"] and one and not options["truth"],
        ("vitexplain.runs.single", "explain_compare"),
        text.comparison_text,
    ),
    Mode(
        "--engine ray",
        lambda options, _one: options["engine"] == "ray",
        ("vitexplain.runs.ray", "explain_with_ray"),
        text.folder_text,
        excludes=("report", "contact_sheet", "truth"),
        tells=True,
    ),
    Mode(
        "--truth",
        lambda options, _one: options["truth"],
        ("vitexplain.runs.folder", "explain_folder"),
        text.folder_text,
        excludes=("compare", "category", "top_k", "against", "as_published", "similar_to"),
        tells=True,
        many=True,
    ),
    Mode(
        "several images",
        lambda options, one: not one or options["top_k"] or len(options["method"]) > 1,
        ("vitexplain.runs.folder", "explain_folder"),
        text.folder_text,
        tells=True,
        many=True,
    ),
    Mode(
        "one image",
        lambda _options, _one: True,
        ("vitexplain.runs.single", "explain_image"),
        text.image_text,
    ),
)


def chosen_mode(options: Options, one_image: bool) -> Mode:
    """The mode that the options ask for.

    Args:
        one_image: whether they name one image.

    Raises:
        RequestError: if it can't be combined with other options, or is for one image only.
    """
    single = one_image and not (options["report"] or options["contact_sheet"])
    mode = next(mode for mode in MODES if mode.asked(options, single))
    given = [name for option in mode.excludes if (name := _given(option, options))]
    if given:
        raise RequestError(
            f"{mode.flag} can't be combined with {' and '.join(given)}: leave out one or the other"
        )
    if options["masks"] is not None:
        _check_masks(mode, options)
    if options["gpus_per_worker"] is not None and options["engine"] != "ray":
        raise RequestError("--gpus_per_worker is for --engine ray: add that, or leave it out")
    if mode.one_image and not one_image:
        raise RequestError(f"{mode.flag} is for one image: name one with --image_path")
    return mode


def _check_masks(mode: Mode, options: Options) -> None:
    if mode.flag != "--evaluate":
        raise RequestError("--masks is for --evaluate: add that, or leave it out")
    given = [name for option in TARGETS if (name := _given(option, options))]
    if given:
        raise RequestError(
            f"--masks explains the category of each image's object: leave out {' and '.join(given)}"
        )


def work_of(
    mode: Mode, tell: Callable[[str], None]
) -> tuple[Callable[[Settings], dict], Callable[[dict], str]]:
    """What does the work of a mode, and what puts its report into words."""
    # read when torch is loaded: threads that spin while they wait slow all other processes down
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if mode.many:
        from vitexplain.parallel import begin

        begin()
    module, name = mode.place
    # looking for garbage among what is imported, of which there is none, takes a tenth of the time
    gc.disable()
    try:
        function = getattr(import_module(module), name)
    finally:
        gc.freeze()
        gc.enable()
    return (partial(function, tell=tell) if mode.tells else function), mode.text


def _given(option: str, options: Options) -> str | None:
    """The option as it was given on the command line; None if it was not."""
    if option == "several_methods":
        return "several methods" if len(options["method"]) > 1 else None
    if option == "other_method":  # attention rollout is what an anatomy shows
        return "--method" if {*options["method"]} - {"attention_rollout"} else None
    value = options[option]
    return None if value is None or value is False or value == () else f"--{option}"
