"""Processes that are killed, can't start, or are asked by a script without a guard."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from vitexplain.drawing.overlay import Overlay
from vitexplain.errors import RequestError
from vitexplain.images.finding import ImageFile
from vitexplain.images.reading import PictureError
from vitexplain.models.transform import InputTransform
from vitexplain.runs import workers as module
from vitexplain.runs.workers import Workers, _Worker
from vitexplain.settings import Style

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "PYTEST_XDIST_WORKER" in os.environ,
    reason="forks, which must not be of a process with other threads",
)
HALF = (0.5, 0.5, 0.5)
OVERLAY = Overlay(Style(), InputTransform((32, 32), HALF, HALF), {})


@pytest.fixture
def images(tmp_path):
    found = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (40, 40), (number, 0, 0)).save(path)
        found.append(ImageFile(str(path), path.name))
    return found


@pytest.fixture
def forked(monkeypatch):
    """Workers that are forks of this process, and so have what a test changes in it."""
    monkeypatch.setattr(module, "begin", lambda: multiprocessing.get_context("fork"))
    monkeypatch.setattr(module.os, "nice", lambda _: None)


def test_the_image_that_kills_processes_is_the_only_one_that_fails(
    images, forked, monkeypatch, tmp_path
):
    decode = _Worker.decode

    def deadly(worker, number, image):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(worker, number, image)

    monkeypatch.setattr(_Worker, "decode", deadly)
    with Workers(2, OVERLAY, tmp_path) as workers:
        futures = [workers.decode(number, image) for number, image in enumerate(images)]
        for number, future in enumerate(futures):
            if number == 5:
                with pytest.raises(PictureError, match=r"5\.png: .* was killed, twice"):
                    future.result(timeout=60)
            else:
                seen = future.result(timeout=60).seen
                assert np.array_equal(seen[0, 0], [number, 0, 0])


def test_a_process_that_dies_once_costs_nothing(images, forked, monkeypatch, tmp_path):
    decode, trace = _Worker.decode, tmp_path / "died"

    def dies_once(worker, number, image):
        if number == 3 and not trace.exists():
            trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(worker, number, image)

    monkeypatch.setattr(_Worker, "decode", dies_once)
    with Workers(1, OVERLAY, tmp_path) as workers:
        futures = [workers.decode(number, image) for number, image in enumerate(images)]
        assert [future.result(timeout=60).seen[0, 0, 0] for future in futures] == list(range(12))


def test_processes_that_end_at_their_start_end_the_run(images, forked, monkeypatch, tmp_path):
    monkeypatch.setattr(_Worker, "start", classmethod(lambda *_: os._exit(1)))
    with Workers(1, OVERLAY, tmp_path) as workers:
        future = workers.decode(0, images[0])
        with pytest.raises(RequestError, match="end as soon as they start"):
            future.result(timeout=60)


def test_large_images_are_opened_one_at_a_time(images, forked, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LARGE_PIXELS", 100)
    log, look = tmp_path / "log", module.look

    def logged(*given):
        with log.open("a") as file:
            file.write("begin\n")
        time.sleep(0.05)
        found = look(*given)
        with log.open("a") as file:
            file.write("end\n")
        return found

    monkeypatch.setattr(module, "look", logged)
    with Workers(3, OVERLAY, tmp_path) as workers:
        futures = [workers.decode(number, image) for number, image in enumerate(images[:6])]
        for future in futures:
            future.result(timeout=60)
    assert log.read_text() == "begin\nend\n" * 6


SCRIPT = """
import vitexplain
from vitexplain.runs.folder import explain_folder
from vitexplain.settings import Settings

print("once")
settings = Settings.of(model="bundled", device="cpu", image_path=("in",), workers=2, quiet=True)
print(explain_folder(settings, print)["explained"])
"""


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once(images, tmp_path):
    (tmp_path / "in").mkdir()
    for image in images[:3]:
        Path(image.path).rename(tmp_path / "in" / image.name)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["once", "3"]
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.3, 1.0, 3.0, 4.5])
def test_ctrl_c_while_everything_starts_is_one_line(after, images, tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "vit_explain.py"), "--model", "bundled", "--image_path",
         *(image.path for image in images), "--workers", "2", "--output_dir", "out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes get it
    _, told = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done already")
    assert process.returncode in (130, -signal.SIGINT)
    assert told.count("\n") <= 1, told
    assert "Traceback" not in told
