"""The command: `python vit_explain.py`, `python -m vitexplain`, or `vit-explain` once installed."""

import logging
import os
import shlex
import sys
import warnings
import webbrowser
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vitexplain.cli.modes import chosen_mode, work_of
from vitexplain.cli.options import parser
from vitexplain.cli.sweep_option import parse_sweep
from vitexplain.errors import MissingPackage, printable, run_command
from vitexplain.settings import Settings
from vitexplain.words import to_json

# the packages of requirements.txt that are always needed, by the names that import them
REQUIRED = (
    *("torch", "torchvision", "timm", "numpy", "cv2", "PIL", "safetensors", "huggingface_hub"),
    *("tqdm", "filelock", "matplotlib"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0; 2 for a request that can't be met; 3 if some of many images failed; 130
        for Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with _usable_streams():
        return run_command("vit_explain", lambda: _main(arguments))


@contextmanager
def _usable_streams() -> Iterator[None]:
    """Standard output and error that can be written to, also where they are closed or missing.

    pythonw and closed descriptors leave None in their place; a notebook has streams of its own.
    """
    before = sys.stdout, sys.stderr
    with ExitStack() as undo:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None or getattr(stream, "closed", False):
                nowhere = undo.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                setattr(sys, name, nowhere)
            elif hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # names need not be valid Unicode
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def _main(arguments: list[str]) -> int:
    options = vars(parser().parse_args(arguments))
    as_json, show = options.pop("json"), options.pop("show")
    for name in ("against", "query", "text"):
        options[name] = tuple(options[name] or ())
    options["method"] = tuple(dict.fromkeys(options["method"]))
    options["sweep"] = parse_sweep(options["sweep"]) if options["sweep"] else None
    if options["masks"] is not None and options["image_path"] is Settings.defaults()["image_path"]:
        options["image_path"] = ()  # the default image is for those who name nothing
    options["lines"] = not (as_json or options["quiet"])  # a program reads JSON
    options["command"] = shlex.join(["vit_explain.py", *arguments])
    logging.getLogger().addHandler(logging.NullHandler())  # libraries' logs: not our output
    warnings.filterwarnings("ignore", module=r"timm\.")
    try:
        return _run(options, as_json, show)
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:
            raise
        raise MissingPackage(
            f"{error}: install what is needed with pip install -r requirements.txt"
        ) from error


def _run(options: dict, as_json: bool, show: bool) -> int:
    from vitexplain.images.finding import is_one_image

    work, as_text = work_of(chosen_mode(options, is_one_image(options["image_path"])), _tell)
    report = work(Settings.of(**options))
    for notice in report["notices"]:
        _tell(notice)
    if not options["quiet"]:
        text = to_json(report, indent=2) if as_json else _printable_lines(as_text(report))
        print(text, flush=True)
    if show:
        _show(report["files"].values())
    return 3 if report.get("failed") else 0


def _show(paths: Iterable[str]) -> None:
    """The first image in a window, or else the first page in a browser."""
    paths = list(paths)
    images = [path for path in paths if path.endswith((".png", ".jpg", ".webp"))]
    pages = [path for path in paths if path.endswith(".html")]
    if images:
        from vitexplain.drawing.window import show

        reason = show(images[0])
        if reason:
            _tell(f"no window: {reason}; the image is {images[0]}")
    elif pages and not webbrowser.open(Path(pages[0]).absolute().as_uri()):
        _tell(f"no browser was found: open {pages[0]} in one")


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _tell(notice: str) -> None:
    print(f"vit_explain: {printable(notice)}", file=sys.stderr)
