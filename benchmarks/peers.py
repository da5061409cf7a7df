"""The same maps by what people would use instead, in one run: `python -m benchmarks.peers`

Compared with the widely used script of 2021 (restated in benchmarks.older_script), and with
pytorch-grad-cam, torchcam and captum where they are installed. For each map: medians of rounds in
alternating order, on one image and on a batch, every tool on a model of its own with the same
weights, in one thread, whose processor time counts; the memory that one image adds at its peak, in
a fresh process; and how far the maps agree. Then folders: the command as users run it, and the
loops of benchmarks.peer_folders, each in a process of its own that starts, loads the model once and
writes an overlay for each image.

torchcam is not among the requirements: `pip install --no-deps torchcam==0.5.0`.
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.folder import ROOT, SMALL, make_photographs, timed
from benchmarks.machine import added_memory, machine
from benchmarks.peer_folders import MODEL, TRANSFORM, network
from benchmarks.peer_maps import OURS, WORKS, Run, Tool, Work
from vitexplain.faithfulness.ranks import rank_correlation
from vitexplain.faithfulness.timing import alternating_medians
from vitexplain.images.reading import open_image
from vitexplain.markers import write_between

BEGIN, END = "<!-- peers: made by benchmarks.peers -->", "<!-- peers end -->"
BATCH = 8
LEAST = 3  # rounds, however long they take
ADOPT_ORPHANS = 36  # Linux: PR_SET_CHILD_SUBREAPER, for the time of workers that outlive a command
LOOK_EVERY = 1.0  # seconds between two looks at the memory of a folder's processes


@dataclass(frozen=True)
class Row:
    """One tool's map.

    Attributes:
        seconds: of one image; of an image in a batch, or None.
        forward: seconds of a plain forward pass of one image.
        memory: MiB.
        agreement: (largest difference, rank correlation) with the first tool; None for itself.
    """

    work: str
    tool: str
    seconds: tuple[float, float | None]
    forward: float
    memory: float
    agreement: tuple[float, float] | None


@dataclass(frozen=True)
class FolderRow:
    """One tool's run over a folder.

    Attributes:
        rate: images per second.
        processor: seconds of all its processes for an image.
        memory: their peak, MiB.
    """

    work: str
    tool: str
    rate: float
    processor: float
    memory: float


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of, options.checkpoint)))
        return 0
    torch.set_num_threads(1)  # others of a busy machine would hold up one of several
    works = installed(WORKS)
    rows = [row for work in works for row in measured(work, options)]
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folders = measured_folders(works, options, Path(scratch)) if options.folder else []
    text = table(rows, folders, options)
    print(text)
    if options.write:
        write_between(Path(options.write), BEGIN, END, text)
    return 0


def installed(works: Sequence[Work]) -> list[Work]:
    """The same with those tools that are installed, where one of them is another's; others are
    named on stderr."""
    found = []
    for work in works:
        tools = {name: tool for name, tool in work.tools.items() if find_spec(tool.module)}
        for missing in {tool.by for name, tool in work.tools.items() if name not in tools}:
            print(f"{work.title}: without {missing}, which is not installed", file=sys.stderr)
        if any(tool.by != OURS for tool in tools.values()):
            loops = [name for name in work.loops if name in tools]
            found.append(replace(work, tools=tools, loops=loops))
    return found


def photographs(count: int) -> Tensor:
    """(count, 3, H, W): example photographs as the model sees them."""
    paths = sorted((ROOT / "examples").glob("*.jpg"))
    return torch.stack([TRANSFORM(open_image(paths[i % len(paths)])) for i in range(count)])


def measured(work: Work, options: argparse.Namespace) -> list[Row]:
    """A row for each tool."""
    plain = network(options.checkpoint)
    images = photographs(BATCH)
    with torch.inference_mode():
        categories = plain(images).argmax(dim=1).tolist()
    runs = {name: tool.make(network(options.checkpoint)) for name, tool in work.tools.items()}
    one, of_one = images[:1], categories[:1]
    seconds = medians({"": forward_of(plain), **runs}, one, of_one, options)
    in_batch = medians(runs, images, categories, options) if work.batch else {}
    agreements = agreement(work.tools, runs, one, of_one)
    rows = []
    for name, tool in work.tools.items():
        of_batch = in_batch[name] / BATCH if work.batch else None
        memory = fresh_memory(name, options.checkpoint)
        times = (seconds[name], of_batch)
        rows.append(Row(work.title, tool.title, times, seconds[""], memory, agreements[name]))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def forward_of(model: torch.nn.Module) -> Run:
    @torch.inference_mode()
    def forward(images: Tensor, _categories: list[int]) -> np.ndarray:
        return model(images).numpy()

    return forward


def medians(
    runs: Mapping[str, Run], images: Tensor, categories: list[int], options: argparse.Namespace
) -> dict[str, float]:
    """Median seconds of each run."""
    return alternating_medians(
        {name: lambda run=run: run(images, categories) for name, run in runs.items()},
        images.device,
        options.rounds,
        seconds_in_all=options.seconds,
        least=LEAST,
        clock=time.process_time,
    )


def agreement(
    tools: Mapping[str, Tool], runs: Mapping[str, Run], images: Tensor, categories: list[int]
) -> dict[str, tuple[float, float] | None]:
    """Each tool's largest difference from the first one, and their rank correlation.

    Maps are divided by their largest absolute values before.
    """
    (first, reference), *_ = tools.items()
    expected = reference.own(runs[first](images, categories))
    found: dict[str, tuple[float, float] | None] = {first: None}
    for name, tool in tools.items():
        if name == first:
            continue
        maps = tool.own(runs[name](images, categories))
        if tool.by != reference.by:
            maps = reference.other(maps)
        difference = np.abs(scaled(maps) - scaled(expected)).max()
        found[name] = float(difference), float(rank_correlation(maps, expected).mean())
    return found


def scaled(maps: np.ndarray) -> np.ndarray:
    return maps / np.abs(maps).max(axis=(1, 2), keepdims=True)


def memory_of(name: str, checkpoint: str | None) -> float:
    """MiB that a map of one image adds, at its peak, to the memory after a plain forward pass."""
    model, image = network(checkpoint), photographs(1)
    (tool,) = (work.tools[name] for work in WORKS if name in work.tools)
    run = tool.make(model)
    forward_of(model)(image, [])
    return added_memory(lambda: run(image, [0]))


def fresh_memory(name: str, checkpoint: str | None) -> float:
    """`memory_of` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peers", "--memory_of", name]
    command += ["--checkpoint", checkpoint] if checkpoint else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measured_folders(
    works: Sequence[Work], options: argparse.Namespace, scratch: Path
) -> list[FolderRow]:
    """A row for each loop, and for the command that does the same."""
    folder, output, weights = scratch / "images", scratch / "output", scratch / "model.safetensors"
    make_photographs(folder, options.folder, SMALL)
    save_file(network(options.checkpoint).state_dict(), weights)
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1)
    explain = [sys.executable, str(ROOT / "vit_explain.py"), "--image_path", str(folder)]
    explain += ["--output_dir", str(output), "--device", "cpu", "--json"]
    explain += ["--model", MODEL, "--checkpoint", str(weights)]
    rows = []
    for work in works:
        loop = [sys.executable, "-m", "benchmarks.peer_folders"]
        given = [str(folder), str(output), str(weights)]
        commands = {work.tools[name].title: [*loop, name, *given] for name in work.loops}
        if commands:
            commands[OURS] = [*explain, *work.options]
        for tool, command in commands.items():
            before = processor_seconds()
            done = timed(command, folder, output, LOOK_EVERY)
            spent = (processor_seconds() - before) / options.folder
            rate = options.folder / done.seconds
            rows.append(FolderRow(work.title, tool, rate, spent, done.mebibytes))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def processor_seconds() -> float:
    """Of all processes that were started here, and of theirs: all of them have ended then."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, 0):
            pass
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def table(rows: Sequence[Row], folders: Sequence[FolderRow], options: argparse.Namespace) -> str:
    """Markdown: what was measured, a row for each map, and a row for each run over a folder."""
    weights = "random weights" if options.checkpoint is None else "its ImageNet-1k weights"
    lines = [
        f"{machine('cpu')}; torch {torch.__version__}, "
        f"timm {timm.__version__}; {MODEL}, {weights}; processor time of one thread, medians of "
        f"{options.rounds} rounds; of slow maps, as many as fit into {options.seconds} s, at least "
        f"{LEAST}.",
        "",
        f"| map | by | one image | ÷ forward pass | an image in a batch of {BATCH} | memory added "
        "| largest difference | rank correlation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        one, batch = row.seconds
        cells = [row.work, row.tool, milliseconds(one), f"{one / row.forward:.1f}"]
        cells += ["" if batch is None else milliseconds(batch), f"{row.memory:.0f} MiB"]
        cells += ["", ""] if row.agreement is None else ["{:.1g}", "{:.3f}"]
        lines.append("| " + " | ".join(cells).format(*row.agreement or ()) + " |")
    if folders:
        size = f"{SMALL[0]}x{SMALL[1]}"
        lines += [
            "",
            f"| {options.folder} images of {size} | by | images per second "
            "| processor time of an image | peak memory |",
            "|---|---|---|---|---|",
        ]
    for row in folders:
        cells = [row.work, row.tool, f"{row.rate:.1f}", milliseconds(row.processor)]
        lines.append(f"| {' | '.join(cells)} | {row.memory:.0f} MiB |")
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", help=f"weights of {MODEL}; default: random ones")
    add("--folder", type=int, default=500, help="photographs of 500x375; 0: none")
    add("--rounds", type=int, default=15)
    add("--seconds", type=int, default=15, help="after these no further round begins")
    add("--scratch", help="folder for images and overlays, some hundred megabytes")
    add("--write", metavar="PAGE", help="put the tables between their markers")
    add("--memory_of", metavar="TOOL", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
