"""How fast are folders explained, compared with the forward pass? `python -m benchmarks.folder`

For each model, in one run: the command on a folder of small photographs, on a tenth of it, and on
a folder of large ones, including its start and writing overlays; and plain forward passes on
batches of 8 before and after each folder (medians). Memory is the peak of all processes together
(proportional set size, every five seconds). The photographs are made from those in examples/.

Another table, of `--pictures` N: the command on large photographs as cameras write them, next to
what can't be avoided: opening the same JPEGs and writing them again, once, in as many processes,
before and after the command.

With `--ray N`, also how much two of Ray's actors do in the time of one: on N small photographs, by
turns, their rate once all are at work, from the times of the overlays, as medians.
"""

import argparse
import importlib.util
import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.machine import machine
from vitexplain.markers import write_between
from vitexplain.models.loading import load_model
from vitexplain.parallel import processors

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- folder: made by benchmarks.folder -->", "<!-- folder end -->"
BEGIN_PICTURES = "<!-- photographs: made by benchmarks.folder -->"
END_PICTURES = "<!-- photographs end -->"
GRAIN = 6  # of 255: with it the JPEGs are as large as those of cameras, 3 to 4 MB
WAYS = ((), ("--size", "1500"), ("--format", "png"))  # the first as by default
SMALL, LARGE = (500, 375), (4000, 3000)
BATCH = 8
LOOK_EVERY = 5.0  # seconds: rarely, as reading the maps of all processes takes a while
DEIT = "deit_tiny_patch16_224"


@dataclass(frozen=True)
class Row:
    """One run over a folder."""

    model: str
    images: str
    forward_rate: float  # images per second
    rate: float  # the same, of the command
    mebibytes: float


@dataclass(frozen=True)
class PictureRow:
    """One run over photographs of cameras.

    Attributes:
        rate, copy_rate: images per second, of the command and of opening and writing alone.
    """

    way: str
    images: str
    rate: float
    copy_rate: float
    mebibytes: float


@dataclass(frozen=True)
class Scaling:
    """Runs by one and by two actors of Ray, by turns: images per second once all are at work."""

    images: str
    rates: dict[int, float]  # by the number of actors, the median of all rounds
    mebibytes: dict[int, float]


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        if options.pictures:
            text = picture_table(measure_pictures(options.pictures, Path(scratch)))
            markers = BEGIN_PICTURES, END_PICTURES
        else:
            text = table(measure(options, Path(scratch)))
            markers = BEGIN, END
            if options.ray and has_ray():
                text += f"\n\n{scaling_table(scaling(options, Path(scratch)))}"
    print(text)
    if options.write:
        write_between(Path(options.write), *markers, text)
    return 0


def measure_pictures(count: int, scratch: Path) -> list[PictureRow]:
    """Run the command on `count` photographs in each of the WAYS, between copies of them."""
    folder = scratch / "pictures"
    make_photographs(folder, count, LARGE, GRAIN)
    paths = sorted(folder.iterdir())
    mebibytes = sum(path.stat().st_size for path in paths) / count / 2**20
    images = f"{count} of {LARGE[0]}x{LARGE[1]}, {mebibytes:.1f} MiB each"
    arguments = model_arguments(DEIT, scratch)
    rows = []
    before = copy_seconds(paths)
    for way in WAYS:
        done = explain(folder, scratch / "output", [*arguments, *way])
        after = copy_seconds(paths)
        copied = count / statistics.mean((before, after))
        rate = count / done.seconds
        rows.append(PictureRow(" ".join(way), images, rate, copied, done.mebibytes))
        print(rows[-1], file=sys.stderr, flush=True)
        before = after
    return rows


def copy_seconds(paths: Sequence[Path]) -> float:
    """Seconds of opening and writing JPEGs once, in as many processes as the command has."""
    # torch's threads in this process don't survive a fork
    count = min(2 * processors(), 16)
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        list(pool.map(copy, paths[:1] * 4 * count))  # all have started
        started = time.perf_counter()
        list(pool.map(copy, paths))
        return time.perf_counter() - started


def copy(path: Path) -> None:
    """Open a JPEG, and write it again as overlays are, but to memory."""
    with Image.open(path) as image:
        image.save(io.BytesIO(), "JPEG", quality=92)


def measure(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Make the photographs, and run over every folder with every model."""
    folders = [
        (options.small // 10, SMALL, scratch / "tenth"),
        (options.small, SMALL, scratch / "small"),
        (options.large, LARGE, scratch / "large"),
    ]
    for count, size, folder in folders:
        make_photographs(folder, count, size)
    rows = []
    for model in options.models:
        arguments = model_arguments(model, scratch)
        for count, size, folder in folders:
            if count:
                images = f"{count} of {size[0]}x{size[1]}"
                rows.append(measured(model, images, folder, arguments, options))
    return rows


def has_ray() -> bool:
    """Whether Ray is installed; if not, that is said."""
    if importlib.util.find_spec("ray") is not None:
        return True
    print("--ray is left out: it needs pip install -r requirements-ray.txt", file=sys.stderr)
    return False


def scaling(options: argparse.Namespace, scratch: Path) -> Scaling:
    """Run by one and by two actors; the order is reversed from round to round."""
    folder = scratch / "ray"
    make_photographs(folder, options.ray, SMALL)
    rates: dict[int, list[float]] = {1: [], 2: []}
    mebibytes: dict[int, list[float]] = {1: [], 2: []}
    for number in range(options.ray_rounds):
        for workers in (1, 2) if number % 2 else (2, 1):
            arguments = ["--model", "bundled", "--engine", "ray", "--workers", str(workers)]
            done = explain(folder, scratch / "output", arguments)
            rates[workers].append(done.rate)
            mebibytes[workers].append(done.mebibytes)
            print(f"{workers} of Ray's actors: {done}", file=sys.stderr, flush=True)
    return Scaling(
        f"{options.ray} of {SMALL[0]}x{SMALL[1]}",
        {workers: statistics.median(each) for workers, each in rates.items()},
        {workers: max(each) for workers, each in mebibytes.items()},
    )


def measured(
    model: str,
    images: str,
    folder: Path,
    arguments: Sequence[str],
    options: argparse.Namespace,
) -> Row:
    """Run the command on a folder, between plain forward passes of the same model."""
    before = forward_seconds(model, options.rounds)
    done = explain(folder, folder.parent / "output", arguments)
    after = forward_seconds(model, options.rounds)
    forward_rate = BATCH / statistics.median(before + after)
    rate = len(list(folder.iterdir())) / done.seconds
    row = Row(model, images, forward_rate, rate, done.mebibytes)
    print(row, file=sys.stderr, flush=True)
    return row


def make_photographs(
    folder: Path, count: int, size: tuple[int, int], grain: float | None = None
) -> None:
    """Write `count` JPEGs, each a different part of one of the example photographs.

    Args:
        grain: standard deviation of noise in brightness, of 255: an enlarged photograph has no
            detail of its own. With it the quality is a camera's.
    """
    noise = np.random.default_rng(0)
    folder.mkdir()
    sources = [
        Image.open(path).convert("RGB") for path in sorted((ROOT / "examples").glob("*.jpg"))
    ]
    for number in range(count):
        source = sources[number % len(sources)]
        shift = number // len(sources) % 50 / 200
        box = (shift * source.width, shift * source.height, *source.size)
        image, options = source.resize(size, Image.Resampling.BICUBIC, box), {}
        if grain is not None:
            added = noise.normal(0, grain, (*size[::-1], 1)).astype(np.float32)
            image = Image.fromarray(np.uint8((np.asarray(image) + added).clip(0, 255)))
            options = {"quality": 92}
        image.save(folder / f"{number:05}.jpg", **options)


def model_arguments(model: str, scratch: Path) -> list[str]:
    """Options that choose the model; weights that would have to be downloaded are random."""
    if model == "bundled":
        return ["--model", model]
    weights = scratch / f"{model}.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(model).state_dict(), weights)
    return ["--model", model, "--checkpoint", str(weights)]


@torch.inference_mode()
def forward_seconds(model: str, rounds: int) -> list[float]:
    """Seconds of each of `rounds` plain forward passes on BATCH images."""
    network = load_model(model).model if model == "bundled" else timm.create_model(model).eval()
    images = torch.randn(BATCH, 3, 224, 224)
    seconds = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - started)
    return seconds[2:]


@dataclass(frozen=True)
class Done:
    """One run of the command.

    Attributes:
        seconds: in all.
        mebibytes: peak memory.
        rate: images per second of the middle half, when all processes have long been at work.
    """

    seconds: float
    mebibytes: float
    rate: float


def explain(folder: Path, output: Path, arguments: Sequence[str]) -> Done:
    """Run the command on a folder; what it writes is removed again."""
    command = [sys.executable, str(ROOT / "vit_explain.py"), "--image_path", str(folder)]
    command += ["--output_dir", str(output), "--device", "cpu", "--json", *arguments]
    return timed(command, folder, output)


def timed(
    command: Sequence[str], folder: Path, output: Path, look_every: float = LOOK_EVERY
) -> Done:
    """Run what explains a folder and prints how many images it explained, as JSON, at its end.

    Args:
        output: what it writes, and is deleted.
        look_every: seconds between two looks at its memory.

    Raises:
        RuntimeError: if it fails, or leaves images out.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True)
    peak: list[float] = [0.0]
    watch = threading.Thread(target=_watch, args=(process, peak, look_every), daemon=True)
    watch.start()
    out, _ = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode or json.loads(out)["explained"] != len(list(folder.iterdir())):
        raise RuntimeError(f"the command failed on {folder}")
    rate = middle_rate([path.stat().st_mtime for path in output.rglob("*.png")])
    shutil.rmtree(output)
    return Done(seconds, peak[0], rate)


def middle_rate(times: Sequence[float]) -> float:
    """Per second, how many of these came in their middle half."""
    times = sorted(times)
    first, last = len(times) // 4, len(times) * 3 // 4
    passed = times[last] - times[first] if times else 0.0
    return (last - first) / passed if passed else math.nan


def _watch(process: subprocess.Popen, peak: list[float], look_every: float) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_memory_of(pid) for pid in _processes(process.pid)) / 1024)
        time.sleep(look_every)


def _processes(session: int) -> Iterator[int]:
    """The command's processes: it and its workers share a session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getsid(int(entry.name)) == session:
                    yield int(entry.name)
            except ProcessLookupError:
                continue


def _memory_of(pid: int) -> int:
    """kB, of which shared memory is divided among the processes that share it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def table(rows: Sequence[Row]) -> str:
    """Markdown: a row for each run."""
    lines = [
        f"{machine('cpu')}; torch {torch.__version__}, timm {timm.__version__}.",
        "",
        "| model | images | share of the forward pass's rate | peak memory |",
        "|---|---|---|---|",
    ]
    for row in rows:
        share = row.rate / row.forward_rate
        lines.append(f"| {row.model} | {row.images} | {share:.2f} | {row.mebibytes:.0f} MiB |")
    return "\n".join(lines)


def picture_table(rows: Sequence[PictureRow]) -> str:
    """Markdown: a row for each way to write overlays."""
    lines = [
        f"{machine('cpu')}; {DEIT}, {rows[0].images}.",
        "",
        "| options | share of the rate of opening and writing alone | peak memory |",
        "|---|---|---|",
    ]
    for row in rows:
        option = f"`{row.way}`" if row.way else "none"
        lines.append(f"| {option} | {row.rate / row.copy_rate:.2f} | {row.mebibytes:.0f} MiB |")
    return "\n".join(lines)


def scaling_table(found: Scaling) -> str:
    """Markdown: a row for each number of actors."""
    lines = [
        f"By Ray's actors, {found.images}:",
        "",
        "| actors | images per second | times one actor's | peak memory |",
        "|---|---|---|---|",
    ]
    for workers, rate in found.rates.items():
        times = rate / found.rates[1]
        mebibytes = found.mebibytes[workers]
        lines.append(f"| {workers} | {rate:.1f} | {times:.2f} | {mebibytes:.0f} MiB |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=("bundled", DEIT), default=["bundled", DEIT])
    add("--small", type=int, default=5000, help="photographs of 500x375")
    add("--large", type=int, default=500, help="photographs of 4000x3000")
    add("--ray", type=int, default=0, help="small photographs for --engine ray; 0: none")
    add("--pictures", type=int, default=0, help="photographs of cameras: the other table alone")
    add("--ray_rounds", type=int, default=3, help="runs by one and by two of Ray's actors")
    add("--rounds", type=int, default=20, help="forward passes before and after each folder")
    add("--scratch", help="folder for images and overlays, a few gigabytes")
    add("--write", metavar="PAGE", help="put the table between its markers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
