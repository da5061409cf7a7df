import csv
import json
import re
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vit_explain
from vitexplain.models.bundled import bundled_folder
from vitexplain.models.loading import any_model, load_model
from vitexplain.training import compare, evaluate
from vitexplain.training.train import Training, main

pytestmark = pytest.mark.slow
COLOURS = {"blood": (200, 30, 30), "grass": (30, 180, 30), "sky": (60, 60, 220)}


@pytest.fixture
def data(tmp_path):
    """Three categories that differ by colour, in noise; the first has twice as many images."""
    rng = np.random.default_rng(0)
    for category, colour in COLOURS.items():
        folder = tmp_path / "data" / category
        folder.mkdir(parents=True)
        for number in range(16 if category == "blood" else 8):
            pixels = np.clip(rng.normal(colour, 40, (48, 64, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "data"


def train(data, output, *more):
    arguments = ["--data", data, "--output", output, "--model", "test_vit", "--batch_size", 8]
    arguments += ["--epochs", 3, "--lr", "3e-3", "--ema", "0.9", *more]
    return main([str(argument) for argument in arguments])


def test_trained_folder_is_explained_as_it_is(data, tmp_path, capsys):
    assert train(data, tmp_path / "run") == 0
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    with Image.open(tmp_path / "run" / "curves.png") as curves:
        assert curves.size == (900, 400)
    loaded = load_model(checkpoint=tmp_path / "run")
    assert loaded.categories == ["blood", "grass", "sky"]
    assert loaded.transform.size == (160, 160)
    capsys.readouterr()
    command = ["--checkpoint", str(tmp_path / "run"), "--image_path", str(data / "sky" / "0.png")]
    command += ["--category", "sky", "--json", "--output_dir", str(tmp_path / "out")]
    assert vit_explain.main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["top"][0]["name"] == "sky"
    assert report["method"]["category"]["index"] == 2
    command = ["--data", str(data), "--checkpoint", str(tmp_path / "run"), "--mosaics", "2"]
    assert evaluate.main([*command, "--json", "--output", str(tmp_path / "ev")]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["top1"]["value"] >= 0.9


def test_killed_run_ends_with_the_weights_of_one_that_was_not(data, tmp_path, monkeypatch, capsys):
    """Bit for bit, with everything random switched on."""
    extra = ("--mixup", "0.3", "--cutmix", "0.5")
    assert train(data, tmp_path / "whole", *extra) == 0
    validate = Training._validate

    def killed_in_the_second_epoch(self, batches):
        if self.progress.epoch == 1:
            raise KeyboardInterrupt
        return validate(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_validate", killed_in_the_second_epoch)
        assert train(data, tmp_path / "broken", *extra) == 130
    assert "rerun the same command to resume" in capsys.readouterr().err
    torch.rand(7)  # whatever happened in between
    assert train(data, tmp_path / "broken", *extra) == 0
    assert "Resuming after epoch 1" in capsys.readouterr().out
    whole, broken = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    logs = [(tmp_path / n / "log.csv").read_text() for n in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_any_number_of_processes_ends_with_the_same_weights(data, tmp_path):
    found = []
    for workers in (0, 1, 2):
        output = tmp_path / str(workers)
        extra = ("--mixup", "0.3", "--grey", "0.3", "--stain", "0.2", "--epochs", 2)
        assert train(data, output, *extra, "--workers", workers) == 0
        found.append([(output / name).read_bytes() for name in ("model.safetensors", "log.csv")])
    assert found[0] == found[1] == found[2]


def test_losses_are_read_once_an_epoch(data, tmp_path, monkeypatch):
    """Each reading waits until a GPU has done all that it was given."""
    read, item = [], torch.Tensor.item

    def counted(tensor):
        caller = sys._getframe(1).f_code
        if caller.co_filename.endswith("train.py"):
            read.append(caller.co_name)
        return item(tensor)

    monkeypatch.setattr(torch.Tensor, "item", counted)
    assert train(data, tmp_path / "run", "--epochs", 2, "--batch_size", 4) == 0
    assert read == ["_train_epoch", "_validate", "_validate"] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_meanwhile_is_named(data, tmp_path, capsys, monkeypatch, workers):
    run = Training.run

    def run_without_images(self):
        for path in (data / "sky").iterdir():
            path.unlink()
        run(self)

    monkeypatch.setattr(Training, "run", run_without_images)
    assert train(data, tmp_path / "run", "--workers", workers) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"train: no image at sky/\d\.png: no such file", error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", [main, evaluate.main, compare.main])
def test_a_device_that_is_not_there_is_one_line(data, tmp_path, capsys, command):
    options = ["--data", str(data), "--output", str(tmp_path / "run")]
    options += ["--checkpoints", str(bundled_folder())] if command is compare.main else []
    for device, said in (
        ("tpu", "device must be auto, cpu, cuda, cuda:N or mps, not 'tpu'"),
        ("cuda:1", "device cuda is not available here: use --device cpu"),
    ):
        assert command([*options, "--device", device]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.endswith(f": {said}")


def test_fine_tuning_leaves_frozen_blocks_alone(data, tmp_path):
    for path in data.rglob("*.png"):
        if int(path.stem) > 2:
            path.unlink()
    arguments = ["--data", str(data), "--output", str(tmp_path / "run"), "--freeze", "2"]
    assert main([*arguments, "--epochs", "1", "--batch_size", "4", "--ema", "0.5"]) == 0
    before = load_file(bundled_folder() / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in before.items():
        if name.startswith("head."):
            assert after[name].shape[0] == 3
            continue
        frozen = name.startswith(("patch_embed", "blocks.0.", "blocks.1.", "cls_token", "pos_em"))
        assert torch.equal(after[name], value.float()) == frozen, name
    loaded = load_model(checkpoint=tmp_path / "run")
    assert loaded.categories == ["blood", "grass", "sky"]
    assert loaded.transform.mean == (0.5, 0.5, 0.5)


def test_cnn_of_timm(data, tmp_path):
    assert train(data, tmp_path / "run", "--model", "test_resnet", "--epochs", 1) == 0
    loaded = load_model(checkpoint=tmp_path / "run", check=any_model)
    assert loaded.model(torch.randn(1, 3, 160, 160)).shape == (1, 3)


def test_broken_image_is_named_and_passed_over(data, tmp_path, capsys):
    (data / "sky" / "bad.png").write_text("no image")
    assert train(data, tmp_path / "run", "--epochs", 1) == 0
    assert "skipped: sky/bad.png is not an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (lambda d: (d / "void").mkdir(), (), "no usable image in category void"),
        (lambda d: [p.unlink() for p in (d / "sky").iterdir()], (), "in category sky"),
        (lambda d: d.rename(d.parent / "gone"), (), "neither a folder nor a zip file"),
        (lambda _: None, ("--model", "test_vitt"), "no model called test_vitt"),
        (lambda _: None, ("--freeze", 99), "the model has 6 blocks"),
        (lambda _: None, ("--model", "test_resnet", "--freeze", 1), "this model has none"),
    ],
)
def test_errors_are_one_line(data, tmp_path, capsys, spoil, more, message):
    spoil(data)
    assert train(data, tmp_path / "run", *more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_single_category(data, tmp_path, capsys):
    for category in ("sky", "grass"):
        for path in (data / category).iterdir():
            path.unlink()
        (data / category).rmdir()
    assert train(data, tmp_path / "run") == 2
    assert "at least two categories" in capsys.readouterr().err


def test_other_settings_need_another_folder(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--epochs", 1) == 0
    assert train(data, tmp_path / "run", "--epochs", 1, "--lr", "1e-4") == 2
    assert "other settings" in capsys.readouterr().err


def test_categories_are_drawn_equally_often(data, tmp_path):
    from vitexplain.training.train import parser

    arguments = ["--data", str(data), "--output", str(tmp_path / "run"), "--model", "test_vit"]
    training = Training(parser().parse_args([*arguments, "--batch_size", "4"]))
    keys = training.batches.keys
    drawn, augmented = [], []
    for keys.epoch in range(20):
        batches = list(keys)
        assert {len(batch) for batch in batches[: keys.updates]} == {4}  # whole ones only
        for index, seed in chain(*batches[: keys.updates]):
            drawn.append(training.train_data.labels[index])
            augmented.append(seed)
        held_out = [(index, None) for index in range(len(training.validation_data))]
        assert list(chain(*batches[keys.updates :])) == held_out
    shares = np.bincount(drawn) / len(drawn)
    assert np.abs(shares - 1 / 3).max() < 0.06
    assert len(set(augmented)) == len(augmented)  # no crop twice


def grouped(folder):
    """Two categories, each of three slides whose tint is their own."""
    rng = np.random.default_rng(0)
    for category, level in (("light", 190), ("dark", 60)):
        for slide in range(3):
            path = folder / category / f"{category}-s{slide}_"
            path.parent.mkdir(parents=True, exist_ok=True)
            for number in range(6):
                pixels = np.clip(rng.normal(level, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(f"{path}{number}.png")
    return folder


def test_slides_stay_together(tmp_path, capsys):
    data = grouped(tmp_path / "data")
    assert train(data, tmp_path / "random", "--epochs", 1) == 0
    assert "file names suggest groups: “dark-s0”" in capsys.readouterr().err
    assert train(data, tmp_path / "whole", "--epochs", 1, "--group", "^[^_]+") == 0
    captured = capsys.readouterr()
    assert "4 groups (24 images) in training, 2 (12) in validation" in captured.out
    assert "suggest groups" not in captured.err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--group", "(["), "is no regular expression"),
        (("--group", "^s"), "matches nothing in dark/dark-s0_0.png and 35 other names"),
        (("--group", "^(.+)-"), "no group can be held out"),
        (("--color_jitter", "-1"), "--color_jitter must be from 0 to 1, not -1"),
        (("--validation", "1.5"), "--validation is a share from 0 to below 1, not 1.5"),
        (("--workers", "-1"), "--workers counts processes: it can't be -1"),
        (("--freeze", "-1"), "--freeze counts blocks: it can't be -1"),
        (("--stain", "nan"), "--stain must be from 0 to 1, not nan"),
    ],
)
def test_wrong_groups_and_colours_are_one_line(tmp_path, capsys, option, said):
    assert train(grouped(tmp_path / "data"), tmp_path / "run", *option) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("train: ")
    assert said in error
    assert not (tmp_path / "run" / "resume.pt").exists()


def test_convolutions_of_the_bundled_model_stay_unless_freed(data, tmp_path):
    """By default the transformer over them learns; with --freeze 0 all of it."""
    before = load_file(bundled_folder() / "model.safetensors")
    stem = [name for name in before if "backbone" in name and "num_batches" not in name]
    for name, options in (("kept", ()), ("free", ("--freeze", 0))):
        settings = ("--model", "bundled", "--epochs", 1, "--batch_size", 8, "--img_size", 64)
        assert train(data, tmp_path / name, *settings, *options) == 0
    kept, free = (load_file(tmp_path / n / "model.safetensors") for n in ("kept", "free"))
    assert all(torch.equal(kept[name], before[name].float()) for name in stem)
    assert not all(torch.equal(free[name], before[name].float()) for name in stem)
    moved = "blocks.0.attn.qkv.weight"
    assert not torch.equal(kept[moved], before[moved].float())
