"""Processes that are killed, can't start, or are asked by a script without a guard."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
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
from vitexplain.runs.workers import Workers, _Worker, check_room
from vitexplain.settings import Style

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="forks")
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
    """Workers that are forks of this process, and so have what a test changes in it.

    A process with threads must not be forked: pytest-xdist's have some.
    """
    if "PYTEST_XDIST_WORKER" in os.environ or sys.platform != "linux":
        pytest.skip("forks: run in a process of its own by test_what_forks")
    monkeypatch.setattr(module, "begin", lambda: multiprocessing.get_context("fork"))
    monkeypatch.setattr(module.os, "nice", lambda _: None)


def test_the_image_that_kills_processes_is_the_only_one_that_fails(
    images, forked, monkeypatch, tmp_path
):
    decode = _Worker.decode

    def deadly(worker, number, image, large):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(worker, number, image, large)

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

    def dies_once(worker, number, image, large):
        if number == 3 and not trace.exists():
            trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(worker, number, image, large)

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
        assert [workers.decode(0, image).result(timeout=60) for image in images[:2]] == [None] * 2
        futures = [
            workers.decode(number, image, large=True) for number, image in enumerate(images[:6])
        ]
        for future in futures:
            assert future.result(timeout=60).size == (40, 40)
    assert log.read_text() == "begin\nend\n" * 6


@LINUX
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="they run in this process")
def test_what_forks():
    alone = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider",
               "-k", "images and not script", __file__]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-300:]


def test_too_few_threads_are_said_before_the_work_begins(monkeypatch):
    """Else a pool waits for ever for the thread that could not be started."""
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == 20:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    check_room(3)
    assert len(started) == 20
    assert not any(thread.is_alive() for thread in started)
    started.clear()
    with pytest.raises(RequestError, match=r"^4 workers need more threads and processes than"):
        check_room(4)
    assert not any(thread.is_alive() for thread in started)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.7, 1.5])
def test_a_run_that_is_ended_at_its_start_leaves_no_process(images, seconds, tmp_path):
    paths = [image.path for image in images]
    command = [sys.executable, str(ROOT / "vit_explain.py"), "--model", "bundled", "--image_path",
               *paths, "--output_dir", str(tmp_path / "out")]  # fmt: skip
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    run.terminate()
    run.wait()
    deadline = time.monotonic() + 0.8
    while (left := in_session(run.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def in_session(session):
    """Numbers of the processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, own = entry.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(entry.parent.name)
    return found


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
@pytest.mark.parametrize("after", [0.3, 1.0, 2.0, 2.7])
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
