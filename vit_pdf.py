"""A PDF of pictures, one a page."""

import io
from collections.abc import Callable, Iterable
from typing import BinaryIO

from PIL import Image

QUALITY = 90  # of the pages as JPEG
CATALOGUE, PAGES, FIRST = 1, 2, 3  # numbers of the objects; each page has three more


def write_pdf(file: BinaryIO, pages: Iterable[Image.Image], dpi: int) -> None:
    """A page of the size that each RGB picture has at `dpi`.

    Every page is written before the next one is asked for: Pillow's own writer would hold all of
    them. There is no date in it, so that the same pages make the same bytes.

    Args:
        file: empty, open for writing.

    Raises:
        ValueError: if there is no page.
    """
    starts: dict[int, int] = {}

    def put(number: int, content: bytes, stream: bytes | None = None) -> None:
        starts[number] = file.tell()
        file.write(b"%d 0 obj\n" % number)
        if stream is None:
            file.write(b"<< %b >>" % content)
        else:
            file.write(b"<< %b /Length %d >>\nstream\n" % (content, len(stream)))
            file.write(stream)
            file.write(b"\nendstream")
        file.write(b"\nendobj\n")

    file.write(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")  # the second line says: this is no text
    numbers = []
    for page in pages:
        numbers.append(FIRST + 3 * len(numbers))
        _put_page(put, numbers[-1], page, dpi)
    if not numbers:
        raise ValueError("a PDF needs at least one page")
    put(CATALOGUE, b"/Type /Catalog /Pages %d 0 R" % PAGES)
    kids = b" ".join(b"%d 0 R" % number for number in numbers)
    put(PAGES, b"/Type /Pages /Count %d /Kids [%b]" % (len(numbers), kids))
    _write_table(file, starts)


def _put_page(put: Callable, number: int, page: Image.Image, dpi: int) -> None:
    jpeg = io.BytesIO()
    page.save(jpeg, "JPEG", quality=QUALITY)
    width, height = (72 * side / dpi for side in page.size)  # in points
    put(
        number,
        b"/Type /Page /Parent %d 0 R /MediaBox [0 0 %.4f %.4f] /Contents %d 0 R "
        b"/Resources << /XObject << /Picture %d 0 R >> >>"
        % (PAGES, width, height, number + 1, number + 2),
    )
    put(number + 1, b"", b"q %.4f 0 0 %.4f 0 0 cm /Picture Do Q" % (width, height))
    put(
        number + 2,
        b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceRGB "
        b"/BitsPerComponent 8 /Filter /DCTDecode" % page.size,
        jpeg.getvalue(),
    )


def _write_table(file: BinaryIO, starts: dict[int, int]) -> None:
    """Where each object starts, in lines of 20 bytes, and where this table does."""
    table = file.tell()
    file.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(starts) + 1))
    for number in sorted(starts):
        file.write(b"%010d 00000 n \n" % starts[number])
    file.write(
        b"trailer\n<< /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (len(starts) + 1, CATALOGUE, table)
    )
