"""Many images as a Ray Data pipeline, on one machine or a cluster.

Read, a pool of actors that hold one model each, write Parquet: Ray handles retries, restarts and
back-pressure. Work repeated after an actor's death is written under the same names, and each row
reaches Parquet once.
"""

import io
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from vitexplain.errors import MissingPackage
from vitexplain.images.finding import ImageFile, find_images
from vitexplain.images.reading import PictureError
from vitexplain.images.region import Region
from vitexplain.parallel import python_path
from vitexplain.progress import on_terminal
from vitexplain.runs.folder import run_report
from vitexplain.runs.items import Item, explain_items, result_of
from vitexplain.runs.session import open_session
from vitexplain.runs.workers import look, processors, write_maps
from vitexplain.settings import Settings
from vitexplain.words import to_json

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors also come as exceptions

try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise MissingPackage(
        f"--engine ray needs Ray ({error}): pip install -r requirements-ray.txt"
    ) from error

PARQUET = "parquet"
BATCH = 8
# of the Parquet files, a row for each map: category -1 for none, mask row by row, result as in
# results.jsonl
COLUMNS = ("path", "name", "error", "method", "category", "rows", "columns", "mask", "result")


def explain_with_ray(settings: Settings, tell: Callable[[str], None]) -> dict:
    """Explain all requested images, and report (JSON-ready).

    On the cluster that RAY_ADDRESS names, else on this machine. Images may also be at any address
    that pyarrow reads (s3://, gs://); the output folder must be the same for all nodes.

    Args:
        tell: receives a sentence for each image that fails.

    Raises:
        RequestError, OSError: a request that can't be met.
    """
    started = time.monotonic()
    names, notices = _names(settings)
    session = open_session(settings)
    for notice in notices:
        tell(notice)
    workers = settings.run.workers or 1
    _start(workers)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = on_terminal() and not settings.run.quiet
    cuda = session.device["name"].startswith("cuda")
    rows = ray.data.read_binary_files(
        list(names) or list(settings.run.image_path), include_paths=True
    ).map_batches(
        Actor,
        fn_constructor_args=(settings, names),
        compute=ray.data.ActorPoolStrategy(size=workers),
        batch_size=settings.run.batch_size or BATCH,
        num_cpus=1,
        num_gpus=1 if cuda else 0,
    )
    folder = session.folder / PARQUET
    rows.write_parquet(str(folder.resolve()), mode="overwrite")
    columns = ["path", "error"]
    written = ray.data.read_parquet(str(folder.resolve())).select_columns(columns)
    outcome = {row["path"]: row["error"] for row in written.iter_rows()}
    failures = sorted(filter(None, outcome.values()))
    for reason in failures:
        tell(reason)
    counts = (len(outcome), 0, len(outcome) - len(failures), len(failures))
    report = run_report(session, started, counts, {"results": folder})
    return report | {"versions": report["versions"] | {"ray": ray.__version__}}


def _start(workers: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one here."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    environment = {"env_vars": {"PYTHONPATH": python_path()}}
    options = {"runtime_env": environment, "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        # one more than actors: with none left, nothing would be read
        options |= {"num_cpus": max(processors(), workers) + 1, "include_dashboard": False}
    ray.init(logging_level=logging.ERROR, **options)


def _names(settings: Settings) -> tuple[dict[str, str], list[str]]:
    """Absolute path -> name in the output, for local images; none for addresses."""
    if any("://" in request for request in settings.run.image_path):
        return {}, []
    run = settings.run
    found, notices = find_images(run.image_path, run.recursive, Path(run.output_dir))
    return {str(Path(image.path).absolute()): image.name for image in found}, notices


class Actor:
    """Holds a model; explains batches of images and writes their overlays."""

    def __init__(self, settings: Settings, names: dict[str, str]):
        self.names = names
        torch.set_num_threads(1)
        self.session = open_session(settings)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """Rows of path and bytes -> a row for each map, or one with the error."""
        opened = [
            self._opened(str(path), content)
            for path, content in zip(batch["path"], batch["bytes"], strict=True)
        ]
        good = [item for item, *_ in opened if not item.failure]
        if good:
            explain_items(self.session.overlay.transform, self.session.explainer, good)
        rows = [row for each in opened for row in self._rows(*each)]
        return {column: [row[column] for row in rows] for column in COLUMNS}

    def _opened(self, path: str, content: bytes) -> tuple:
        """(item, what its overlays are drawn on, and what the model sees in its pixels)."""
        item = Item(0, ImageFile(path, self.names.get(path) or PurePosixPath(path).name))
        try:
            item.decoded, canvas, region = look(self.session.overlay, path, io.BytesIO(content))
        except PictureError as error:
            item.failure = str(error)
            return item, None, None
        return item, canvas, region

    def _rows(self, item: Item, canvas: Image.Image | None, region: Region | None) -> list:
        common = {"path": item.image.path, "name": item.image.name, "error": item.failure}
        if item.failure:
            return [
                common
                | {
                    "method": "",
                    "category": -1,
                    "rows": 0,
                    "columns": 0,
                    "mask": [],
                    "result": "{}",
                }
            ]
        base = self.session.folder / item.image.name
        item.written = write_maps(self.session.overlay, base, canvas, region, item.explained.maps)
        result = to_json(result_of(item, self.session))
        return [
            common
            | {
                "method": found.method["name"],
                "category": -1 if found.category is None else found.category.index,
                "rows": found.mask.shape[0],
                "columns": found.mask.shape[1],
                "mask": found.mask.flatten().tolist(),
                "result": result,
            }
            for found in item.explained.maps
        ]
