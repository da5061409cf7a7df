"""What one actor does with its share of the images, without anything that starts actors."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import ROOT

pytest.importorskip("pyarrow", reason="needs requirements-ray.txt")

import pyarrow.parquet as pq

from vitexplain.errors import RequestError
from vitexplain.images.finding import ImageFile
from vitexplain.runs import actor, batches
from vitexplain.runs.actor import Actor
from vitexplain.runs.folder import explain_folder
from vitexplain.settings import Settings


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """An actor has a process of its own, whose folder and threads it sets."""
    monkeypatch.chdir(os.curdir)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.open(ROOT / "examples" / "cat.jpg").resize((60, 40))
    for number in range(5):
        image.rotate(70 * number).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return [ImageFile(str(path), path.name) for path in sorted(folder.iterdir())]


def settings_for(output, **more):
    given = {"image_path": (str(output.parent / "photos"),), "output_dir": output.name}
    # nothing is discarded: at the threshold, rounding decides what goes
    return Settings.of(**given | {"model": "bundled", "discard_ratio": 0.0, "quiet": True} | more)


def actor_for(output, *, processors=1, gpu=False, **more):
    (output / "parquet").mkdir(parents=True, exist_ok=True)
    here = str(output.parent)
    return Actor(settings_for(output, **more), "record", here, gpu=gpu, processors=processors)


def rows(output):
    found = [
        row for file in (output / "parquet").iterdir() for row in pq.read_table(file).to_pylist()
    ]
    return {row["name"]: row for row in found}


@pytest.mark.slow
@pytest.mark.parametrize("processors", [1, 2])
def test_the_same_as_of_the_local_engine(photos, tmp_path, processors):
    """In the actor's own thread, and with a process beside it that opens and draws."""
    (tmp_path / "local").mkdir()
    explain_folder(settings_for(tmp_path / "local", output_dir=str(tmp_path / "local")), print)
    lines = (tmp_path / "local" / "results.jsonl").read_text().splitlines()
    local = {line["name"]: line for line in map(json.loads, lines)}
    output = tmp_path / "actors"
    made = actor_for(output, processors=processors)
    try:
        replies = [made.explain(photos[:2]), made.explain(photos[2:])]
    finally:
        if processors > 1:
            made.workers.__exit__()
    assert [reply.explained for reply in replies] == [2, 3]
    assert [reply.failures for reply in replies] == [
        [],
        [f"{photos[5].path} is not an image, or of a format Pillow can't read"],
    ]
    found = rows(output)
    assert {name for name, row in found.items() if row["error"]} == {"broken.png"}
    for name, line in local.items():
        mine = json.loads(found[name]["result"])
        for key in ("path", "name", "size", "region_seen", "model", "file"):
            assert mine[key] == line[key]
        for one, other in zip(mine["top"], line["top"], strict=True):
            assert one["index"] == other["index"]
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-3)
        overlay = line["maps"][0]["overlay"]
        assert mine["maps"][0]["overlay"] == overlay
        both = [Image.open(folder / overlay) for folder in (output, tmp_path / "local")]
        pixels = [np.asarray(image, dtype=int) for image in both]
        assert np.abs(pixels[0] - pixels[1]).max() <= 4  # one step of the colours


def test_an_actor_asks_for_the_gpu_that_it_was_given(tmp_path, monkeypatch):
    """It sees that as the first one, whatever number the user knows it by."""
    asked = []

    def open_session(settings):
        asked.append((settings.model.device, settings.model.use_cuda))
        raise RequestError("that is enough")

    monkeypatch.setattr(actor, "open_session", open_session)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for gpu, device in ((True, "cuda:1"), (True, "auto"), (False, "auto"), (False, "cpu")):
        made = actor_for(tmp_path / "output", gpu=gpu, device=device)
        assert str(made.explain([]).stop) == "that is enough"
    actor_for(tmp_path / "output", use_cuda=True, gpu=True)
    assert asked == [("cuda", False), ("cuda", False), ("cpu", False), ("cpu", False),
                     ("cuda", False)]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_sentence(tmp_path):
    reply = actor_for(tmp_path / "output", gpu=True).explain([])
    assert isinstance(reply.stop, RequestError)
    assert str(reply.stop) == "device cuda is not available here: use --device cpu"


def test_out_of_memory_halves_the_batch_for_all_shares(photos, tmp_path, monkeypatch):
    sizes, explain_items = [], batches.explain_items

    def explain_batch(transform, explainer, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return explain_items(transform, explainer, batch)

    monkeypatch.setattr(batches, "explain_items", explain_batch)
    made = actor_for(tmp_path / "output", batch_size=4)
    told = [made.explain(photos[:4]).told, made.explain(photos[:4]).told]
    assert sizes == [4, 2, 2, 2, 2]
    assert told == [["out of memory: going on with batches of 2"], []]
    assert sum(not row["error"] for row in rows(tmp_path / "output").values()) == 4


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), MemoryError, "CUDA out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), OSError, "No space left"),
    ],
)
def test_what_all_shares_would_meet_is_answered(photos, tmp_path, monkeypatch, error, kind, said):
    made = actor_for(tmp_path / "output", batch_size=1)

    def fail(*_arguments):
        raise error

    monkeypatch.setattr(batches, "explain_items", fail)
    reply = made.explain(photos[:1])
    assert isinstance(reply.stop, kind)
    assert said in str(reply.stop)
    assert not list((tmp_path / "output" / "parquet").iterdir())


def test_bugs_keep_their_traceback(photos, tmp_path, monkeypatch):
    made = actor_for(tmp_path / "output")
    monkeypatch.setattr(batches, "explain_items", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.explain(photos[:1])
