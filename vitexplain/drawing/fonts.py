"""A font for names that Pillow's own one has no letters for: Chinese, Thai, Arabic, emoji."""

import functools
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

# parts of the names of fonts with many scripts, tried in this order
PREFERRED = (
    "dejavusans.", "notosanscjk", "notosans-regular", "notosans", "notoemoji", "sourcehan",
    "wqy", "droidsansfallback", "arialuni", "unifont", "pingfang", "hiragino", "msyh", "simsun",
    "msgothic", "yugoth", "malgun", "applegothic", "thonburi", "leelawad", "tahoma", "segoeui",
    "garuda", "loma", "freesans", "arial",
)  # fmt: skip


@functools.lru_cache(maxsize=256)
def font_with(characters: frozenset[str], size: int) -> ImageFont.FreeTypeFont | None:
    """A font of this machine that has all these characters; None if there is none."""
    for path in _fonts():
        if _has_all(path, characters):
            try:
                return ImageFont.truetype(path, size)
            except OSError:
                continue
    return None


def needed(text: str) -> frozenset[str]:
    """The characters of a text that a font must have a glyph for."""
    return frozenset(c for c in text if not c.isspace() and unicodedata.category(c)[0] != "C")


def _has_all(path: str, characters: frozenset[str]) -> bool:
    found = _characters(path)
    return all(ord(character) in found for character in characters)


@functools.cache
def _fonts() -> tuple[str, ...]:
    """Paths of fonts, those with many scripts first; matplotlib brings one along."""
    from matplotlib import font_manager, get_data_path

    own = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    found = sorted(set(font_manager.findSystemFonts()))
    return (str(own), *sorted(found, key=_preference))


def _preference(path: str) -> int:
    name = Path(path).name.lower()
    return next((i for i, part in enumerate(PREFERRED) if part in name), len(PREFERRED))


@functools.lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[int]:
    return frozenset(_read_characters(path))


def _read_characters(path: str) -> Iterator[int]:
    from matplotlib.ft2font import FT2Font

    try:
        yield from FT2Font(path).get_charmap()
    except (OSError, RuntimeError):
        return
