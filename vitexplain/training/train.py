"""Train any timm model: `python -m vitexplain.training.train --data FOLDER --output FOLDER`.

The data are a folder of folders, named by category, or a zip file with that layout. The output
folder can be given to `vit_explain.py --checkpoint` as it is. Interrupt a run at any time: the same
command resumes after the last finished epoch, and ends with the same weights, bit for bit on the
CPU, as a run without interruption.
"""

import argparse
import csv
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save
from timm.data import Mixup, create_transform, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad, freeze
from torch import Tensor, nn
from tqdm import tqdm

from vitexplain.device import choose_device
from vitexplain.errors import run_command
from vitexplain.images.writing import writable_folder, write_whole
from vitexplain.models.bundled import bundled_folder
from vitexplain.models.loading import any_model, load_model, set_input_size
from vitexplain.progress import bar_or_lines
from vitexplain.training.augmentation import training_transform
from vitexplain.training.curves import draw_curves
from vitexplain.training.data import (
    DataError,
    ImageDataset,
    LabelledImages,
    category_of,
    split,
    usable_names,
)
from vitexplain.training.groups import groups_in, groups_of, split_by_group, torn_apart
from vitexplain.training.loading import Batches, workers_for
from vitexplain.words import to_json

COLUMNS = ("epoch", "lr", "train_loss", "validation_loss", "validation_top1")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)

    def work() -> None:
        try:
            Training(options).run()
        except KeyboardInterrupt:
            raise KeyboardInterrupt("rerun the same command to resume") from None

    return run_command("train", work, less_memory="lower --batch_size")


@dataclass
class Progress:
    """What a checkpoint keeps besides tensors."""

    epoch: int = 0
    updates: int = 0
    rows: list[dict] = field(default_factory=list)


class Training:
    """One run: data, model, and the loop over epochs."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        check_ranges(options)
        self.device, notice = choose_device(options.device)
        if options.lr is None:
            options.lr = 1e-3 if keeps_convolutions(options) else 5e-4
        self.output = writable_folder(options.output)
        images = LabelledImages(options.data)
        started = time.monotonic()
        names = usable_names(images)
        self._seconds_per_image = (time.monotonic() - started) / len(images.names)
        self.categories = sorted({category_of(name) for name in names})
        torch.manual_seed(options.seed)
        self.model, self.data_config = make_model(options, len(self.categories))
        self.model.to(self.device)
        train, validation = self._split(names)
        self.train_data = ImageDataset(images, train, self.categories, self._transform(True))
        self.validation_data = ImageDataset(
            images, validation, self.categories, self._transform(False)
        )
        self.batch = min(options.batch_size, len(train) // 2 * 2)
        self.batches = self._batches()
        self.optimizer = create_optimizer_v2(
            self.model, opt=options.opt, lr=options.lr, weight_decay=options.weight_decay
        )
        total = options.epochs * self.batches.updates
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=total,
            lr_min=options.lr / 100,
            warmup_t=min(options.warmup_epochs * self.batches.updates, total // 2),
            warmup_lr_init=options.lr / 100,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.ema = ModelEmaV3(self.model, decay=options.ema, use_warmup=True)
        self.progress = Progress()
        print(notice, flush=True)

    def run(self) -> None:
        self._resume()
        started, first = time.monotonic(), self.progress.epoch
        while self.progress.epoch < self.options.epochs:
            # all randomness of an epoch follows from its number, so that a run that was killed
            # ends with the weights of one that was not
            seed_everything(self.options.seed, self.progress.epoch)
            batches = self.batches.of_epoch(self.progress.epoch)
            train_loss = self._train_epoch(batches)
            self._log(train_loss, *self._validate(batches))
            self.progress.epoch += 1
            self._save()
            done, left = self.progress.epoch - first, self.options.epochs - self.progress.epoch
            if left:
                seconds = (time.monotonic() - started) / done * left
                print(f"epochs left: {left}, about {tqdm.format_interval(seconds)}", flush=True)
        print(f"Explain with: python vit_explain.py --checkpoint {self.output}")

    def _split(self, names: list[str]) -> tuple[list[str], list[str]]:
        """(training, validation), with what there is to say about it on stderr."""
        options = self.options
        if options.group is None:
            train, validation = split(names, options.validation, options.seed)
            if notice := torn_apart(train, validation):
                print(f"train: {notice}", file=sys.stderr)
            return train, validation
        table = Path(options.group)
        is_table = table.suffix.lower() == ".csv"
        groups = groups_in(table, names) if is_table else groups_of(names, options.group)
        train, validation = split_by_group(groups, options.validation, options.seed)
        print(
            f"{len({groups[name] for name in train})} groups ({len(train)} images) in training, "
            f"{len({groups[name] for name in validation})} ({len(validation)}) in validation"
        )
        missing = {category_of(name) for name in names} - {category_of(n) for n in validation}
        if validation and missing:
            print(
                f"train: no whole group of {', '.join(sorted(missing))} can be held out: "
                "validation says nothing of it",
                file=sys.stderr,
            )
        return train, validation

    def _transform(self, training: bool):
        config = {k: self.data_config[k] for k in ("input_size", "interpolation", "mean", "std")}
        if not training:  # the whole image resized, as vit_explain.py does by default
            return create_transform(**config, crop_pct=1.0, crop_mode="squash")
        names = ("smallest_crop", "color_jitter", "hue", "grey", "stain")
        return training_transform(config, **{name: getattr(self.options, name) for name in names})

    def _batches(self) -> Batches:
        """Where opening images takes long, by processes beside the model."""
        options, count = self.options, len(self.train_data) + len(self.validation_data)
        workers = options.workers
        if workers is None:
            seconds = self._seconds_per_image * count * options.epochs
            size = 4 * self.batch * math.prod(self.data_config["input_size"])
            workers = workers_for(seconds, size)
        return Batches(
            self.train_data,
            self.validation_data,
            self.batch,
            options.seed,
            workers=workers,
            pinned=self.device.type == "cuda",
        )

    def _train_epoch(self, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """The mean loss over the batches of training, which come first."""
        self.model.train()
        options, losses = self.options, [torch.zeros(0, device=self.device)]
        mixup = None
        criterion: nn.Module = LabelSmoothingCrossEntropy(options.smoothing)
        if options.mixup or options.cutmix:
            mixup = Mixup(
                options.mixup,
                options.cutmix,
                label_smoothing=options.smoothing,
                num_classes=len(self.categories),
            )
            criterion = SoftTargetCrossEntropy()
        title = f"epoch {self.progress.epoch + 1}/{options.epochs}"
        for _ in bar_or_lines(range(self.batches.updates), title):
            images, labels = self._on_device(*next(batches))
            if mixup:
                images, labels = mixup(images, labels)
            with self._autocast():
                loss = criterion(self.model(images).float(), labels)
            self.optimizer.zero_grad()
            loss.backward()
            dispatch_clip_grad(self.model.parameters(), options.clip)
            self.optimizer.step()
            self.progress.updates += 1
            self.schedule.step_update(self.progress.updates)
            self.ema.update(self.model, step=self.progress.updates)
            losses.append(loss.detach()[None])  # read at the end: a GPU would be waited for
        return torch.cat(losses).double().mean().item()

    @torch.inference_mode()
    def _validate(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """(loss, top-1) of the averaged weights on the batches of validation, which come last."""
        if not len(self.validation_data):
            for _ in batches:  # none
                pass
            return float("nan"), float("nan")
        network = self.ema.module.eval()
        losses: list[Tensor] = []
        right: list[Tensor] = []
        count = len(self.batches.keys) - self.batches.updates
        for _ in bar_or_lines(range(count), "validation"):
            images, labels = self._on_device(*next(batches))
            with self._autocast():
                logits = network(images).float()
            losses.append(nn.functional.cross_entropy(logits, labels, reduction="none"))
            right.append(logits.argmax(dim=1) == labels)
        return torch.cat(losses).mean().item(), torch.cat(right).float().mean().item()

    def _on_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Copied while the device still works on what came before, where memory is pinned."""
        return tuple(each.to(self.device, non_blocking=True) for each in (images, labels))

    def _autocast(self):
        if not self.options.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _log(self, train_loss: float, validation_loss: float, top1: float) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        values = (self.progress.epoch + 1, lr, train_loss, validation_loss, top1)
        row = dict(zip(COLUMNS, values, strict=True))
        self.progress.rows.append(row)
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        with (self.output / "log.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.progress.rows)
        draw_curves(self.progress.rows).save(self.output / "curves.png")

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
            "settings": _settings(self.options),
        }
        write_whole(self.output / "resume.pt", partial(torch.save, state))
        save_folder(
            self.ema.module, self.options.model, self.data_config, self.categories, self.output
        )

    def _resume(self) -> None:
        file = self.output / "resume.pt"
        if not file.exists():
            return
        state = torch.load(file, map_location=self.device, weights_only=True)
        if state["settings"] != _settings(self.options):
            raise DataError(f"{self.output} holds a run with other settings: choose another folder")
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        print(f"Resuming after epoch {self.progress.epoch}")


def keeps_convolutions(options: argparse.Namespace) -> bool:
    """Whether the bundled model's transformer is trained, and the convolutions below it are not."""
    return options.model == "bundled" and options.freeze is None


def check_ranges(options: argparse.Namespace) -> None:
    """Raise DataError for what no training could mean."""
    if not 0 <= options.validation < 1:
        raise DataError(f"--validation is a share from 0 to below 1, not {options.validation:g}")
    if options.workers is not None and options.workers < 0:
        raise DataError(f"--workers counts processes: it can't be {options.workers}")
    if options.freeze is not None and options.freeze < 0:
        raise DataError(f"--freeze counts blocks: it can't be {options.freeze}")


def make_model(options: argparse.Namespace, categories: int) -> tuple[nn.Module, dict]:
    """The model with a fresh head for that many categories, and timm's description of its input."""
    if options.pretrained or options.checkpoint or options.model == "bundled":
        loaded = load_model(options.model, options.checkpoint, check=any_model)
        model, transform = loaded.model, loaded.transform
        model.requires_grad_(True)
        model.reset_classifier(categories)
        config = {
            "input_size": (3, *transform.size),
            "interpolation": transform.interpolation,
            "mean": transform.mean,
            "std": transform.std,
        }
    else:
        if not timm.is_model(options.model):
            raise DataError(f"timm has no model called {options.model}")
        model = timm.create_model(options.model, num_classes=categories)
        config = resolve_model_data_config(model)
    if options.img_size:
        size = (options.img_size, options.img_size)
        set_input_size(model, size)
        config["input_size"] = (3, *size)
    if keeps_convolutions(options):
        freeze(model, ["patch_embed.backbone"])
    elif options.freeze:
        _freeze(model, options.freeze)
    return model, config


def _freeze(model: nn.Module, blocks: int) -> None:
    """Keep the embedding and the first blocks as they are, batch-norm statistics included."""
    if not hasattr(model, "blocks") or not hasattr(model, "patch_embed"):
        raise DataError("--freeze counts the blocks of a Vision Transformer; this model has none")
    if blocks > len(model.blocks):
        raise DataError(f"--freeze {blocks}: the model has {len(model.blocks)} blocks")
    freeze(model, ["patch_embed", *(f"blocks.{number}" for number in range(blocks))])
    for name, parameter in model.named_parameters(recurse=False):
        if name.endswith(("token", "pos_embed")):
            parameter.requires_grad_(False)


def save_folder(
    model: nn.Module, name: str, data_config: dict, categories: list[str], folder: Path
) -> None:
    """Weights, architecture, input transform and category names, for `--checkpoint FOLDER`."""
    transform = {k: data_config[k] for k in ("input_size", "interpolation", "mean", "std")}
    if name == "bundled":
        config = json.loads((bundled_folder() / "config.json").read_text(encoding="utf-8"))
        config["args"] |= {"num_classes": len(categories), "img_size": transform["input_size"][1:]}
        config["transform"] |= {"input_size": transform["input_size"]}
        config |= {"categories": categories}
    else:
        config = {
            "architecture": name.split(".")[0],
            "num_classes": len(categories),
            "label_names": categories,
            "model_args": _sized(model, transform["input_size"]),
            "pretrained_cfg": {
                **transform,
                "num_classes": len(categories),
                "classifier": model.pretrained_cfg.get("classifier"),
            },
        }
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    text = to_json(config, indent=2).encode()
    write_whole(folder / "model.safetensors", lambda file: file.write(save(state)))
    write_whole(folder / "config.json", lambda file: file.write(text))


def _sized(model: nn.Module, input_size: tuple[int, int, int]) -> dict:
    """timm's arguments to build the model for its input size; none if it takes any size."""
    return {"img_size": input_size[1:]} if hasattr(model, "set_input_size") else {}


def seed_everything(seed: int, epoch: int) -> None:
    """Seed all generators that an epoch draws from."""
    value = seed * 100_003 + epoch
    random.seed(value)
    np.random.seed(value % 2**32)  # timm's Mixup draws from it
    torch.manual_seed(value)


def _settings(options: argparse.Namespace) -> dict:
    """What must not change if a run is to be resumed."""
    ignored = ("output", "workers", "device")
    return {name: str(value) for name, value in vars(options).items() if name not in ignored}


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--data", required=True, help="folder of folders, or a zip file of the same layout")
    add("--output", required=True, help="folder for weights, log and curves; created if missing")
    add("--model", default="bundled", help="bundled, or any timm name")
    add("--pretrained", action="store_true", help="start from the model's pretrained weights")
    add("--checkpoint", help="start from these weights of --model")
    add("--img_size", type=int, help="side of the input in pixels; default: the model's own")
    add(
        "--freeze",
        type=int,
        help="freeze the embedding and the first N blocks, 0 for nothing; default: of the bundled "
        "model, its convolutions, which are most of the work",
    )
    add("--epochs", type=int, default=10)
    add("--batch_size", type=int, default=32)
    add(
        "--lr",
        type=float,
        help="peak learning rate; default: 1e-3 where the bundled model's convolutions stay as "
        "they are, else 5e-4",
    )
    add("--opt", default="adamw", help="any optimiser of timm")
    add("--weight_decay", type=float, default=0.05)
    add("--warmup_epochs", type=int, default=1)
    add("--ema", type=float, default=0.999, help="decay of the averaged weights, which are saved")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients")
    add("--smallest_crop", type=float, default=0.35, help="smallest share of an image in a crop")
    add(
        "--color_jitter",
        type=float,
        default=0.4,
        help="how far brightness, contrast and saturation change",
    )
    add("--hue", type=float, default=0.0, help="how far hues turn, up to 0.5")
    add("--grey", type=float, default=0.0, help="how often an image is made grey, 0 to 1")
    add("--stain", type=float, default=0.0, help="how far the stains of microscopy change")
    add("--mixup", type=float, default=0.0, help="alpha of Mixup")
    add("--cutmix", type=float, default=0.0, help="alpha of CutMix")
    add("--smoothing", type=float, default=0.1, help="label smoothing")
    add("--validation", type=float, default=0.15, help="share of each category for validation")
    add(
        "--group",
        metavar="REGEX|CSV",
        help="keep images together in the split whose names agree in what this matches (its first "
        "group, if it has one): of one patient, one slide, one film; or a CSV file with the "
        "columns file and group",
    )
    add("--bf16", action="store_true", help="compute in bfloat16 where that is safe")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add(
        "--workers",
        type=int,
        help="processes that open images, 0: none beside the model's; the weights are the same for "
        "any number; default: one per processor where opening them takes long",
    )
    add("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
