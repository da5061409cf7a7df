"""Distil the bundled model: `python -m training.distill --data FOLDER --output FOLDER`.

Fresh pictures are made all the time and shown to the frozen convolutions, whose output goes into
a ring of the latest pictures; the transformer learns from random samples of that ring, each used
a few times. It learns

- the teacher's prediction (Kullback-Leibler divergence),
- its logits, standardised category by category: a regression that teaches also those categories
  of which there is no photograph, because every picture is a little like each of them,
- its pooled features, and, at every token, its features at that place.

May be interrupted at any moment: the same command goes on from the last checkpoint, with a ring
of fresh pictures.
"""

import argparse
import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from training.pictures import PictureMaker, is_held_out, read_zip
from training.student import Student, TwoViews, copy_convolutions, load_teacher, save_network
from vit_model import build_network, bundled_folder

TOKENS, WIDTH = 196, 320
WEIGHTS = {"prediction": 1.0, "logits": 2.0, "features": 0.5, "dense": 0.25}


class Ring:
    """The latest pictures as the convolutions see them, with the teacher's answers."""

    def __init__(self, size: int):
        self.size, self.filled, self.next = size, 0, 0
        self.tokens = torch.empty(size, TOKENS, WIDTH, dtype=torch.float16)
        self.seen = torch.empty(size, TOKENS // 4, 1280, dtype=torch.float16)
        self.logits = torch.empty(size, 1000, dtype=torch.float16)

    def add(self, tokens: Tensor, seen: Tensor, logits: Tensor) -> None:
        for value in zip(tokens, seen, logits, strict=True):
            for store, item in zip((self.tokens, self.seen, self.logits), value, strict=True):
                store[self.next] = item
            self.next = (self.next + 1) % self.size
            self.filled = min(self.filled + 1, self.size)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(self.filled, (count,), generator=generator)
        return self.tokens[chosen].float(), self.seen[chosen].float(), self.logits[chosen].float()


class Producer:
    """Makes pictures and shows them to teacher and stem."""

    def __init__(self, maker: PictureMaker, views: TwoViews, seed: int):
        self.maker, self.views, self.seed = maker, views.eval(), seed
        self.pool = ThreadPoolExecutor(2)

    @torch.inference_mode()
    def produce(self, number: int, count: int, batch: int = 64):
        """Batch by batch, pictures `number` to `number + count` of the endless series."""
        for start in range(number, number + count, batch):
            numbers = range(start, min(start + batch, number + count))
            pixels = torch.stack(list(self.pool.map(self._pixels, numbers)))
            with torch.autocast("cpu", torch.bfloat16):
                yield tuple(value.float() for value in self.views(pixels / 127.5 - 1))

    def _pixels(self, number: int) -> Tensor:
        picture = self.maker.make(random.Random(self.seed * 1_000_003 + number))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()


def loss_of(student: nn.Module, tokens: Tensor, seen: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """The three things the student learns from a batch, each a mean over it."""
    side = math.isqrt(TOKENS)
    with torch.autocast("cpu", torch.bfloat16):
        pooled, dense, predicted = student(student.standardise(tokens))
    pooled, dense, predicted = pooled.float(), dense.float(), predicted.float()
    target = seen.mean(dim=1)
    # the teacher's map is half as fine as the student's tokens
    dense = dense.mT.unflatten(2, (side, side))
    dense = F.avg_pool2d(dense, 2).flatten(2).mT
    return {
        "prediction": F.kl_div(
            predicted.log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True
        ),
        "logits": ((predicted - logits) / student.logit_std).square().mean(),
        "features": F.mse_loss(pooled, (target - student.pooled_mean) / student.pooled_std),
        "dense": F.mse_loss(dense, (seen - student.dense_mean) / student.dense_std),
    }


def statistics_of(batches: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """Mean and deviation, by channel, of tokens, dense and pooled features, and logits."""
    tokens = torch.cat([b[0] for b in batches]).flatten(0, 1)
    dense = torch.cat([b[1] for b in batches])
    logits = torch.cat([b[2] for b in batches])
    values = {
        "token": tokens,
        "dense": dense.flatten(0, 1),
        "pooled": dense.mean(dim=1),
        "logit": logits,
    }
    return {f"{name}_mean": v.mean(0) for name, v in values.items()} | {
        f"{name}_std": v.std(0) + 1e-3 for name, v in values.items()
    }


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    config = json.loads((bundled_folder() / "config.json").read_text(encoding="utf-8"))
    teacher = load_teacher()
    stem = build_network(config).patch_embed.backbone
    copy_convolutions(teacher, stem)
    producer = Producer(_maker(Path(options.data)), TwoViews(teacher, stem), options.seed)
    Distillation(options, config, teacher, producer, output).run()


def _maker(data: Path) -> PictureMaker:
    photographs = [p for c, p in read_zip(data / "photos.zip") if not is_held_out(c)]
    thumbnails = [p for _, p in read_zip(data / "thumbs_train.zip")]
    return PictureMaker(photographs, thumbnails)


class Distillation:
    """The loop, and what of it is kept in a checkpoint."""

    def __init__(self, options, config: dict, teacher: nn.Module, producer: Producer, output: Path):
        self.options, self.config, self.producer, self.output = options, config, producer, output
        self.round, self.seconds = 0, 0.0
        self.ring = Ring(options.ring)
        first = list(producer.produce(0, options.warm_up))
        for batch in first:
            self.ring.add(*batch)
        self.student = Student(config, teacher, statistics_of(first))
        self.optimizer = create_optimizer_v2(
            self.student, opt="adamw", lr=options.lr, weight_decay=0.05
        )
        self.schedule = CosineLRScheduler(
            self.optimizer, t_initial=options.rounds, lr_min=options.lr / 100,
            warmup_t=min(3, options.rounds // 10), warmup_lr_init=options.lr / 10,
        )  # fmt: skip
        self.ema = ModelEmaV3(self.student, decay=0.999, use_warmup=True)
        self.steps = 0

    def run(self) -> None:
        self._resume()
        while self.round < self.options.rounds:
            started = time.monotonic()
            self._one_round()
            self.round += 1
            self.seconds += time.monotonic() - started
            if self.round % self.options.save_every == 0 or self.round == self.options.rounds:
                self._save()

    def _one_round(self) -> None:
        options = self.options
        for batch in self.producer.produce(
            options.warm_up + self.round * options.fresh, options.fresh
        ):
            self.ring.add(*batch)
        self.schedule.step(self.round)
        generator = torch.Generator().manual_seed(options.seed * 7919 + self.round)
        totals: dict[str, float] = {}
        for _ in range(options.steps):
            losses = loss_of(self.student, *self.ring.sample(options.batch, generator))
            self.optimizer.zero_grad()
            sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
            nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
            self.optimizer.step()
            self.steps += 1
            self.ema.update(self.student, step=self.steps)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item() / options.steps
        told = ", ".join(f"{name} {value:.4f}" for name, value in totals.items())
        print(f"round {self.round + 1}/{options.rounds}, {self.seconds:.0f} s: {told}", flush=True)

    def _save(self) -> None:
        state = {
            "student": self.student.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "round": self.round,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        part = self.output / "checkpoint.part"
        torch.save(state, part)
        part.replace(self.output / "checkpoint.pt")
        save_network(self.ema.module.folded(self.config), self.output / "model.safetensors")

    def _resume(self) -> None:
        file = self.output / "checkpoint.pt"
        if not file.exists():
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.student.load_state_dict(state["student"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.round, self.steps = state["round"], state["steps"]
        self.seconds = state["seconds"]


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--data", required=True, help="folder with photos.zip and thumbs_train.zip")
    add("--output", required=True, help="folder for checkpoint and weights")
    add("--rounds", type=int, default=160, help="rounds of fresh pictures and steps")
    add("--fresh", type=int, default=384, help="fresh pictures a round")
    add("--steps", type=int, default=14, help="optimiser steps a round")
    add("--batch", type=int, default=128, help="pictures a step")
    add("--ring", type=int, default=16384, help="how many of the latest pictures are kept")
    add("--warm_up", type=int, default=2048, help="pictures made before the first step")
    add("--lr", type=float, default=1.5e-3, help="learning rate at its height")
    add("--save_every", type=int, default=5, help="rounds between checkpoints")
    add("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
