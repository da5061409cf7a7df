"""How long until one map is drawn? `python -m benchmarks.start`

Whole commands on one image, and `python -c "import torch"`, without which no program of torch can
do anything: processor time of the process and its children, time, and peak memory. Medians of
rounds in alternating order, everything in the file cache.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from benchmarks.speed import machine
from vitexplain.markers import write_between

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- start: made by benchmarks.start -->", "<!-- start end -->"
# in a small process, as a peak is at least that of the process that started it
MEASURE = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - started
print(json.dumps([usage.ru_utime + usage.ru_stime, seconds, usage.ru_maxrss / 1024]))
sys.exit(os.waitstatus_to_exitcode(status))
"""
TORCH = 'python -c "import torch"'
BIG = "vit_base_patch16_224"


@dataclass(frozen=True)
class Cost:
    """Of one process and its children, or medians of several."""

    processor: float  # seconds
    seconds: float
    mebibytes: float


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        text = table(measure(commands(Path(scratch)), options.rounds))
    print(text)
    if options.write:
        write_between(Path(options.write), BEGIN, END, text)
    return 0


def commands(scratch: Path) -> dict[str, list[str]]:
    """What is timed, by name; weights are random, which does not change the work."""
    weights = scratch / "weights.safetensors"
    save_file(timm.create_model(BIG).state_dict(), weights)
    image = ["--image_path", str(ROOT / "examples" / "both.png"), "--output_dir", str(scratch)]
    explain = [sys.executable, str(ROOT / "vit_explain.py"), *image, "--device", "cpu"]
    return {
        TORCH: [sys.executable, "-c", "import torch"],
        "attention rollout, bundled model": [*explain, "--model", "bundled"],
        "gradient rollout, bundled model": [*explain, "--model", "bundled", "--category", "243"],
        "attention rollout, ViT-B from a file": [
            *explain,
            *("--model", BIG, "--checkpoint", str(weights)),
        ],
    }


def measure(timed: dict[str, list[str]], rounds: int) -> dict[str, Cost]:
    """The medians of each command; the first round fills the file cache and is not counted."""
    costs: dict[str, list[Cost]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name in list(timed)[:: 1 if number % 2 else -1]:
            cost = run(timed[name])
            if number:
                costs[name].append(cost)
    return {name: median(several) for name, several in costs.items()}


def run(command: Sequence[str]) -> Cost:
    """Run a command to its end.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    measured = [sys.executable, "-c", MEASURE, *command]
    done = subprocess.run(measured, capture_output=True, text=True, check=True)
    return Cost(*json.loads(done.stdout))


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.processor for cost in costs),
        statistics.median(cost.seconds for cost in costs),
        statistics.median(cost.mebibytes for cost in costs),
    )


def table(costs: dict[str, Cost]) -> str:
    """Markdown: a row for each command, as multiples of importing torch."""
    base = costs[TORCH]
    lines = [
        f"{machine('cpu')}; torch {torch.__version__}, timm {timm.__version__}. Importing torch: "
        f"{base.processor:.1f} s of processor time, {base.mebibytes:.0f} MiB.",
        "",
        '| whole command | processor time ÷ `python -c "import torch"` | time ÷ | peak memory ÷ |',
        "|---|---|---|---|",
    ]
    for name, cost in costs.items():
        if name != TORCH:
            ratios = (
                cost.processor / base.processor,
                cost.seconds / base.seconds,
                cost.mebibytes / base.mebibytes,
            )
            lines.append(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=9)
    add("--write", metavar="PAGE", help="put the table between its markers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
