"""Texts within JPEG and WebP files, which have none of PNG's text chunks.

XMP (ISO 16684-1) holds all of them whole, in UTF-8, each as an element of NAMESPACE. What programs
show to everybody, EXIF's Software and ImageDescription, says the main ones, in ASCII.
"""

import re
from collections.abc import Mapping
from xml.sax.saxutils import escape

from PIL import ExifTags, Image

NAMESPACE = "urn:vit_explain:"
HEAD = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    f'xmlns:vit="{NAMESPACE}">'
)
TAIL = "</rdf:Description></rdf:RDF></x:xmpmeta>"
ROOM = 64_000  # bytes of all texts: a segment of a JPEG holds 65,533 of anything
DESCRIBED = ("Model", "Method", "Category", "Against")
LONGEST = 1000  # characters of a text in EXIF
# what XML can't hold, however it is written
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xmp(texts: Mapping[str, str]) -> bytes:
    """An XMP packet of the texts; where they are too long for a file, the longest end in "…".

    Args:
        texts: their names are names of XML. Characters that XML forbids are written as "\\x00".
    """
    room = ROOM - sum(len(f"<vit:{name}></vit:{name}>") for name in texts)
    written: dict[str, str] = {}
    # from the shortest on, so that long ones get what the others leave
    for name in sorted(texts, key=lambda name: len(texts[name])):
        written[name] = _fitting(texts[name], room // (len(texts) - len(written)))
        room -= len(written[name].encode())
    elements = (f"<vit:{name}>{written[name]}</vit:{name}>" for name in texts)
    return (HEAD + "".join(elements) + TAIL).encode()


def exif(texts: Mapping[str, str]) -> Image.Exif:
    """Software, and what was explained by which model and method."""
    described = [f"{name}: {texts[name][:LONGEST]}" for name in DESCRIBED if name in texts]
    made = Image.Exif()
    for tag, text in (
        (ExifTags.Base.Software, texts.get("Software", "")),
        (ExifTags.Base.ImageDescription, "; ".join(described)),
    ):
        if text:
            made[tag] = text.encode("ascii", "backslashreplace").decode()
    return made


def _fitting(text: str, room: int) -> str:
    """A text as XML of at most `room` bytes."""
    text = FORBIDDEN.sub(lambda found: repr(found[0])[1:-1], text)
    whole, kept = _escaped(text), len(text)
    while (size := len(whole.encode())) > room:
        kept = min(kept - 1, kept * room // size)
        whole = _escaped(text[:kept] + "…")
    return whole


def _escaped(text: str) -> str:
    return escape(text, {"\r": "&#13;"})  # else read back as a line feed
