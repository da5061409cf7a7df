"""Show what a Vision Transformer looked at: `python vit_explain.py --image_path IMAGE`.

Without a category, attention rollout; with one, gradient attention rollout for that category.
"""

import argparse
import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NoReturn

from vitexplain import __version__
from vitexplain.choices import CROPS, DEFAULT_IMAGE, ENGINES, HEAD_FUSIONS
from vitexplain.cli.sweep_option import parse_sweep
from vitexplain.errors import MissingPackage, RequestError, run_command
from vitexplain.methods.registry import METHODS
from vitexplain.settings import Settings

# the packages of requirements.txt that are always needed, by the names that import them
REQUIRED = (
    *("torch", "torchvision", "timm", "numpy", "cv2", "PIL", "safetensors", "huggingface_hub"),
    *("tqdm", "filelock", "matplotlib"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0, 2 for a request that can't be met, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # file names need not be valid Unicode
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return run_command("vit_explain", lambda: _main(arguments))


def _main(arguments: list[str]) -> int:
    options = vars(_parser().parse_args(arguments))
    as_json, show = options.pop("json"), options.pop("show")
    logging.getLogger().addHandler(logging.NullHandler())  # libraries' logs: not our output
    warnings.filterwarnings("ignore", module=r"timm\.")
    options["method"] = tuple(dict.fromkeys(options["method"]))
    options["sweep"] = parse_sweep(options["sweep"]) if options["sweep"] else None
    options["command"] = shlex.join(["vit_explain.py", *arguments])
    try:
        return _run(Settings.of(**options), as_json, show)
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:
            raise
        raise MissingPackage(
            f"{error}: install what is needed with pip install -r requirements.txt"
        ) from error


def _run(settings: Settings, as_json: bool, show: bool) -> int:
    explain, as_text = _chosen(settings)
    report = explain(settings)
    for notice in report["notices"]:
        _tell(notice)
    if not settings.run.quiet:
        print(json.dumps(report, indent=2) if as_json else as_text(report), flush=True)
    images = [path for path in report["files"].values() if path.endswith(".png")]
    if show and images:
        _show(images[0])
    return 3 if report.get("failed") else 0


def _chosen(settings: Settings) -> tuple[Callable[[Settings], dict], Callable[[dict], str]]:
    """What explains as the settings say, and what puts its report into words.

    Imported only here: torch and timm take seconds, and wrong options must not wait for them.
    """
    from vitexplain.images.finding import is_one_image

    run, maps = settings.run, settings.maps
    one = is_one_image(run.image_path) and not (run.report or run.contact_sheet)
    if run.anatomy:
        if not one or maps.top_k or maps.compare:
            raise RequestError("--anatomy is for one image, without --top_k, --compare, --report "
                             "and --contact_sheet")  # fmt: skip
        from vitexplain.runs.single import explain_anatomy

        return explain_anatomy, _anatomy_as_text
    if run.evaluate:
        if run.report or run.contact_sheet or maps.top_k or run.sweep:
            raise RequestError("--evaluate measures: leave out --report, --contact_sheet, --top_k "
                             "and --sweep")  # fmt: skip
        from vitexplain.runs.evaluation import evaluate

        return partial(evaluate, tell=_tell), _evaluation_as_text
    if run.sweep:
        if not one or maps.top_k or maps.compare or len(maps.method) > 1:
            raise RequestError("--sweep is for one image and one method, without --top_k, "
                             "--compare, --report and --contact_sheet")  # fmt: skip
        from vitexplain.runs.single import explain_sweep

        return explain_sweep, _sweep_as_text
    if maps.compare and one:
        from vitexplain.runs.single import explain_compare

        return explain_compare, _compare_as_text
    if run.engine == "ray":
        if run.report or run.contact_sheet:
            raise RequestError(
                "--engine ray writes Parquet: leave out --report and --contact_sheet"
            )
        from vitexplain.runs.ray import explain_with_ray

        return partial(explain_with_ray, tell=_tell), _folder_as_text
    if not one or maps.top_k or len(maps.method) > 1:
        # read when torch is loaded: threads that spin while they wait slow the workers down
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from vitexplain.parallel import begin

        begin()
        from vitexplain.runs.folder import explain_folder

        return partial(explain_folder, tell=_tell), _folder_as_text
    from vitexplain.runs.single import explain_image

    return explain_image, _as_text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage: --help shows that."""
        self.exit(2, f"vit_explain: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vit_explain.py",
        description="Show what a Vision Transformer looked at, as a heatmap over the image.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vit_explain {__version__}")
    _add_method(parser.add_argument_group("what to explain, and how"))
    _add_model(parser.add_argument_group("model and device"))
    _add_output(parser.add_argument_group("output"))
    _add_folder(parser.add_argument_group("many images"))
    parser.set_defaults(**Settings.defaults())
    return parser


def _add_method(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--image_path",
        metavar="PATH",
        nargs="+",
        help=f"images, folders, globs, @list.txt with one path a line (default: {DEFAULT_IMAGE})",
    )
    add("--recursive", action="store_true", help="also images in folders in folders")
    category = group.add_mutually_exclusive_group()
    category.add_argument(
        "--category_index",
        dest="category",
        type=int,
        metavar="N",
        help="gradient attention rollout for this category; without one, attention rollout",
    )
    category.add_argument(
        "--category",
        metavar="NAME",
        help='the same by name ("tiger cat"); "top" for the most likely category',
    )
    category.add_argument(
        "--top_k", type=_count, metavar="K", help="a map for each of the K most likely categories"
    )
    add(
        "--head_fusion",
        choices=HEAD_FUSIONS,
        help="how heads are fused (default: max for rollout, mean with a category)",
    )
    add(
        "--discard_ratio",
        type=float,
        metavar="F",
        help="share of the weakest attention to drop, 0 <= F < 1 (default: %(default)s)",
    )
    add(
        "--method",
        nargs="+",
        type=_method_name,
        metavar="NAME",
        help=f"one or several of {', '.join(METHODS)} (default: attention rollout, with a category "
        "gradient rollout)",
    )
    add("--block", type=int, metavar="N", help="block of --method attention (default: the last)")
    add("--head", type=int, metavar="N", help="head of --method attention (default: all, fused)")
    add(
        "--compare",
        action="store_true",
        help="all methods side by side, or those of --method, and which is the most faithful",
    )
    add(
        "--evaluate",
        action="store_true",
        help="measure how faithful all methods are on these images, or those of --method",
    )
    add(
        "--sweep",
        nargs="+",
        metavar="PARAMETER=VALUES",
        help="a sheet of one image's maps: discard_ratio=0,0.5,0.9 head_fusion=mean,max, "
        "start_block or category, one or two of them",
    )
    add(
        "--anatomy",
        action="store_true",
        help="one figure of what the model does with one image, block by block: its patches, "
        "position embeddings, heads, token norms, and the rollout as it grows",
    )
    add(
        "--start_block",
        type=int,
        metavar="K",
        help="first block of the product (default: %(default)s, all blocks)",
    )
    add(
        "--as_published",
        action="store_true",
        help="redo maps of the widely used older script: its arithmetic, transform and colours",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--model",
        metavar="NAME",
        help="auto (DeiT-tiny, else bundled), bundled, or any timm name (default: %(default)s)",
    )
    add(
        "--checkpoint",
        metavar="FILE",
        help="fine-tuned weights for --model (.safetensors, .pth), or what training wrote",
    )
    add("--class_names", metavar="FILE", help="names of its categories: one a line, or JSON")
    add(
        "--crop",
        nargs="?",
        const="center",
        choices=CROPS,
        help="center (also without a value): the model's own crop; pad: the whole image, "
        "its proportions kept; none: the whole image, squashed (default: %(default)s)",
    )
    add(
        "--img_size",
        type=_size,
        metavar="N or HxW",
        help="the model's input in pixels, 518 or 288x512 (default: the model's own)",
    )
    device = group.add_mutually_exclusive_group()
    device.add_argument(
        "--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)"
    )
    device.add_argument("--use_cuda", action="store_true", help="CUDA if there is any, else CPU")


def _method_name(text: str) -> str:
    name = "attention_rollout" if text == "rollout" else text
    if name not in METHODS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(METHODS)}")
    return name


def _size(text: str) -> tuple[int, int]:
    """ "518" -> (518, 518), "288x512" -> (288, 512)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 518 or 288x512")
    return int(sides[0]), int(sides[-1])


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--output_dir", metavar="DIR", help="made if missing (default: %(default)s)")
    add(
        "--alpha",
        type=float,
        metavar="F",
        help="strength of the heatmap, 0 to 1 (default: %(default)s)",
    )
    add("--colormap", metavar="NAME", help="an OpenCV colour map (default: %(default)s)")
    add(
        "--size",
        choices=("image", "model"),
        help="draw at the image's own size (default) or at that of the model's input",
    )
    add("--save_mask", action="store_true", help="also the mask as .npy: float32, patch grid")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--show", action="store_true", help="open a window with the result")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _add_folder(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--report", action="store_true", help="one page with all images: report.html")
    add(
        "--contact_sheet",
        nargs="?",
        const="png",
        choices=("png", "pdf"),
        help="all overlays as one image (default), or as pages",
    )
    add(
        "--batch_size",
        type=_batch_size,
        metavar="N",
        help="images the model gets at once (default: auto, what suits the device)",
    )
    add(
        "--workers",
        type=_count,
        metavar="N",
        help="processes that open and draw images (default: two a processor, at most 16)",
    )
    add("--engine", choices=ENGINES, help="ray: a pipeline of actors, also on a cluster")
    add("--quiet", action="store_true", help="no progress bar, nothing on stdout")


def _folder_as_text(report: dict) -> str:
    before = f", {report['explained_before']} before" if report["explained_before"] else ""
    failed = f", {report['failed']} failed" if report["failed"] else ""
    return "\n".join([
        *_opening(report),
        *(f"Method: {_method(method)}" for method in report["methods"]),
        f"{report['pictures']} images: {report['explained']} explained{before}{failed}",
        *_wrote(report),
    ])  # fmt: skip


def _sweep_as_text(report: dict) -> str:
    return "\n".join([*_opening(report), f"Drew {len(report['maps'])} maps", *_wrote(report)])


def _compare_as_text(report: dict) -> str:
    lines = _opening(report)
    for found in report["maps"]:
        marked = ", the most faithful" if found["most_faithful"] else ""
        described = {**found["method"], "category": found["category"]}
        lines.append(f"  {found['faithfulness']:6.3f}  {_method(described)}{marked}")
    return "\n".join([*lines, *_wrote(report)])


def _evaluation_as_text(report: dict) -> str:
    measured = [f"{report['pictures']} images", report["table"]]
    return "\n".join([*_opening(report), *measured, *_wrote(report)])


def _anatomy_as_text(report: dict) -> str:
    method = f"Method: {_method(report['method'])}"
    return "\n".join([*_opening(report), method, *_wrote(report)])


def _opening(report: dict) -> list[str]:
    model = report["model"]
    width, height = model["input_size"]
    rows, columns = model["patch_grid"]
    return [
        report["device"]["notice"],
        f"Model: {model['name']}, input {width}x{height} ({_seen(report)}), "
        f"{rows}x{columns} patches, read-out: {model['readout']}",
    ]


def _as_text(report: dict) -> str:
    lines = _opening(report)
    if report["top"]:
        lines.append("Most likely categories:")
        lines += [f"  {c['probability']:6.1%}  {c['index']:4} {c['name']}" for c in report["top"]]
    lines.append(f"Method: {_method(report['method'])}")
    return "\n".join([*lines, *_wrote(report)])


def _wrote(report: dict) -> list[str]:
    return [f"Wrote {path}" for path in report["files"].values()]


def _seen(report: dict) -> str:
    crop = report["model"]["crop"]
    if crop != "center":
        return f"the whole image, {'resized' if crop == 'none' else 'padded'}"
    if "picture" not in report:
        return "the model's crop"
    left, top, right, bottom = (round(edge) for edge in report["picture"]["region_seen"])
    width, height = report["picture"]["size"]
    return f"the model's crop: x {left} to {right}, y {top} to {bottom} of {width}x{height}"


def _method(method: dict) -> str:
    kind, category = METHODS[method["name"]], method.get("category")
    text, details = kind.title, ", ".join(_details(method))
    if not kind.of_category:
        text += ", the same for every category"
    elif category:
        name, probability = category["name"], category["probability"]
        text += f" for category {category['index']} ({name}, {probability:.1%})"
    return f"{text} ({details})" if details else text


def _details(method: dict) -> Iterator[str]:
    if "block" in method:
        yield "the last block" if method["block"] == -1 else f"block {method['block']}"
    if method.get("head") is not None:
        yield f"head {method['head']}"
    elif "head_fusion" in method:
        yield f"heads fused by {method['head_fusion']}"
    if "discard_ratio" in method:
        yield f"discard ratio {method['discard_ratio']}"
    if method.get("start_block"):
        yield f"from block {method['start_block']}"
    if method.get("as_published"):
        yield "as published"


def _show(path: str) -> None:
    from vitexplain.drawing.window import show

    reason = show(path)
    if reason:
        _tell(f"no window: {reason}; the image is {path}")


def _tell(notice: str) -> None:
    print(f"vit_explain: {notice}", file=sys.stderr)
