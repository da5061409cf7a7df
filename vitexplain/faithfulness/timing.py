"""Timing several runs against each other, and methods against the model's forward pass."""

import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.checks import images_for
from vitexplain.attention.shadow import shadow_of
from vitexplain.faithfulness.passes import masks_of
from vitexplain.methods.registry import Method
from vitexplain.precision import GPUS

ROUNDS = 5


def cost(
    methods: Mapping[str, Method], model: nn.Module, images: Tensor, categories: list[int]
) -> dict[str, float]:
    """By name: median seconds of a map ÷ median seconds of a plain forward pass."""
    images, shadow = images_for(model, images), shadow_of(model)

    def plain() -> None:
        with torch.inference_mode():
            forward(shadow, images)

    runs: dict[str, Callable[[], object]] = {"": plain}
    for name, method in methods.items():
        runs[name] = lambda method=method: masks_of(method, model, images, categories)
    seconds = alternating_medians(runs, images.device)
    return {name: seconds[name] / seconds[""] for name in methods}


def alternating_medians(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int = ROUNDS,
    *,
    seconds_in_all: float = math.inf,
    least: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each run, all of them being timed in the same rounds.

    The order is reversed from round to round, so that no run always follows the same other one; a
    round that does not count warms up.

    Args:
        device: where the runs compute; a GPU's work is waited for.
        rounds: how often each run is timed.
        seconds_in_all: after these no further round begins, unless fewer than `least` are done.
        clock: what tells the time of a run, in seconds; time.process_time leaves out what other
            processes of a busy machine take.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for number in range(rounds + 1):
        if number > least and time.perf_counter() - began > seconds_in_all:
            break
        for name in list(runs) if number % 2 else reversed(list(runs)):
            _wait(device)
            started = clock()
            runs[name]()
            _wait(device)
            if number:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type in GPUS:
        torch.accelerator.synchronize(device)
