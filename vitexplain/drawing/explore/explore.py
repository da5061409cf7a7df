"""One interactive page of one image, in one file: its attention, recalculated as the reader asks.

The page's script is written as small ES modules beside this file. They are put one after another
into the page, without their imports and exports, so that it opens from a file and needs no other.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from vitexplain.drawing.heatmap import colored, two_sides
from vitexplain.drawing.html import base64_of, filled, json_text, policy, printable_name, webp
from vitexplain.explainer import Block, Category, Map, answer_stays, most_faithful
from vitexplain.exploration import Branch, Coded, Exploration
from vitexplain.images.region import Region
from vitexplain.images.writing import write_whole
from vitexplain.methods.registry import METHODS

SIDE = 640  # pixels of the picture's longer side
SHOWN = 860  # pixels of its height in a notebook
# each is built of those before it
MODULES = ("numbers", "rollout", "model", "picture", "chart", "texts", "tour", "page")
IMPORT = re.compile(r"^import .*\n", re.MULTILINE)
EXPORT = re.compile(r"^export ", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """An interactive page; a notebook shows it.

    Attributes:
        text: its HTML, the whole file.
    """

    text: str

    def write(self, path: str | Path) -> "Page":
        """Write it, whole or not at all; the page itself is returned."""
        write_whole(Path(path), lambda file: file.write(self.text.encode()))
        return self

    def __repr__(self) -> str:
        return f"<Page of {len(self.text) / 2**20:.1f} MiB>"

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="interactive page" sandbox="allow-scripts" srcdoc="'
            f'{html.escape(self.text)}" style="width:100%;height:{SHOWN}px;border:0"></iframe>'
        )


def explore_page(
    exploration: Exploration,
    maps: Sequence[Map],
    predictions: Sequence[Block],
    *,
    image: Image.Image,
    region: Region,
    name: str,
    model: str,
    top: Sequence[Category],
    rollout: Mapping,
    colormap: str,
) -> "Page":
    """The page.

    Args:
        maps: of methods, of this image.
        predictions: after each block; empty where there are none.
        image, region: the image, and the part of it that the model sees, in its pixels.
        name, model: what the page is called.
        top: the most likely categories.
        rollout: the options that rollout begins with: head_fusion, discard_ratio, start_block.
        colormap: name of an OpenCV colour map.
    """
    colors, weights = two_sides()
    data = {
        "name": printable_name(name),
        "model": model,
        "top": [each.as_json() for each in top],
        "picture": webp(_seen(image, region), quality=85),
        "ratio": round(region.width / region.height, 4),
        "colours": base64_of(colored(np.arange(256, dtype=np.uint8)[None], colormap)),
        "sides": {
            "colours": base64_of(np.uint8(np.round(colors))),
            "weights": base64_of(np.float32(weights)),
        },
        "rollout": {
            "fusion": rollout["head_fusion"],
            "ratio": rollout["discard_ratio"],
            "start": rollout["start_block"],
        },
        **_attention(exploration),
        "maps": _maps(maps),
        "predictions": [_prediction(block) for block in predictions],
        "stays": answer_stays(predictions) if predictions else None,
    }
    return Page(_page(f"{printable_name(name)}, {model}", json_text(data)))


def _seen(image: Image.Image, region: Region) -> Image.Image:
    """What the model sees, in its true proportions; black where there is no image."""
    part = image.crop(tuple(round(edge) for edge in region))
    part.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return part


def _attention(exploration: Exploration) -> dict:
    return {
        "grid": exploration.grid,
        "prefix": exploration.prefix_names,
        "readout": exploration.readout,
        "storage": exploration.storage._asdict(),
        "reads": {how: base64_of(row) for how, row in exploration.reads.items()},
        "pooled": exploration.pooled,
        "blocks": [[_branch(branch) for branch in block] for block in exploration.blocks],
        "norms": [
            {"patches": base64_of(norms.patches), "prefix": norms.prefix.tolist()}
            for norms in exploration.norms
        ],
    }


def _branch(branch: Branch) -> dict:
    return {kind: coded and _coded(coded) for kind, coded in branch._asdict().items()}


def _coded(coded: Coded) -> dict:
    return {"codes": base64_of(coded.codes), "scales": base64_of(coded.scales)}


def _maps(maps: Sequence[Map]) -> list[dict]:
    measured = all(found.faithfulness is not None for found in maps)
    best = most_faithful(maps) if maps and measured else set()
    return [
        {
            "method": found.method["name"],
            "title": METHODS[found.method["name"]].title,
            "category": found.category and found.category.as_json(),
            "against": [each.as_json() for each in found.rivals],
            "signed": found.signed,
            "faithfulness": found.faithfulness,
            "best": place in best,
            "grid": found.mask.shape,
            "mask": base64_of(np.float32(found.mask)),
        }
        for place, found in enumerate(maps)
    ]


def _prediction(block: Block) -> dict:
    return {
        "block": block.number,
        "top": [each.as_json() for each in block.top],
        "grid": block.votes.shape,
        "votes": block.votes.flatten().tolist(),
        "shares": [round(share, 4) for share in block.shares.flatten().tolist()],
        "names": block.names,
    }


def _page(title: str, data: str) -> str:
    folder = resources.files("vitexplain.drawing.explore")

    def text_of(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    modules = (text_of(f"{name}.js") for name in MODULES)
    script = "\n".join(EXPORT.sub("", IMPORT.sub("", module)) for module in modules)
    style = text_of("page.css")
    parts = {
        "POLICY": policy(style, script),
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": data,
        "SCRIPT": script,
    }
    return filled(text_of("page.html"), parts)
