"""What pages in one file have in common: data in them, and a policy that lets nothing else in."""

import base64
import hashlib
import html
import io
import re
from collections.abc import Mapping

import numpy as np
from PIL import Image

from vitexplain.words import to_json


def json_text(value: object) -> str:
    """JSON that can't close the element that contains it."""
    text = to_json(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def printable_name(name: str) -> str:
    """A file's name, which need not be valid Unicode, as text."""
    return name.encode("utf-8", "backslashreplace").decode()


def base64_of(array: np.ndarray) -> str:
    """The array's bytes, row by row, little-endian."""
    return base64.b64encode(np.ascontiguousarray(array).astype(_little(array.dtype))).decode()


def _little(dtype: np.dtype) -> np.dtype:
    return dtype.newbyteorder("<")


def webp(image: Image.Image, quality: int = 75) -> str:
    """The image, in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode()


def filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with each {NAME} replaced; what is put in may look like a place itself."""
    return re.sub(r"\{(" + "|".join(parts) + r")\}", lambda found: parts[found[1]], template)


def policy(style: str, script: str) -> str:
    """A Content-Security-Policy, escaped: this style, this script, images in the page; no more."""
    allowed = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'"
    )
    return html.escape(allowed, quote=False)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
