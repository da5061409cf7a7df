"""What single tokens look at, in one image or in many."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vitexplain.api import OpenImage
from vitexplain.attention.tokens import token_layout
from vitexplain.drawing.heatmap import draw_overlay
from vitexplain.drawing.queries import draw_queries, draw_query_blocks
from vitexplain.drawing.sweep import shrunk
from vitexplain.errors import RequestError, one_line
from vitexplain.images.finding import ImageFile, find_images, is_one_image
from vitexplain.images.reading import open_image
from vitexplain.images.writing import write_png, write_whole
from vitexplain.progress import watch_of
from vitexplain.queries import TokenMaps, token_maps, token_named
from vitexplain.runs.session import Session, existing, model_report, open_session, output_base
from vitexplain.settings import MapOptions, Settings
from vitexplain.versions import versions


def explain_queries(settings: Settings, tell: Callable[[str], None]) -> dict:
    """Draw what the tokens look at on two sheets for each image, and report (JSON-ready).

    Args:
        tell: receives a sentence for each of several images that fails, and any other notice.

    Raises:
        RequestError, OSError: a request that can't be met.
    """
    run, maps = settings.run, settings.maps
    one = is_one_image(run.image_path)
    if one:  # first of all, as the model takes longer to load
        open_image(existing(run.image_path[0]), stretch=settings.model.stretch)
    asked = MapOptions(discard_ratio=maps.discard_ratio, start_block=maps.start_block)
    session = open_session(replace(settings, maps=asked))
    requests = [str(existing(path)) for path in run.image_path]
    images, notices = find_images(requests, run.recursive, session.folder)
    for notice in notices + ([session.loaded.notice] if session.loaded.notice else []):
        tell(notice)
    files: dict[str, Path] = {}
    queries, failed = [], 0
    for image in watch_of(run)(images, "images"):
        try:
            wrote, named = _query(session, settings, image, one=one)
        except (RequestError, OSError) as error:
            if one:
                raise
            tell(f"{image.path}: {one_line(error)}")
            failed += 1
            continue
        files |= wrote if one else {f"{image.name} {kind}": path for kind, path in wrote.items()}
        about = {} if one else {"image": image.name}
        queries += [{**about, "query": name, "token": token} for name, token in named]
    return {
        "pictures": len(images),
        "failed": failed,
        "queries": queries,
        "model": model_report(session),
        "versions": versions(),
        "device": session.device,
        "notices": [],
        "files": {kind: str(path) for kind, path in files.items()},
    }


def _query(
    session: Session, settings: Settings, image: ImageFile, *, one: bool
) -> tuple[dict[str, Path], list[tuple[str, int]]]:
    """The files of one image, and the number of each token."""
    loaded, maps, style = session.loaded, settings.maps, settings.style
    picture = open_image(image.path, stretch=settings.model.stretch)
    opened = OpenImage.of(picture, session.overlay.transform)
    layout = token_layout(loaded.model, *loaded.transform.size)
    names = settings.run.query
    named = [token_named(name, loaded.model, layout, opened.region) for name in names]
    found = token_maps(
        loaded.model,
        opened.tensor[None],
        [token for token, _ in named],
        block=-1 if maps.block is None else maps.block,
        head=maps.head,
        head_fusion=maps.head_fusion or "mean",
        discard_ratio=maps.discard_ratio,
        start_block=maps.start_block,
    )
    small, region = shrunk(opened.image, opened.region)

    def draw(mask: np.ndarray) -> Image.Image:
        return draw_overlay(small, mask, region, style.alpha, style.colormap)

    share = small.width / opened.image.width, small.height / opened.image.height
    rows = [
        (name, each, None if patch is None else patch.scaled(*share))
        for name, each, (_, patch) in zip(names, found, named, strict=True)
    ]
    base, texts = output_base(session.folder, image, one=one), session.overlay.texts
    files = {"sheet": base.with_name(f"{base.name}_query.png")}
    write_png(files["sheet"], draw_queries(small, rows, draw, _shown(maps), style.colormap), texts)
    files["blocks"] = base.with_name(f"{base.name}_query_blocks.png")
    write_png(files["blocks"], draw_query_blocks(rows, draw, style.colormap), texts)
    if style.save_mask:
        files["masks"] = base.with_name(f"{base.name}_query.npz")
        write_whole(files["masks"], partial(np.savez, **_arrays(found)))
    return files, [(name, token) for name, (token, _) in zip(names, named, strict=True)]


def _shown(maps: MapOptions) -> str:
    """Which attention the first map is of."""
    block = "last block" if maps.block is None else f"block {maps.block}"
    return f"attention, {block}{'' if maps.head is None else f', head {maps.head}'}"


def _arrays(found: Sequence[TokenMaps]) -> dict[str, np.ndarray]:
    """All maps of some tokens, by names; each array has a row for each token."""
    kinds = ("attention", "rollout", "cosine")
    arrays = {kind: np.stack([getattr(each, kind) for each in found]) for kind in kinds}
    for number in range(len(found[0].blocks)):
        arrays[f"block_{number}"] = np.stack([each.blocks[number] for each in found])
    return arrays
