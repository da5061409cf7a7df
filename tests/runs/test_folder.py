"""Many images in one run; the command's own words are tested in test_command."""

import csv
import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import ROOT, texts_of
from vitexplain.explainer import ImageMaps, Map
from vitexplain.images.finding import ImageFile
from vitexplain.images.reading import open_image
from vitexplain.runs import batches, folder
from vitexplain.runs.folder import explain_folder
from vitexplain.runs.items import Item
from vitexplain.runs.session import open_session
from vitexplain.runs.single import explain_image
from vitexplain.runs.workers import Decoded, close_writer
from vitexplain.settings import Settings

CAT = ROOT / "examples" / "cat.jpg"
COMMAND = [sys.executable, str(ROOT / "vit_explain.py"), "--model", "bundled", "--device", "cpu"]
BUNDLED = partial(Settings.of, model="bundled", device="cpu", quiet=True)


def make_photos(folder, count):
    """Small images of many colours; each different."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.open(CAT).resize((60, 40))
    for number in range(count):
        image.rotate(360 * number / count).save(folder / f"{number:04}.png")


def run(output, *paths, **settings):
    told = []
    settings = {"image_path": tuple(map(str, paths)), "output_dir": str(output)} | settings
    return explain_folder(BUNDLED(**settings), told.append), told


def results_of(output):
    lines = (output / "results.jsonl").read_text().splitlines()
    return {line["name"]: line for line in map(json.loads, lines)}


def errors_of(output):
    with (output / "errors.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder of unusual and broken images."""
    folder = tmp_path_factory.mktemp("mixed")
    cat = Image.open(CAT)
    (folder / "sub").mkdir()
    cat.save(folder / "plain.png")
    cat.convert("CMYK").save(folder / "sub" / "plain.jpg")
    cat.convert("P").save(folder / "palette.gif")
    Image.fromarray(np.asarray(cat.convert("L"), np.uint16) * 257).save(folder / "16bit.png")
    cat.resize((1, 1)).save(folder / "1x1.png")
    cat.resize((5000, 4000)).save(folder / "large.jpg")
    (folder / "text.png").write_text("no image")
    (folder / "cut.jpg").write_bytes(CAT.read_bytes()[:5000])
    (folder / "notes.txt").write_text("passed over")
    (folder / ("n" * 240 + ".png")).write_bytes((folder / "plain.png").read_bytes())
    return folder


@pytest.mark.slow
def test_each_image_as_if_it_were_alone(mixed, tmp_path):
    report, told = run(
        tmp_path / "all", mixed, recursive=True, save_mask=True, batch_size=3, discard_ratio=0.0
    )
    assert (report["pictures"], report["explained"], report["failed"]) == (9, 7, 2)
    results = results_of(tmp_path / "all")
    long = "n" * 240 + ".png"
    assert sorted(results) == sorted(
        ["16bit.png", "1x1.png", "large.jpg", "palette.gif", "plain.png", "sub/plain.jpg", long]
    )
    reasons = {row["path"]: row["reason"] for row in errors_of(tmp_path / "all")}
    assert sorted(told) == sorted(reasons.values())
    assert "is not an image" in reasons[str(mixed / "text.png")]
    assert "it may be damaged" in reasons[str(mixed / "cut.jpg")]
    for name, result in results.items():
        alone = explain_image(
            BUNDLED(
                image_path=(str(mixed / name),),
                output_dir=str(tmp_path / "one"),
                save_mask=True,
                discard_ratio=0.0,
            )
        )
        (found,) = result["maps"]
        mask = np.load(tmp_path / "all" / found["mask_file"])
        np.testing.assert_allclose(mask, np.load(alone["files"]["mask"]), atol=1e-5)
        pixels, expected = (
            np.asarray(Image.open(path), dtype=int)
            for path in (tmp_path / "all" / found["overlay"], alone["files"]["overlay"])
        )
        assert np.abs(pixels - expected).max() <= 1
        assert [c["index"] for c in result["top"]] == [c["index"] for c in alone["top"]]
        assert result["top"][0]["probability"] == pytest.approx(
            alone["top"][0]["probability"], 1e-4
        )
        assert result["size"] == alone["picture"]["size"]
        assert result["region_seen"] == alone["picture"]["region_seen"]
    assert not list((tmp_path / "all").rglob("*.part"))


@pytest.mark.slow
def test_results_hold_the_map(mixed, tmp_path):
    import base64

    run(tmp_path, mixed / "plain.png", mixed / "palette.gif", save_mask=True)
    (found,) = results_of(tmp_path)["plain.png"]["maps"]
    grey = np.frombuffer(base64.b64decode(found["mask"]), np.uint8).reshape(found["grid"])
    mask = np.load(tmp_path / found["mask_file"])
    stretched = (mask - mask.min()) / (mask.max() - mask.min())
    assert np.abs(grey / 255 - stretched).max() < 0.5 / 255 + 1e-6


@pytest.mark.slow
def test_top_k_draws_each_of_the_top1_categories(mixed, tmp_path):
    run(tmp_path / "k", mixed / "plain.png", top_k=3, save_mask=True)
    result = results_of(tmp_path / "k")["plain.png"]
    assert {found["method"]["name"] for found in result["maps"]} == {"grad_rollout"}
    assert [found["category"] for found in result["maps"]] == result["top"][:3]
    for found in result["maps"]:
        index = found["category"]["index"]
        alone = explain_image(
            BUNDLED(
                image_path=(str(mixed / "plain.png"),),
                output_dir=str(tmp_path / "one"),
                category=index,
                save_mask=True,
            )
        )
        assert found["overlay"] == f"plain.png_grad_rollout_{index}_0.900_mean.png"
        mask = np.load(tmp_path / "k" / found["mask_file"])
        np.testing.assert_allclose(mask, np.load(alone["files"]["mask"]), atol=1e-5)


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(tmp_path):
    make_photos(tmp_path / "in", 6)
    output = tmp_path / "out"
    assert run(output, tmp_path / "in" / "000[0-2].png")[0]["explained"] == 3
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.png")}
    report, _ = run(output, tmp_path / "in")
    assert (report["explained"], report["explained_before"]) == (3, 3)
    assert len(results_of(output)) == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(output, tmp_path / "in")[0]["explained"] == 0
    report, told = run(output, tmp_path / "in", alpha=0.7)
    assert report["explained"] == 6
    assert "starting afresh" in told[0]


def wait_for_lines(process, output, count):
    file = output / "results.jsonl"
    deadline = time.monotonic() + 120
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def processes_of(pid):
    """Children, and theirs, of a process."""
    found = []
    for status in filter(None, os.popen("ps -eo pid=,ppid=").read().splitlines()):
        child, parent = map(int, status.split())
        if parent == pid:
            found += [child, *processes_of(child)]
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_killed_twice_nothing_is_lost_or_doubled(tmp_path):
    make_photos(tmp_path / "in", 60)
    (tmp_path / "in" / "broken.png").write_bytes(b"broken")
    output = tmp_path / "out"
    command = [*COMMAND, "--image_path", "in", "--output_dir", "out", "--batch_size", "2"]
    finished = {}
    for _ in range(2):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_lines(process, output, len(finished) + 3)
        children = processes_of(process.pid)
        assert children
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while any(map(is_running, children)):
            assert time.monotonic() < deadline, "workers outlive the killed run"
            time.sleep(0.05)
        for line in (output / "results.jsonl").read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                (found,) = json.loads(line)["maps"]
                finished[found["overlay"]] = (output / found["overlay"]).stat().st_mtime_ns
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert len((output / "results.jsonl").read_text().splitlines()) == 60
    assert sorted(results_of(output)) == [f"{number:04}.png" for number in range(60)]
    assert [row["path"] for row in errors_of(output)] == ["in/broken.png"]
    assert 6 <= len(finished) < 60
    assert all((output / name).stat().st_mtime_ns == at for name, at in finished.items())
    overlays = {found["maps"][0]["overlay"] for found in results_of(output).values()}
    rest = {"results.jsonl", "errors.csv", "run.json", ".lock"}
    assert {path.name for path in output.iterdir()} == overlays | rest


def heed_ctrl_c():
    """Also where a shell runs the tests in the background, and has them ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder):
    """The command in a session of its own, once two of the images in "in" are finished."""
    process = subprocess.Popen(
        [*COMMAND, "--image_path", "in", "--output_dir", "out", "--batch_size", "2"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    wait_for_lines(process, folder / "out", 2)
    return process


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_ctrl_c_says_how_far_it_came(tmp_path):
    make_photos(tmp_path / "in", 60)
    process = start(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    out, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    lines = len(results_of(tmp_path / "out"))
    assert told == (
        f"vit_explain: interrupted: {lines} of 60 images are done; "
        "rerun the same command to resume\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the workers with ps")
def test_a_killed_worker_is_replaced(tmp_path):
    make_photos(tmp_path / "in", 60)
    process = start(tmp_path)
    forkserver = {child for pid in processes_of(process.pid) for child in processes_of(pid)}
    os.kill(max(forkserver), signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert (process.returncode, told) == (0, "")
    assert sorted(results_of(tmp_path / "out")) == [f"{number:04}.png" for number in range(60)]


def die_while_answering():
    """A worker that is killed with half of its answer in the pipe."""
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        frame = frame.f_back
    pipe = frame.f_locals["result_queue"]._writer.fileno()
    os.write(pipe, struct.pack("!i", 1000) + b"half of the answer")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_while_it_answers_does_not_hang_the_run():
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, context) as pool:
        future = pool.submit(die_while_answering)
        close_writer(pool)
        with pytest.raises(BrokenProcessPool):
            future.result(timeout=30)


def test_only_a_few_images_are_on_their_way(monkeypatch):
    """Opening and writing never run ahead of the model by more than they are told."""
    asked, answered, written = [], [], []

    class Fake:
        def decode(self, number, _image):
            asked.append(number)
            return done(number)

        def write(self, number, _image, _maps):
            written.append(number)
            return done(number)

    def done(value):
        future = Future()
        future.set_result(value)
        return future

    items = [Item(number, ImageFile(f"{number}", f"{number}")) for number in range(50)]
    decoded = folder.decoded(Fake(), items, 5)
    explained = (dataclasses.replace(item, explained=ImageMaps([], [])) for item in decoded)
    for item in folder.written(Fake(), explained, 3):
        answered.append(item.number)
        assert len(asked) - len(written) <= 5
        assert len(written) - len(answered) <= 3
    assert answered == asked == written == list(range(50))


def test_very_large_images_come_last(monkeypatch):
    asked = []

    class Fake:
        def decode(self, number, _image, *, large=False):
            asked.append((number, large))
            future = Future()
            future.set_result(None if number in (0, 3) and not large else number)
            return future

    items = [Item(number, ImageFile(f"{number}", f"{number}")) for number in range(6)]
    decoded = [item.number for item in folder.decoded(Fake(), items, 2)]
    assert decoded == [1, 2, 4, 5, 0, 3]
    assert asked == [*((number, False) for number in range(6)), (0, True), (3, True)]


@pytest.fixture
def session(tmp_path):
    # nothing is discarded: at the threshold, rounding decides what goes
    return open_session(BUNDLED(output_dir=str(tmp_path / "session"), discard_ratio=0.0))


def test_out_of_memory_halves_the_batch_once(session, monkeypatch):
    sizes, told = [], []

    def explain_batch(_transform, _explainer, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    monkeypatch.setattr(batches, "explain_items", explain_batch)
    monkeypatch.setattr(batches, "processors", lambda: 1)
    items = [Item(number, None, failure="broken" if number == 3 else "") for number in range(30)]
    found = list(batches.explained(session, items, 8, told.append))
    assert sorted(item.number for item in found) == list(range(30))
    good = [item.number for item in found if not item.failure]
    assert good == [0, 1, 2, *range(4, 30)]
    assert [size for size in sizes if size > 2] in ([8, 4], [8, 4] * 2)
    assert set(sizes) <= {8, 4, 2, 1}


def test_threads_share_weights_and_find_the_same(session):
    """The order stays, whichever batch is ready first; threads are as they were afterwards."""
    threads = torch.get_num_threads()
    rng = np.random.default_rng(0)

    def items():
        for number in range(12):
            seen = rng.integers(0, 255, (224, 224, 3), np.uint8)
            yield Item(number, None, decoded=Decoded(seen, (224, 224), (0, 0, 224, 224), 0.0))

    def mask_of(item):
        seen = session.overlay.transform.tensor(Image.fromarray(item.decoded.seen))
        return session.explainer(seen[None])[0].maps[0].mask

    found = list(batches.explained(session, items(), 2, print))
    assert [item.number for item in found] == list(range(12))
    for item in found:
        # batches and threads of other sizes add up in another order
        np.testing.assert_allclose(item.explained.maps[0].mask, mask_of(item), atol=1e-4)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("number", "fatal"), [(errno.ENOSPC, True), (errno.EACCES, False)])
def test_a_full_disk_ends_the_run_and_one_bad_name_does_not(number, fatal):
    future = Future()
    future.set_exception(OSError(number, os.strerror(number)))
    item = Item(0, ImageFile("a.png", "a.png"))
    if fatal:
        with pytest.raises(OSError, match="No space left"):
            folder._finished(item, future)
    else:
        assert "Permission denied" in folder._finished(item, future).failure


def test_the_record_tells_other_weights_and_names(tmp_path):
    """What the settings name may change behind that name."""
    settings = BUNDLED(output_dir=str(tmp_path))
    session = open_session(settings)
    record = folder.record_of(session)
    assert record == folder.record_of(open_session(settings))
    session.loaded.categories[5] = "another name"
    assert folder.record_of(session) != record
    session = open_session(settings)
    with torch.no_grad():
        session.loaded.model.head.bias[0] += 1
    assert folder.record_of(session) != record
    for change in ({"quiet": False}, {"workers": 3}, {"command": "another"}):
        same = BUNDLED(output_dir=str(tmp_path), **{"quiet": True} | change)
        assert folder.record_of(open_session(same)) == record


@pytest.mark.slow
def test_size_and_format_change_overlays_and_nothing_else(tmp_path):
    make_photos(tmp_path / "in", 3)
    turned = Image.Exif()
    turned[274] = 6
    Image.open(CAT).resize((900, 600)).save(tmp_path / "in" / "turned.jpg", exif=turned)
    wanted = {"method": ("gradcam", "attention_rollout"), "contact_sheet": "png", "report": True}
    run(tmp_path / "out", tmp_path / "in", **wanted)
    before = results_of(tmp_path / "out")
    _, told = run(tmp_path / "out", tmp_path / "in", size=50, format="webp", **wanted)
    assert len(told) == 1  # and nothing of overlays that the sheet can't read
    assert "the settings differ" in told[0]
    after = results_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        assert new["size"] == old["size"]
        assert new["region_seen"] == old["region_seen"]
        assert [each["mask"] for each in new["maps"]] == [each["mask"] for each in old["maps"]]
        for each in new["maps"]:
            assert each["overlay"].endswith(".webp")
            texts = texts_of(tmp_path / "out" / each["overlay"])
            assert texts["Method"] == each["method"]["name"]
            with Image.open(tmp_path / "out" / each["overlay"]) as overlay:
                assert max(overlay.size) == 50
                assert (overlay.width < overlay.height) == (old["size"][0] < old["size"][1])
    assert after["turned.jpg"]["size"] == [600, 900]
    done, told = run(tmp_path / "out", tmp_path / "in", size=50, format="webp", **wanted)
    assert (done["explained"], done["explained_before"], told) == (0, 4, [])


def test_what_is_too_large_for_its_format_gets_another(tmp_path):
    Image.new("RGB", (16_400, 2), "red").save(tmp_path / "wide.png")
    _, told = run(tmp_path / "out", tmp_path, format="webp", method=("gradcam",))
    (result,) = results_of(tmp_path / "out").values()
    assert result["maps"][0]["overlay"].endswith(".jpg")
    assert any("WebP holds at most 16383 pixels a side" in notice for notice in told)


def test_batches_of_large_photographs_fit_into_what_workers_keep(tmp_path, session):
    """All that are on their way stay open: no image is opened twice."""
    sizes = {}

    def batch_size(width, height, workers=4):
        image = ImageFile(str(tmp_path / f"{width}.png"), "a")
        sizes[image.path] = (width, height)
        return batches.batch_size(session, [image] * 50, workers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "size_of", lambda path: sizes[path])
        patch.setattr(batches, "processors", lambda: 2)
        assert batch_size(500, 375) == session.explainer.batch_size()
        size = batch_size(4000, 3000)
        opened, written = batches.ahead(size, 4)
        on_their_way = opened + written + 3 * size  # two threads work on a batch, one waits
        assert 1 < size < session.explainer.batch_size()
        assert on_their_way * 12_000_000 <= 256_000_000
        assert batch_size(12_000, 9000) == 1
        assert batch_size(0, 0) == session.explainer.batch_size()  # none can be read


def test_large_images_are_opened_again_instead_of_kept(mixed, tmp_path, monkeypatch):
    from vitexplain.runs.workers import _Worker

    opened = []
    monkeypatch.setattr(
        "vitexplain.runs.workers.open_image",
        lambda path, **_: opened.append(path) or open_image(path),
    )
    session = open_session(BUNDLED(output_dir=str(tmp_path)))
    worker = _Worker(session.overlay, tmp_path)
    mask = np.eye(14, dtype=np.float32)
    for name, times in (("large.jpg", 2), ("plain.png", 1)):
        image = ImageFile(str(mixed / name), name)
        decoded = worker.decode(0, image, False)
        worker.write(0, image, [Map(mask, None, {"name": "gradcam"})])
        assert decoded.size == Image.open(mixed / name).size
        assert opened.count(image.path) == times
        assert not worker.open
