"""What whole tasks cost, in forward passes of the same model on one image.

Times are the processor's, of all threads, as tasks are too long to be alone on a machine.

Two of them, with the bundled model: the methods of `--compare` with how faithful each map is, and
an epoch of fine-tuning with the default options. Besides their time, how many images pass the
model: these are counted at its blocks, so that part of a pass is part of an image.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from benchmarks.folder import ROOT, SMALL, make_photographs
from vitexplain.attention.tokens import blocks_of
from vitexplain.explainer import Explainer
from vitexplain.faithfulness.timing import alternating_medians
from vitexplain.images.reading import open_image
from vitexplain.models.loading import LoadedModel, load_model
from vitexplain.settings import MapOptions
from vitexplain.training.train import Training
from vitexplain.training.train import parser as training_parser

MODEL = "bundled"
IMAGES = 76  # of each of two categories, to train on: four batches of 32, and some to validate
LEAST = 3  # rounds, however long they take
CPU = torch.device("cpu")


@dataclass
class Passes:
    """How many images passed the blocks of a model, forward and backward.

    A pass through one of four blocks counts as a quarter. Backward, it counts wherever a gradient
    that is not 0 reaches the block's output.
    """

    forward: float = 0
    backward: float = 0


@contextmanager
def counted(model: nn.Module) -> Iterator[Passes]:
    """Count what passes `model`, and copies of it, while the context is open."""
    blocks = blocks_of(model)
    kinds, share = tuple({type(block) for block in blocks}), 1 / len(blocks)
    passes = Passes()

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, kinds):
            passes.forward += share * len(inputs[0])

    def after(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, kinds) and output.requires_grad:
            output.register_hook(backward)

    def backward(gradient: Tensor) -> None:
        passes.backward += share * int(gradient.flatten(1).any(dim=1).sum())

    with ExitStack() as undo:
        undo.callback(register_module_forward_pre_hook(before).remove)
        undo.callback(register_module_forward_hook(after).remove)
        yield passes


def comparison(loaded: LoadedModel) -> tuple[Explainer, Tensor]:
    """What `--compare` does with one image, and the image (1, 3, H, W)."""
    image = open_image(ROOT / "examples" / "both.png")
    explainer = Explainer(MapOptions(compare=True), loaded)
    return explainer, loaded.transform(image)[None]


def compare_row(options: argparse.Namespace) -> str:
    """Markdown: all methods of one image, each with its faithfulness."""
    loaded = load_model(MODEL)
    explainer, image = comparison(loaded)
    with counted(loaded.model) as passes:
        explainer(image)
    runs = {
        "forward": lambda: forward(loaded.model, image),
        "task": lambda: explainer(image),
    }
    seconds = medians(runs, options)
    title = f"`--compare`, {len(explainer.methods)} methods and their faithfulness, one image"
    ratio = seconds["task"] / seconds["forward"]
    return f"| {title} | {ratio:.0f} | {passes.forward:.0f} | {passes.backward:.0f} |"


def training_row(options: argparse.Namespace) -> str:
    """Markdown: an epoch of fine-tuning, for each image of it."""
    with TemporaryDirectory() as scratch:
        runs = (training(Path(scratch), number) for number in range(options.rounds + 2))
        first = next(runs)
        epoch = first.batches.updates * first.batch + len(first.validation_data)
        model = load_model(MODEL).model
        images = torch.randn(first.batch, *first.data_config["input_size"])
        # made before they are timed: to load a model is no part of an epoch
        ready = iter([first, *runs])
        with counted(first.model) as passes:
            quietly(next(ready))
        seconds = medians(
            {"forward": lambda: forward(model, images), "task": lambda: quietly(next(ready))},
            options,
        )
    title = f"an epoch of fine-tuning, batches of {first.batch}, each image of {epoch}"
    ratio = seconds["task"] / epoch / (seconds["forward"] / first.batch)
    forwards, backwards = passes.forward / epoch, passes.backward / epoch
    return f"| {title} | {ratio:.1f} | {forwards:.1f} | {backwards:.1f} |"


def training(scratch: Path, number: int) -> Training:
    """Fine-tuning the bundled model for one epoch, on two categories of photographs."""
    data = scratch / "data"
    if not data.exists():
        data.mkdir()
        for category in ("one", "another"):
            make_photographs(data / category, IMAGES, SMALL)
    given = ["--data", str(data), "--output", str(scratch / str(number)), "--epochs", "1"]
    return Training(training_parser().parse_args(given))


def quietly(run: Training) -> None:
    """Train, without what it says of its progress."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        run.run()


@torch.inference_mode()
def forward(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def medians(
    runs: Mapping[str, Callable[[], object]], options: argparse.Namespace
) -> dict[str, float]:
    return alternating_medians(
        runs,
        CPU,
        options.rounds,
        seconds_in_all=options.seconds,
        least=LEAST,
        clock=time.process_time,
    )


ROWS = {"compare": compare_row, "training": training_row}


def table(options: argparse.Namespace) -> str:
    """Markdown: a row for each task of `options.tasks`."""
    lines = [
        "| task | processor time ÷ forward pass of an image | images passed forward | backward |",
        "|---|---|---|---|",
    ]
    return "\n".join(lines + [ROWS[task](options) for task in options.tasks])
