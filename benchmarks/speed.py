"""What does a map cost, compared with the model's own passes? `python -m benchmarks.speed`

Medians of rounds in alternating order: a plain forward pass with fused attention; the same with a
backward pass to the first attention, parameters frozen; rollout; gradient rollout. The memory that
each adds at its peak is measured in a fresh process of its own. Weights are random, which does not
change the work. A second table is of whole tasks, see benchmarks.tasks; `--cases` or `--tasks`
without names leave one of them out.

--peer FILE measures another implementation, too: a Python file with `rollout(model, images)` and
`grad_rollout(model, images, category)`.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from benchmarks import tasks
from benchmarks.machine import added_memory, machine
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.faithfulness.timing import alternating_medians
from vitexplain.markers import write_between

# name: (model in timm, changes, batch size)
CASES = {
    "deit_tiny, batch 1": ("deit_tiny_patch16_224", {}, 1),
    "deit_tiny, batch 8": ("deit_tiny_patch16_224", {}, 8),
    "vit_base, batch 1": ("vit_base_patch16_224", {}, 1),
    "vit_base, batch 8": ("vit_base_patch16_224", {}, 8),
    "DINOv2-S 518 px, batch 1": ("vit_small_patch14_dinov2", {"num_classes": 1000}, 1),
    "DINOv2-S 518 px, batch 8": ("vit_small_patch14_dinov2", {"num_classes": 1000}, 8),
}
BASES = {"rollout": "forward", "grad_rollout": "forward_backward"}
LEAST = 3  # rounds, however long they take
BEGIN, END = "<!-- speed: made by benchmarks.speed -->", "<!-- speed end -->"
TASKS_BEGIN, TASKS_END = "<!-- tasks: made by benchmarks.speed -->", "<!-- tasks end -->"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.memory_of:
        print(json.dumps(memory_of(*options.memory_of, options)))
        return 0
    if options.cases:
        show(cases(options), options, BEGIN, END)
    if options.tasks and options.device == "cpu":  # where their processor time tells something
        text = f"{made_by(options)}\n\n{tasks.table(options)}"
        show(text, options, TASKS_BEGIN, TASKS_END)
    return 0


def show(text: str, options: argparse.Namespace, begin: str, end: str) -> None:
    """Print a table, and put it into its page."""
    print(text)
    if options.write:
        write_between(Path(options.write), begin, end, text)


def cases(options: argparse.Namespace) -> str:
    """Measure all cases: the table of `table`."""
    rows = []
    for case in options.cases:
        seconds = times(case, options)
        print(f"{case}: " + ", ".join(f"{k} {1000 * v:.0f} ms" for k, v in seconds.items()),
              file=sys.stderr, flush=True)  # fmt: skip
        memory = {kind: fresh_memory(case, kind, options) for kind in seconds}
        rows.append((case, seconds, memory))
    return table(rows, options)


def runs(case: str, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What is timed, by name, all on one model and one batch."""
    name, changes, batch = CASES[case]
    torch.manual_seed(0)
    model = timm.create_model(name, **changes).eval().to(options.device)
    size = model.pretrained_cfg["input_size"]
    images = torch.randn(batch, *size, device=options.device)
    categories = [0] * batch
    rollout, graded = VITAttentionRollout(model), VITAttentionGradRollout(model)
    found = {
        "forward": lambda: _forward(model, images),
        "forward_backward": lambda: _forward_backward(model, images),
        "rollout": lambda: rollout.batch(images),
        "grad_rollout": lambda: graded.batch(images, categories),
    }
    if options.peer:
        peer = _module(options.peer)
        found["peer_rollout"] = lambda: peer.rollout(model, images)
        found["peer_grad_rollout"] = lambda: peer.grad_rollout(model, images, 0)
    return found


@torch.inference_mode()
def _forward(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def _forward_backward(model: nn.Module, images: Tensor) -> Tensor:
    """A forward pass, and one logit's gradient with respect to the first attention's input."""
    start = []

    def begin_here(_layer, _inputs, output):
        start.append(output.detach().requires_grad_())
        return start[0]

    frozen = [p for p in model.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    hook = model.blocks[0].attn.qkv.register_forward_hook(begin_here)
    try:
        (gradient,) = torch.autograd.grad(model(images)[:, 0].sum(), start)
    finally:
        hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)
    return gradient


def times(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each run."""
    return alternating_medians(
        runs(case, options),
        torch.device(options.device),
        options.rounds,
        seconds_in_all=options.seconds,
        least=LEAST,
    )


def memory_of(case: str, kind: str, options: argparse.Namespace) -> float:
    """MiB that a run adds, at its peak, to the memory after a plain forward pass."""
    found = runs(case, options)
    found["forward"]()
    return added_memory(found[kind], options.device)


def fresh_memory(case: str, kind: str, options: argparse.Namespace) -> float:
    """`memory_of` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed", "--memory_of", case, kind]
    command += ["--device", options.device] + (["--peer", options.peer] if options.peer else [])
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def table(rows: list, options: argparse.Namespace) -> str:
    """Markdown: what was measured, and a row for each case."""
    lines = [
        made_by(options),
        "",
        "| model | rollout ÷ forward | gradient rollout ÷ (forward + backward) "
        "| memory added: forward | forward + backward | rollout | gradient rollout |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, seconds, memory in rows:
        ratios = {kind: seconds[kind] / seconds[base] for kind, base in BASES.items()}
        cells = [f"{ratios[kind]:.2f}" for kind in BASES]
        cells += [f"{memory[k]:.0f} MiB" for k in (*BASES.values(), *BASES)]
        lines.append(f"| {case} | {' | '.join(cells)} |")
        if options.peer:
            cells = [f"{seconds[f'peer_{k}'] / seconds[base]:.2f}" for k, base in BASES.items()]
            cells += ["", ""] + [f"{memory[f'peer_{k}']:.0f} MiB" for k in BASES]
            lines.append(f"| the same, {Path(options.peer).stem} | {' | '.join(cells)} |")
    return "\n".join(lines)


def made_by(options: argparse.Namespace) -> str:
    """Where and how it was measured."""
    return (
        f"{machine(options.device)}; torch {torch.__version__}, timm {timm.__version__}; "
        f"medians of {options.rounds} rounds; of slow cases, as many as fit into "
        f"{options.seconds} s, at least {LEAST}."
    )


def _module(path: str):
    spec = importlib.util.spec_from_file_location("peer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--cases", nargs="*", choices=CASES, default=list(CASES), metavar="CASE")
    add("--tasks", nargs="*", choices=tasks.ROWS, default=list(tasks.ROWS), metavar="TASK")
    add("--rounds", type=int, default=15)
    add("--seconds", type=int, default=90, help="after these no further round begins")
    add("--device", default="cpu")
    add("--peer", metavar="FILE", help="Python file with rollout and grad_rollout")
    add("--write", metavar="PAGE", help="put the table between its markers")
    add("--memory_of", nargs=2, metavar=("CASE", "KIND"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
