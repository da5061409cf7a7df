"""The Ray pipeline, on a local cluster of two actors."""

import json
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT

pytest.importorskip("ray", reason="needs requirements-ray.txt")

from vitexplain.runs.folder import explain_folder
from vitexplain.settings import Settings

pytestmark = pytest.mark.slow
COUNT = 60


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


def settings_for(photos, output):
    return Settings.of(
        image_path=(str(photos),),
        recursive=True,
        category="top",
        model="bundled",
        device="cpu",
        output_dir=str(output),
        save_mask=True,
        quiet=True,
        workers=2,
        batch_size=2,
    )


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


@pytest.mark.skipif(os.name == "nt", reason="Ray's processes are looked for with ps")
def test_same_maps_though_an_actor_is_killed(photos, tmp_path):
    import ray

    from vitexplain.runs.ray import PARQUET, explain_with_ray

    output, killed, told = tmp_path / "ray", [], []
    output.mkdir()
    threading.Thread(target=kill_an_actor, args=(output, killed), daemon=True).start()
    try:
        report = explain_with_ray(settings_for(photos, output), told.append)
        table = ray.data.read_parquet(str(output / PARQUET)).to_pandas()
    finally:
        ray.shutdown()
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
