"""The command's options, and their table for docs/options.md.

`python -m vitexplain.cli.options --markdown` prints the table; with `--write docs/options.md` it
goes between the page's markers. Imports nothing heavy: wrong options must not wait for torch.
"""

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vitexplain import __version__
from vitexplain.choices import (
    CROPS,
    DEFAULT_IMAGE,
    ENGINES,
    FORMATS,
    HEAD_FUSIONS,
    LABELS,
    LONGEST_SIDE,
    PRECISIONS,
)
from vitexplain.errors import RequestError, run_command
from vitexplain.markers import write_between
from vitexplain.methods.questions import by_question
from vitexplain.methods.registry import method_named
from vitexplain.settings import Settings

EXAMPLES = """\
examples:
  what the model looked at, then the evidence for one category:
    python vit_explain.py --image_path examples/both.png --head_fusion max --discard_ratio 0.9
    python vit_explain.py --image_path examples/both.png --category "tiger cat"
  a folder, with one page to look at:
    python vit_explain.py --image_path photos --category top --report
  all methods side by side, the most faithful one marked:
    python vit_explain.py --image_path examples/cat.jpg --compare
"""
BEGIN = "<!-- options: made by python -m vitexplain.cli.options --markdown -->"
END = "<!-- options end -->"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage: --help shows that."""
        self.exit(2, f"vit_explain: {message} (see --help)\n")


def parser() -> argparse.ArgumentParser:
    """All options; what is not given has the default of settings.Settings."""
    parser = _Parser(
        prog="vit_explain.py",
        usage="vit_explain.py [--image_path PATH ...] [--category NAME] [options]",
        description="Show what a Vision Transformer looked at, as a heatmap over the image.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vit_explain {__version__}")
    _add_subject(parser.add_argument_group("what to explain"))
    _add_method(parser.add_argument_group("by which method"))
    _add_views(parser.add_argument_group("more than one map"))
    _add_model(parser.add_argument_group("model and device"))
    _add_output(parser.add_argument_group("output"))
    _add_folder(parser.add_argument_group("many images"))
    parser.set_defaults(**Settings.defaults())
    return parser


def _add_subject(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--image_path",
        metavar="PATH",
        nargs="+",
        help="images, folders, globs, or @list.txt with one path per line "
        f"(default: {DEFAULT_IMAGE})",
    )
    add("--recursive", action="store_true", help="also look into the folders inside folders")
    category = group.add_mutually_exclusive_group()
    category.add_argument(
        "--category_index",
        dest="category",
        type=int,
        metavar="N",
        help="explain this category, by gradient attention rollout (default: none; attention "
        "rollout)",
    )
    category.add_argument(
        "--category",
        metavar="NAME",
        help='the same by name ("tiger cat"), or "top" for the most likely category',
    )
    category.add_argument(
        "--top_k",
        type=_count,
        metavar="K",
        help="one map for each of the K most likely categories",
    )
    add(
        "--against",
        nargs="+",
        metavar="NAME",
        help="why this category and not another: names or indices of others, or auto for those "
        "nearest to it (with --top_k, for the rest of the K); red speaks for the category, blue "
        "for the others",
    )


def _add_method(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--method",
        nargs="+",
        type=_method_name,
        metavar="NAME",
        help=f"one or several of {_methods()} (default: attention_rollout; grad_rollout with a "
        "category)",
    )
    add(
        "--head_fusion",
        choices=HEAD_FUSIONS,
        help="how the heads of a block are fused (default: max for attention rollout, else mean)",
    )
    add(
        "--discard_ratio",
        type=float,
        metavar="F",
        help="share of each block's weakest attention to drop, 0 <= F < 1 (default: %(default)s)",
    )
    add(
        "--start_block",
        type=int,
        metavar="K",
        help="first block that counts (default: %(default)s, all blocks)",
    )
    add(
        "--block",
        type=int,
        metavar="N",
        help="block of --method attention or --query (default: the last)",
    )
    add(
        "--head",
        type=int,
        metavar="N",
        help="head of --method attention or --query (default: all of them, fused)",
    )
    add(
        "--as_published",
        action="store_true",
        help="reproduce the maps of the widely used older script: its arithmetic, transform and "
        "colours",
    )


def _methods() -> str:
    """The names of all methods, by the questions that they answer."""
    return "; ".join(f"{', '.join(of)} ({question})" for question, of in by_question().items())


def _add_views(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--compare",
        action="store_true",
        help="all methods side by side, or those of --method, the most faithful marked, and which "
        "map to look at for which question",
    )
    add(
        "--evaluate",
        action="store_true",
        help="measure how faithful all methods are on these images, or those of --method",
    )
    add(
        "--masks",
        metavar="DATA",
        help="with --evaluate, how well maps find the objects: a folder or zip with images/, "
        "masks/ (0 background, 1 object, 255 unknown) and index.csv (file, mask, and if wanted "
        "imagenet_indices); these images alone, unless --image_path names others",
    )
    add(
        "--sweep",
        nargs="+",
        metavar="PARAMETER=VALUES",
        help="one sheet with the maps of one image for all values of one or two parameters: "
        "discard_ratio=0,0.5,0.9 head_fusion=mean,max start_block=0,6 category=tabby,pug",
    )
    add(
        "--query",
        nargs="+",
        metavar="X,Y",
        help="what single tokens look at: patches by a pixel, class, or register:1; "
        "their attention in --block and --head, their rollout, and the patches like them",
    )
    add(
        "--features",
        action="store_true",
        help="what the final features tell apart, by models without a classifier too: their "
        "principal components as colours, the same for all images, and the foreground",
    )
    add(
        "--save_features",
        action="store_true",
        help="with --features, also save the features and their components as .npz",
    )
    add(
        "--anatomy",
        action="store_true",
        help="one figure of what the model does with one image, block by block: patches, position "
        "embeddings, heads, token norms, and rollout as it grows",
    )
    add(
        "--explore",
        action="store_true",
        help="one interactive page of one image, which opens from its file: point at a patch and "
        "see what it attends to, in every block and head, change rollout, compare maps; with a "
        "guided tour, in English and French",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--model",
        metavar="NAME",
        help="auto (DeiT-tiny, or the bundled model where that can't be had), bundled, or any "
        "timm name, also with hf-hub: or local-dir: (default: %(default)s)",
    )
    add(
        "--checkpoint",
        metavar="FILE",
        help="fine-tuned weights for --model (.safetensors, .pth, .pt, .bin), or a folder that "
        "vitexplain.training.train wrote",
    )
    add(
        "--class_names",
        metavar="FILE",
        help="names of the model's categories: one per line, or JSON",
    )
    add(
        "--crop",
        nargs="?",
        const="center",
        choices=CROPS,
        help="none: the whole image, squashed; pad: the whole image, padded; center (also without "
        "a value): the model's own crop (default: %(default)s)",
    )
    add(
        "--stretch",
        action="store_true",
        help="for images that use a fraction of their range, such as 12 bits of 16: their darkest "
        "values become black, their brightest white",
    )
    add(
        "--model_args",
        nargs="+",
        type=_model_arg,
        action=_Together,
        metavar="KEY=VALUE",
        help="arguments of timm's model, such as global_pool=avg in_chans=1",
    )
    for name in ("--mean", "--std"):
        add(
            name,
            nargs="+",
            type=float,
            metavar="F",
            help="of each channel, for values from 0 to 1, as the model was trained with (default: "
            "what timm records)",
        )
    add(
        "--labels",
        choices=LABELS,
        help="how outputs become probabilities: exclusive (a softmax over all), independent (each "
        "by its own sigmoid, as several labels may apply) or none (they are values, as of a "
        "regression); by default what the model says, else exclusive",
    )
    add(
        "--img_size",
        type=_size,
        metavar="N or HxW",
        help="the model's input in pixels, 518 or 288x512 (default: the model's own)",
    )
    add(
        "--class_embeddings",
        metavar="FILE",
        help="a zero-shot classifier: one embedding for each category, (K, D) in a .npy or "
        ".safetensors file, as of a CLIP's text tower; --class_names names them",
    )
    add(
        "--text",
        nargs="+",
        metavar="TEXT",
        help='the same, of "a photo of a cat" "a photo of a dog": open_clip, if it is installed, '
        "makes their embeddings for a CLIP of --model",
    )
    add(
        "--logit_scale",
        type=float,
        metavar="F",
        help="of the cosines of --class_embeddings with the image's (default: %(default)s)",
    )
    add(
        "--similar_to",
        metavar="PATH",
        help="an image, or a folder of images: why the embedding of --image_path is like theirs, "
        "also by models without a classifier; of two images, both maps on one sheet",
    )
    device = group.add_mutually_exclusive_group()
    device.add_argument(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:N or mps; for many images also several GPUs, cuda:0,1 "
        "(default: %(default)s)",
    )
    device.add_argument("--use_cuda", action="store_true", help="CUDA if available, else the CPU")
    add(
        "--precision",
        choices=PRECISIONS,
        help="of products: tf32 (CUDA) and fp16 (GPUs) are faster and change maps by some 0.01; "
        "auto is tf32 on CUDA, else fp32 (default: %(default)s)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--output_dir", metavar="DIR", help="created if missing (default: %(default)s)")
    add(
        "--alpha",
        type=float,
        metavar="F",
        help="strength of the heatmap, 0 to 1 (default: %(default)s)",
    )
    add("--colormap", metavar="NAME", help="an OpenCV colour map (default: %(default)s)")
    add(
        "--size",
        type=_overlay_size,
        metavar="SIZE",
        help="of overlays: image, model (of the model's input), or the pixels of the longer side, "
        "never more than the image has (default: image)",
    )
    add(
        "--format",
        choices=FORMATS,
        help="of overlays: auto is PNG up to 4 megapixels and JPEG above, which is several times "
        "as fast (default: %(default)s)",
    )
    add(
        "--save_mask",
        action="store_true",
        help="also save the map as .npy: float32 on the patch grid, largest value 1",
    )
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--show", action="store_true", help="open a window with the result")


def _add_folder(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--report", action="store_true", help="one page with all images, report.html")
    add(
        "--contact_sheet",
        nargs="?",
        const="png",
        choices=("png", "pdf"),
        help="all overlays on one image (png, also without a value) or on A4 pages (pdf)",
    )
    add(
        "--truth",
        metavar="FILE",
        help="the images' true categories: a CSV of file and category, or folders for the names of "
        "the folders that they are in; a mistake gets the maps of what is true, of what was "
        "predicted, and of their difference",
    )
    add(
        "--batch_size",
        type=_batch_size,
        metavar="N",
        help="images per batch (default: auto)",
    )
    add(
        "--workers",
        type=_count,
        metavar="N",
        help="processes that open and draw images, or actors of --engine ray (default: two "
        "processes per processor, at most 16; one actor)",
    )
    add(
        "--engine",
        choices=ENGINES,
        help="ray: a pipeline of actors, also on a cluster (default: %(default)s)",
    )
    add(
        "--gpus_per_worker",
        type=_share_of_gpu,
        metavar="F",
        help="of --engine ray: how much of a GPU each actor takes, 0.5 for two on each (default: "
        "1 where there are GPUs)",
    )
    add("--quiet", action="store_true", help="no progress bar, nothing on stdout")


def _method_name(text: str) -> str:
    try:
        return method_named(text).name
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> tuple[int, int]:
    """ "518" -> (518, 518), "288x512" -> (288, 512)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 518 or 288x512")
    return int(sides[0]), int(sides[-1])


def _overlay_size(text: str) -> int | str:
    if text in ("image", "model"):
        return text
    if not (text.isdecimal() and len(text) < 10 and 0 < int(text) <= LONGEST_SIDE):
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text[:20]!r} (choose from image, model, or a number of pixels from "
            f"1 to {LONGEST_SIDE})"
        )
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _share_of_gpu(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.01 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of a GPU, from 0.01 to 1")
    return share


def _model_arg(text: str) -> tuple[str, object]:
    """("global_pool", "avg") of "global_pool=avg"; a value is a Python literal or a word."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


class _Together(argparse.Action):
    """Pairs of several options of one name, as one dictionary."""

    def __call__(self, _parser, namespace, values, _option=None):
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **dict(values)})


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def as_markdown() -> str:
    """A table for each group: option, meaning, default."""
    shown = parser()
    formatter = shown._get_formatter()
    lines: list[str] = []
    for group in shown._action_groups[2:]:  # argparse's own two come first
        lines += [f"### {group.title.capitalize()}", ""]
        lines += ["| option | meaning | default |", "|---|---|---|"]
        for action in group._group_actions:
            meaning, default = _split_default(formatter._expand_help(action))
            usage = formatter._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
            option = f"{action.option_strings[0]} {usage}".strip()
            lines.append(f"| `{option}` | {meaning} | {default} |")
        lines.append("")
    return "\n".join(lines).strip()


def _split_default(text: str) -> tuple[str, str]:
    """("meaning", "default") of "meaning (default: default)"."""
    found = re.fullmatch(r"(.*) \(default: (.*)\)", text)
    return (found[1], found[2]) if found else (text, "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of options, or put it between the markers of a page."""
    shown = argparse.ArgumentParser(description=__doc__)
    shown.add_argument("--markdown", action="store_true", required=True)
    shown.add_argument("--write", metavar="FILE", help="put it between the page's markers")
    options = shown.parse_args(arguments)

    def run() -> None:
        if options.write:
            write_between(Path(options.write), BEGIN, END, as_markdown())
        else:
            print(as_markdown())

    return run_command("options", run)


if __name__ == "__main__":
    sys.exit(main())
