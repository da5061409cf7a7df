"""Many images by a pool of Ray's actors, on one machine or a cluster.

A Ray Data pipeline: shares of the images go to actors that hold one model each, open, explain and
draw them, and write their rows to Parquet. Ray handles retries, restarts and back-pressure. Work
repeated after an actor's death is written under the same names, so each row is there once.
"""

import logging
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitexplain.device import parse_device
from vitexplain.errors import MissingPackage, RequestError
from vitexplain.explainer import GPU_BATCH
from vitexplain.images.addresses import find_addresses, is_address
from vitexplain.images.finding import ImageFile, find_images
from vitexplain.parallel import processors, python_path
from vitexplain.progress import Bar
from vitexplain.runs.actor import Actor, Reply, on_device
from vitexplain.runs.folder import about_run, record_of, run_report, tell_together
from vitexplain.runs.parquet import Parts
from vitexplain.runs.session import open_session
from vitexplain.settings import Settings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors also come as exceptions

try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise MissingPackage(
        f"--engine ray needs Ray ({error}): pip install -r requirements-ray.txt"
    ) from error

SHARES = 20  # of each actor: with fewer, others wait for the last one
LARGEST = 512  # images of a share: those that a killed actor was doing are done again
MOST = 9  # processors of an actor with a GPU


def explain_with_ray(settings: Settings, tell: Callable[[str], None]) -> dict:
    """Explain all requested images that are not explained yet, and report (JSON-ready).

    On the cluster that RAY_ADDRESS names, else on this machine. Images may also be at any address
    that pyarrow reads (s3://, gs://); the output folder must be the same for all nodes.

    Args:
        tell: receives a sentence for each image that fails, and any other notice.

    Raises:
        RequestError, OSError, MemoryError: a request that can't be met: what is finished stays, and
            the same request resumes from there.
        KeyboardInterrupt: its message says how many images are done.
    """
    started = time.monotonic()
    if not settings.model.use_cuda and settings.model.device != "auto":
        parse_device(settings.model.device)
    images, notices = _images(settings)
    plan = _planned(settings)
    for notice in notices + ([plan.notice] if plan.notice else []):
        tell(notice)
    with Parts(plan.folder, plan.record, images, tell) as parts:
        before, failed, device = parts.done, 0, None
        if parts.missing:
            failed, device = _explain_missing(settings, plan.batch_size, parts, tell)
    counts = len(images), before, parts.done - before, failed
    report = run_report(plan.about, started, counts, {"results": parts.place})
    report |= {"device": device} if device else {}
    return report | {"versions": report["versions"] | {"ray": ray.__version__}}


def _images(settings: Settings) -> tuple[list[ImageFile], list[str]]:
    """Those requested, by their absolute paths, and notices."""
    run = settings.run
    addresses = [path for path in run.image_path if is_address(path)]
    if not addresses:
        found, notices = find_images(run.image_path, run.recursive, Path(run.output_dir))
        return [ImageFile(str(Path(each.path).absolute()), each.name) for each in found], notices
    if len(addresses) < len(run.image_path):
        raise RequestError("images are either at addresses or here, not both: two runs are needed")
    return find_addresses(addresses, run.recursive), []


@dataclass(frozen=True)
class Plan:
    """What the driver knows of the model, without it.

    Attributes:
        record: everything that changes results, see folder.record_of.
        about: what the report says of the run.
        batch_size: images that the model gets at once on a CPU.
        notice: how the model was chosen, or "".
    """

    folder: Path
    record: dict
    about: dict
    batch_size: int
    notice: str


def _planned(settings: Settings) -> Plan:
    """Check the request as actors will meet it, on the CPU: GPUs are theirs, and stay untouched.

    The model is needed for that, as a file of weights says itself what model it is for; it is
    released again before actors start.
    """
    precision = settings.model.precision
    options = replace(settings.model, precision="auto")  # the actors' devices know others
    session = open_session(on_device(replace(settings, model=options), "cpu"))
    record = record_of(session)
    if precision not in ("auto", "fp32"):
        record["precision"] = precision
    size = settings.run.batch_size or session.explainer.batch_size()
    notice = session.loaded.notice
    return Plan(session.folder, record, about_run(session), size, notice)


def _explain_missing(
    settings: Settings, batch_size: int, parts: Parts, tell: Callable[[str], None]
) -> tuple[int, dict | None]:
    """Explain what is not finished: how many images failed, and the actors' device."""
    workers = settings.run.workers or 1
    _start(workers)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    place = placement(nodes, settings, workers)
    size = batch_size if not place.gpus else settings.run.batch_size or GPU_BATCH
    shares = shared_out(parts.missing, workers, size)
    parts.expect(shares)
    failed, device = 0, None
    notices: list[tuple[str, str]] = []
    progress = Bar(
        total=len(parts.images),
        initial=parts.done,
        unit="image",
        disable=True if settings.run.quiet else None,  # None: unless stderr is a terminal
    )
    try:
        with progress:
            for reply in _replies(
                shares, (settings, parts.settings, str(Path.cwd())), place, workers
            ):
                for sentence in reply.told + reply.failures:
                    with Bar.external_write_mode(sys.stderr):
                        tell(sentence)
                if reply.stop is not None:
                    raise reply.stop
                failed += len(reply.failures)
                notices += reply.notices
                device = reply.device
                parts.done += reply.explained
                progress.update(reply.explained + len(reply.failures))
    except KeyboardInterrupt:
        told = f"{parts.done} of {len(parts.images)} images are done"
        raise KeyboardInterrupt(f"{told}; rerun the same command to resume") from None
    finally:
        tell_together(notices, tell)
    return failed, device


def shared_out(images: Sequence[ImageFile], workers: int, size: int) -> list[list[ImageFile]]:
    """The images in shares of whole batches, small enough that all actors end at the same time."""
    batches = math.ceil(len(images) / (SHARES * workers * size))
    length = size * max(1, min(batches, LARGEST // size))
    return [list(images[start : start + length]) for start in range(0, len(images), length)]


def _replies(
    shares: Sequence[Sequence[ImageFile]], given: tuple, place: "Placement", workers: int
) -> Iterator[Reply]:
    """What actors make of each share, in the order in which they are done."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    # pickled, as names of files need not be valid Unicode; a block each, so that any actor may
    # take the next one
    items = [{"images": pickle.dumps(share)} for share in shares]
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        RayActor,
        fn_constructor_args=(*given, place.processors),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
        batch_size=1,
        num_cpus=place.processors,
        num_gpus=place.gpus,
    )
    for row in rows.iter_rows():
        yield pickle.loads(row["reply"])


class RayActor:
    """An Actor whose shares and replies are rows of Ray Data."""

    def __init__(self, settings: Settings, record: str, here: str, processors: int):
        given = ray.get_runtime_context().get_accelerator_ids()
        gpu = bool(given.get("GPU"))
        self._actor = Actor(settings, record, here, gpu=gpu, processors=processors)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        replies = [self._actor.explain(pickle.loads(images)) for images in rows["images"]]
        return {"reply": [pickle.dumps(reply) for reply in replies]}


@dataclass(frozen=True)
class Placement:
    """What each actor takes of the cluster."""

    processors: int
    gpus: float


def placement(nodes: Sequence[Mapping[str, float]], settings: Settings, workers: int) -> Placement:
    """What each of the actors takes: a processor, or a GPU with some that open and draw images.

    Args:
        nodes: of each node of the cluster, how many "CPU" and "GPU" it has.

    Raises:
        RequestError: if the cluster has no room for them: Ray would wait for ever.
    """
    model, share = settings.model, settings.run.gpus_per_worker
    has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    by_name = not model.use_cuda and model.device not in ("auto", "cpu", "mps")
    if by_name and not has_gpus:
        raise RequestError(f"device {model.device}: Ray has no GPU here: use --device cpu")
    if not has_gpus or not (by_name or model.use_cuda or model.device == "auto"):
        if share is not None:
            raise RequestError("--gpus_per_worker is for GPUs, and none is used: leave it out")
        total = sum(int(node.get("CPU", 0)) for node in nodes)
        if workers > total:
            raise RequestError(f"--workers {workers}: Ray has {total} processors, one for each")
        return Placement(1, 0)
    share = share or 1.0
    on_each = int(1 / share + 1e-6)  # an actor's share is of a single GPU
    rooms = [
        (min(int(node.get("GPU", 0)) * on_each, int(node.get("CPU", 0))), int(node.get("CPU", 0)))
        for node in nodes
    ]
    rooms = [room for room in rooms if room[0]]
    total = sum(actors for actors, _ in rooms)
    if workers > total:
        raise RequestError(
            f"--workers {workers}: Ray's GPUs have room for {total}, at --gpus_per_worker "
            f"{share:g}, with a processor each"
        )
    return Placement(min(MOST, *(cpus // min(actors, workers) for actors, cpus in rooms)), share)


def _start(workers: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one here."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    environment = {"env_vars": {"PYTHONPATH": python_path()}}
    options = {"runtime_env": environment, "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        options |= {"num_cpus": max(processors(), workers), "include_dashboard": False}
    ray.init(logging_level=logging.ERROR, **options)
