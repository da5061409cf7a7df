"""Distil the bundled model: `python -m recipes.bundled.distill --data FOLDER --output FOLDER`.

Fresh images are made all the time and shown to the frozen convolutions, whose output goes into
a ring of the latest images; the transformer learns from random samples of that ring, each used
a few times. It learns

- the teacher's prediction (Kullback-Leibler divergence),
- its logits, standardised category by category: a regression that teaches also those categories
  of which there is no photograph, because every image is a little like each of them,
- its pooled features, and, at every token, its features at that place,
- to look, in the last block, where the teacher finds what it predicts (attention transfer,
  Zagoruyko & Komodakis 2017): without it attention stays almost even, as the teacher's pooling is,
- and to owe each category to the places where the teacher finds that category: gradient attention
  rollout of a likely one, against the teacher's class activation map of it (the same paper's
  transfer of gradients).

May be interrupted at any moment: the same command goes on from the last checkpoint, with a ring
of fresh images.
"""

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.bundled.augmentation import ImageMaker, read_zip
from recipes.bundled.student import (
    Student,
    TokenTeacher,
    copy_convolutions,
    load_teacher,
    save_network,
)
from vitexplain.images.reading import read_image
from vitexplain.images.writing import write_whole
from vitexplain.models.bundled import build_network, bundled_folder
from vitexplain.training.data import is_held_out

TOKENS, WIDTH = 196, 320
PLACES = 32  # tokens of each image whose features are compared
WEIGHTS = {
    "prediction": 1.0,
    "logits": 2.0,
    "features": 0.5,
    "dense": 0.25,
    "attention": 1.0,
    "maps": 3.0,
}
MAPPED = 32  # images of each batch whose maps are compared: they take a second backward pass


class Ring:
    """The latest images, as the tokens that the convolutions make of them."""

    def __init__(self, size: int):
        self.size, self.filled, self.next = size, 0, 0
        self.tokens = torch.empty(size, TOKENS, WIDTH, dtype=torch.float16)

    def add(self, tokens: Tensor) -> None:
        for item in tokens:
            self.tokens[self.next] = item
            self.next = (self.next + 1) % self.size
            self.filled = min(self.filled + 1, self.size)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return self.tokens[torch.randint(self.filled, (count,), generator=generator)].float()


class Producer:
    """Makes images and shows them to the convolutions."""

    def __init__(self, maker: ImageMaker, stem: nn.Module, seed: int):
        self.maker, self.stem, self.seed = maker, stem.eval(), seed
        self.pool = ThreadPoolExecutor(2)

    @torch.inference_mode()
    def produce(self, number: int, count: int, batch: int = 64):
        """Batch by batch, the tokens of images `number` to `number + count` of the series."""
        for start in range(number, number + count, batch):
            numbers = range(start, min(start + batch, number + count))
            pixels = torch.stack(list(self.pool.map(self._pixels, numbers)))
            with torch.autocast("cpu", torch.bfloat16):
                (map_,) = self.stem(pixels / 127.5 - 1)
            yield map_.float().flatten(2).mT

    def _pixels(self, number: int) -> Tensor:
        image = self.maker.make(random.Random(self.seed * 1_000_003 + number))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def mix(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens of images that nobody took, made of the tokens (B, N, C) of a batch.

    Of each five: three stay as they are, one gets a random share of its tokens from another
    image, one is blended with another. In a tenth of all, the tokens change places.
    """
    count, places = tokens.shape[:2]

    def chance(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    other = tokens[torch.randperm(count, generator=generator)]
    kind = chance(1, 1)
    taken = (chance(places, 1) < chance(1, 1)) & (kind < 0.2)
    tokens = torch.where(taken, other, tokens)
    tokens = torch.where(kind > 0.8, tokens.lerp(other, chance(1, 1) / 2), tokens)
    moved = chance(places).argsort(dim=1)
    order = torch.where(chance(1) < 0.1, moved, torch.arange(places))
    return tokens.gather(1, order.unsqueeze(2).expand_as(tokens))


def loss_of(
    student: nn.Module, teacher: TokenTeacher, tokens: Tensor, places: Tensor
) -> dict[str, Tensor]:
    """What the student learns from a batch of tokens (B, N, C), each a mean over it.

    The features at a token are compared at `places`, some of the N.
    """
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            seen, logits = teacher(tokens)
            evidence = teacher.evidence(seen, logits.float().softmax(dim=1))
        pooled, dense, predicted = student(student.standardise(tokens), places)
    logits, pooled, predicted = logits.float(), pooled.float(), predicted.float()
    target = (seen.mean(dim=1) - student.pooled_mean) / student.pooled_std
    here = (seen[:, places] - student.dense_mean) / student.dense_std
    return {
        "prediction": F.kl_div(
            predicted.log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True
        ),
        "logits": ((predicted - logits) / student.logit_std).square().mean(),
        "features": F.mse_loss(pooled, target),
        "dense": F.mse_loss(dense.float(), here),
        "attention": F.kl_div((student.looked() + 1e-6).log(), evidence, reduction="batchmean"),
    }


def map_loss(
    student: nn.Module, teacher: TokenTeacher, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """How far the student's map of one category each is from the teacher's, for tokens (B, N, C).

    The likelier a category is to the teacher, the more often it is the one.
    """
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            seen, logits = teacher(tokens)
            probabilities = logits.float().softmax(dim=1)
            chosen = torch.multinomial(probabilities, 1, generator=generator)
            one_hot = torch.zeros_like(probabilities).scatter_(1, chosen, 1.0)
            evidence = teacher.evidence(seen, one_hot)
        *_, predicted = student(student.standardise(tokens), torch.arange(0))
    mask = student.map_of(predicted.gather(1, chosen).sum())
    return F.kl_div((mask + 1e-6).log(), evidence, reduction="batchmean")


@torch.no_grad()
def statistics_of(teacher: TokenTeacher, tokens: Tensor) -> dict[str, Tensor]:
    """Mean and deviation, by channel, of tokens, dense and pooled features, and logits."""
    dense, logits = teacher(tokens)
    values = {
        "token": tokens.flatten(0, 1),
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
    producer = Producer(_maker(options), stem, options.seed)
    Distillation(options, config, teacher, producer, output).run()


def _maker(options: argparse.Namespace) -> ImageMaker:
    data = Path(options.data)
    photographs = [p for c, p in read_zip(data / "photos.zip") if not is_held_out(c)]
    for file in sorted(Path(options.photographs).iterdir()) if options.photographs else ():
        photographs.append(read_image(file, file.name))
    thumbnails = [p for _, p in read_zip(data / "thumbs_train.zip")]
    return ImageMaker(photographs, thumbnails)


class Distillation:
    """The loop, and what of it is kept in a checkpoint."""

    def __init__(self, options, config: dict, teacher: nn.Module, producer: Producer, output: Path):
        self.options, self.config, self.producer, self.output = options, config, producer, output
        self.round, self.seconds = 0, 0.0
        self.ring = Ring(options.ring)
        for tokens in producer.produce(0, options.warm_up):
            self.ring.add(tokens)
        self.teacher = TokenTeacher(teacher)
        first = self.ring.tokens[: min(self.ring.filled, 1024)].float()
        self.student = Student(config, teacher, statistics_of(self.teacher, first))
        self.optimizer = create_optimizer_v2(
            self.student, opt="muon", lr=options.lr, weight_decay=0.05
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
        number = options.warm_up + self.round * options.fresh
        for tokens in self.producer.produce(number, options.fresh):
            self.ring.add(tokens)
        self.schedule.step(self.round)
        generator = torch.Generator().manual_seed(options.seed * 7919 + self.round)
        totals: dict[str, float] = {}
        for _ in range(options.steps):
            tokens = mix(self.ring.sample(options.batch, generator), generator)
            places = torch.randperm(TOKENS, generator=generator)[:PLACES]
            losses = loss_of(self.student, self.teacher, tokens, places)
            losses["maps"] = map_loss(self.student, self.teacher, tokens[:MAPPED], generator)
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
        write_whole(self.output / "checkpoint.pt", partial(torch.save, state))
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
    add("--photographs", help="folder with more photographs, of anything")
    add("--output", required=True, help="folder for checkpoint and weights")
    add("--rounds", type=int, default=370, help="rounds of fresh images and steps")
    add("--fresh", type=int, default=384, help="fresh images a round")
    add("--steps", type=int, default=14, help="optimiser steps a round")
    add("--batch", type=int, default=128, help="images a step")
    add("--ring", type=int, default=16384, help="how many of the latest images are kept")
    add("--warm_up", type=int, default=2048, help="images made before the first step")
    add("--lr", type=float, default=4e-3, help="learning rate at its height")
    add("--save_every", type=int, default=5, help="rounds between checkpoints")
    add("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
