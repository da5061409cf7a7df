"""The Ray pipeline, on a local cluster of two actors."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import ROOT

pytest.importorskip("ray", reason="needs requirements-ray.txt")

import pyarrow.parquet as pq
import ray

from vitexplain.errors import RequestError
from vitexplain.images.finding import ImageFile
from vitexplain.models.loading import ModelError
from vitexplain.parallel import python_path
from vitexplain.runs import ray as engine
from vitexplain.runs.folder import explain_folder
from vitexplain.runs.parquet import PARQUET
from vitexplain.runs.ray import explain_with_ray, placement, shared_out
from vitexplain.settings import Settings

COUNT = 60
COMMAND = [sys.executable, str(ROOT / "vit_explain.py"), "--engine", "ray", "--quiet"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    image = Image.open(ROOT / "examples" / "cat.jpg").resize((120, 80))
    (folder / "sub").mkdir()
    for number in range(COUNT):
        place = folder / "sub" if number % 2 else folder
        image.rotate(360 * number / COUNT).save(place / f"{number:04}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def settings_for(photos, output, **more):
    return Settings.of(
        **{
            "image_path": (str(photos),),
            "recursive": True,
            "category": "top",
            "model": "bundled",
            "device": "cpu",
            "output_dir": str(output),
            "save_mask": True,
            "quiet": True,
            "workers": 2,
            "batch_size": 2,
        }
        | more
    )


def table_of(output):
    """What other programs find in the folder."""
    return pq.read_table(output / PARQUET).to_pandas()


@pytest.fixture
def end_ray():
    yield
    ray.shutdown()


def kill_an_actor(output, killed):
    """Once a few images are done."""
    while len(list(output.rglob("*.png"))) < 6:
        time.sleep(0.02)
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        pid, _, name = line.strip().partition(" ")
        if "MapWorker" in name and not killed:
            os.kill(int(pid), signal.SIGKILL)
            killed.append(int(pid))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ray's processes are looked for with ps")
def test_same_maps_though_an_actor_is_killed(photos, tmp_path, end_ray):
    output, killed, told = tmp_path / "ray", [], []
    output.mkdir()
    threading.Thread(target=kill_an_actor, args=(output, killed), daemon=True).start()
    report = explain_with_ray(settings_for(photos, output), told.append)
    table = table_of(output)
    assert killed
    assert (report["pictures"], report["explained"], report["failed"]) == (COUNT + 1, COUNT, 1)
    assert told == [f"{photos}/broken.png is not an image, or of a format Pillow can't read"]
    # nothing lost, nothing doubled
    assert len(table) == table["name"].nunique() == COUNT + 1
    explain_folder(settings_for(photos, tmp_path / "local"), told.append)
    lines = (tmp_path / "local" / "results.jsonl").read_text().splitlines()
    local = {line["name"]: line for line in map(json.loads, lines)}
    rows = {row["name"]: row for row in table.to_dict("records") if not row["error"]}
    assert rows.keys() == local.keys()
    for name, row in rows.items():
        (found,) = local[name]["maps"]
        mask = np.reshape(row["mask"], (row["rows"], row["columns"]))
        expected = np.load(tmp_path / "local" / found["mask_file"])
        np.testing.assert_allclose(mask, expected, atol=1e-6)
        assert row["category"] == found["category"]["index"]
        assert json.loads(row["result"])["maps"][0]["overlay"] == found["overlay"]
        overlay, other = output / found["overlay"], tmp_path / "local" / found["overlay"]
        pixels, same = (np.asarray(Image.open(path), dtype=int) for path in (overlay, other))
        assert np.abs(pixels - same).max() <= 4  # one step of the colours, where rounding differs
    again = explain_with_ray(settings_for(photos, output), told.append)
    assert (again["explained"], again["explained_before"], again["failed"]) == (0, COUNT, 1)
    assert sorted(table_of(output)["name"]) == sorted(table["name"])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="processes are killed as Linux does")
def test_a_killed_run_is_resumed(photos, tmp_path, end_ray):
    """What it leaves can be read, and is not done again."""
    output = tmp_path / "out"
    arguments = ["--image_path", str(photos), "--recursive", "--output_dir", str(output)]
    arguments += ["--model", "bundled", "--device", "cpu", "--category", "top", "--save_mask"]
    arguments += ["--batch_size", "2"]
    process = subprocess.Popen([*COMMAND, *arguments], start_new_session=True)
    while process.poll() is None and len(list(output.glob(f"{PARQUET}/*.parquet"))) < 4:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = table_of(output)
    before = {json.loads(row)["name"]: row for row in found["result"] if row != "{}"}
    assert 4 <= len(before) < COUNT
    overlays = [output / json.loads(row)["maps"][0]["overlay"] for row in before.values()]
    times = [path.stat().st_mtime_ns for path in overlays]
    report = explain_with_ray(settings_for(photos, output, workers=1), print)
    assert report["explained_before"] >= len(before)  # its actors may have gone on for a moment
    assert report["explained"] + report["explained_before"] == COUNT
    table = table_of(output)
    assert len(table) == table["name"].nunique() == COUNT + 1
    assert set(before.values()) < set(table["result"])
    assert [path.stat().st_mtime_ns for path in overlays] == times


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_actors_ask_for_the_gpus_that_ray_gives(photos, tmp_path, end_ray, monkeypatch):
    """On a machine that only claims to have two, so that the actors' own answer is seen."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": python_path()}})  # fmt: skip
    for settings in ({"device": "cuda:1"}, {"device": "auto", "gpus_per_worker": 0.5}):
        with pytest.raises(RequestError, match=r"^device cuda is not available here"):
            explain_with_ray(settings_for(photos, tmp_path / "out", **settings), print)
    with pytest.raises(RequestError, match="--workers 3: Ray's GPUs have room for 2"):
        explain_with_ray(settings_for(photos, tmp_path / "out", device="cuda", workers=3), print)
    # the CPU is what was asked for, whatever else there is
    (tmp_path / "one").mkdir()
    shutil.copy(photos / "0000.png", tmp_path / "one")
    report = explain_with_ray(settings_for(tmp_path / "one", tmp_path / "out"), print)
    assert (report["explained"], report["device"]["name"]) == (1, "cpu")


GPUS = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 32.0}, {"CPU": 4.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("nodes", "options", "workers", "expected"),
    [
        ([{"CPU": 2.0}], {}, 2, (1, 0)),
        ([{"CPU": 2.0}], {"use_cuda": True}, 1, (1, 0)),
        (GPUS, {"device": "cpu"}, 44, (1, 0)),
        (GPUS, {"device": "mps"}, 1, (1, 0)),
        (GPUS, {}, 3, (4, 1.0)),  # two on the first node, with half of its processors each
        (GPUS, {"device": "cuda:1"}, 1, (4, 1.0)),  # whichever node it lands on
        (GPUS, {"use_cuda": True, "gpus_per_worker": 0.5}, 6, (2, 0.5)),
        (GPUS, {"gpus_per_worker": 1 / 3}, 9, (1, 1 / 3)),
        ([{"CPU": 64.0, "GPU": 1.0}], {}, 1, (9, 1.0)),
    ],
)
def test_placement(nodes, options, workers, expected):
    found = placement(nodes, Settings.of(**options), workers)
    assert (found.processors, found.gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "options", "workers", "said"),
    [
        ([{"CPU": 2.0}], {}, 3, "--workers 3: Ray has 2 processors, one for each"),
        ([{"CPU": 2.0}], {"device": "cuda:1"}, 1, "device cuda:1: Ray has no GPU here"),
        ([{"CPU": 2.0}], {"gpus_per_worker": 0.5}, 1, "--gpus_per_worker is for GPUs"),
        (GPUS, {"device": "cpu", "gpus_per_worker": 0.5}, 1, "--gpus_per_worker is for GPUs"),
        (GPUS, {}, 4, "--workers 4: Ray's GPUs have room for 3, at --gpus_per_worker 1"),
        (GPUS, {"gpus_per_worker": 0.6}, 4, "room for 3, at --gpus_per_worker 0.6"),
        ([{"CPU": 1.0, "GPU": 8.0}], {}, 2, "room for 1"),  # a processor each, too
    ],
)
def test_more_actors_than_the_cluster_holds_are_refused(nodes, options, workers, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        placement(nodes, Settings.of(**options), workers)


@pytest.mark.parametrize(("count", "workers", "size"), [(1, 2, 8), (500, 2, 8), (10**5, 4, 32)])
def test_shares_are_whole_batches_and_end_together(count, workers, size):
    images = [ImageFile(str(number), str(number)) for number in range(count)]
    shares = shared_out(images, workers, size)
    assert [image for share in shares for image in share] == images
    lengths = {len(share) for share in shares[:-1]}
    assert all(length % size == 0 and length <= engine.LARGEST for length in lengths)
    # what the last actor does alone is at most a twentieth of its work, or one batch
    assert len(shares[0]) <= max(size, count / workers / 20 + size)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"model": "deit_tinny"}, ModelError, "timm has no model called deit_tinny"),
        ({"category": "unicorn"}, RequestError, "unicorn"),
        ({"device": "tpu"}, RequestError, "device must be auto, cpu, cuda, cuda:N or mps"),
        ({"discard_ratio": 2.0}, RequestError, "discard_ratio"),
    ],
)
def test_wrong_requests_are_refused_before_ray_starts(photos, tmp_path, options, kind, said):
    with pytest.raises(kind, match=said):
        explain_with_ray(settings_for(photos, tmp_path / "out", **options), print)
    assert not ray.is_initialized()


def test_the_driver_stays_off_gpus_and_lets_the_model_go(photos, tmp_path, monkeypatch):
    opened, devices, open_session = [], [], engine.open_session

    def watched(settings):
        devices.append(settings.model.device)
        session = open_session(settings)
        opened.append(weakref.ref(session.loaded.model))
        return session

    monkeypatch.setattr(engine, "open_session", watched)
    plan = engine._planned(settings_for(photos, tmp_path / "out", device="cuda:1"))
    gc.collect()
    assert devices == ["cpu"]
    assert opened[0]() is None
    assert plan.about["model"]["name"] == "bundled"
