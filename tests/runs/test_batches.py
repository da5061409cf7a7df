import base64
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import run_here
from vitexplain.attention.batches import memory_needed
from vitexplain.runs import batches
from vitexplain.runs.results import RESULTS, read_results


@pytest.fixture
def folder(tmp_path, examples):
    (tmp_path / "images").mkdir()
    for path in sorted(examples.glob("*.jpg"))[:5]:
        shutil.copy(path, tmp_path / "images")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    return tmp_path


def explain(folder, name, *more):
    done = run_here("--image_path", "images", "--model", "bundled", "--output_dir", name, "--quiet",
                    "--batch_size", "2", *more, cwd=folder)  # fmt: skip
    return done, list(read_results(folder / name / RESULTS))


@pytest.mark.slow
def test_several_devices_give_what_one_gives(folder):
    done, expected = explain(folder, "one")
    assert done.returncode == 3  # for the broken one
    done, found = explain(folder, "two", "--device", "cpu,cpu")
    assert done.returncode == 3
    assert "broken.jpg" in done.stderr
    assert len(found) == len(expected) == 5
    for one, other in zip(expected, found, strict=True):
        assert (one["name"], one["top"][0]["index"]) == (other["name"], other["top"][0]["index"])
        (one,), (other,) = one["maps"], other["maps"]
        masks = [np.frombuffer(base64.b64decode(m["mask"]), np.uint8) for m in (one, other)]
        assert np.abs(np.subtract(*masks, dtype=int)).max() <= 1


def test_several_devices_are_for_many_images(folder, examples):
    done = run_here("--image_path", examples / "both.png", "--model", "bundled", "--device",
                    "cpu,cpu", cwd=folder)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "vit_explain: --device cpu,cpu is for many images by the local engine: name one device\n"
    )


def test_the_size_that_fits_stays(monkeypatch):
    """Not the size of the last batch, which holds what is left over."""
    sizes = []

    def explain_items(_transform, _explainer, items):
        if len(items) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(items))
        return items

    monkeypatch.setattr(batches, "explain_items", explain_items)
    session = SimpleNamespace(overlay=SimpleNamespace(transform=None), explainer=None)
    model, told = batches.Model(session, 50), []
    model.explain([SimpleNamespace(failure="") for _ in range(50)], told.append)
    assert sizes == [12, 12, 12, 12, 2]
    assert model.size == 12
    assert told == [f"out of memory: going on with batches of {size}" for size in (25, 12)]


def test_memory_needed_grows_with_what_is_kept():
    """Of ViT-L at 518 pixels, each block's fused attention alone takes 172 MiB an image."""
    assert memory_needed(1370, 24, 1024) > 24 * 1370**2 * 4
    assert 32 * memory_needed(197, 12, 192) < 2**31  # DeiT-tiny fits any card
