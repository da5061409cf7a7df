"""Contact sheets: what is where, in which order, on how many pages, at what cost of memory."""

import io
import os
import re
import weakref

import numpy as np
import pytest
from PIL import Image, PdfParser

from vitexplain.drawing import contact_sheet
from vitexplain.drawing.contact_sheet import MOST, PAGE, layout, write_contact_sheet
from vitexplain.drawing.sheet import GAP, line_height, sheet_size


def colour_of(number):
    """Different for each, and none of them grey."""
    return 20 + number * 37 % 200, 250 - number * 53 % 200, number * 11 % 240


@pytest.fixture
def make_cells(tmp_path):
    folder = tmp_path / "overlays"
    folder.mkdir()

    def make(count, size=(60, 40)):
        cells = []
        for number in range(count):
            path = folder / f"{number}.png"
            Image.new("RGB", size, colour_of(number)).save(path)
            cells.append((f"image {number}", path))
        return cells

    return make


def cell_at(page, column, row, side, origin=(0, 0)):
    """A cell's image, without its caption."""
    left = origin[0] + GAP + column * (side + GAP)
    top = origin[1] + GAP + row * (side + 2 * line_height(side) + GAP) + 2 * line_height(side)
    return page.crop((left, top, left + side, top + side))


def pages_of(path):
    """The images of a PDF's pages, as they are written into it, and the pages' sizes."""
    content = path.read_bytes()
    starts = [match.start() for match in re.finditer(rb"\xff\xd8\xff", content)]
    with PdfParser.PdfParser(path) as pdf:
        boxes = [pdf.read_indirect(page)[b"MediaBox"][2:] for page in pdf.pages]
    images = [Image.open(io.BytesIO(content[start:])).convert("RGB") for start in starts]
    return images, [tuple(map(float, box)) for box in boxes]


def test_png_has_every_image_in_its_place(make_cells, tmp_path):
    cells = make_cells(7)
    path = tmp_path / "all.png"
    assert write_contact_sheet(iter(cells), path) == ([path], [])
    with Image.open(tmp_path / "all.png") as sheet:
        assert sheet.size == sheet_size(4, 2, (224, 224))
        assert sheet.mode == "RGB"
        for number in range(7):
            place = cell_at(sheet, number % 4, number // 4, 224)
            pixels = np.asarray(place)
            height = round(224 * 40 / 60)
            assert (pixels[:height] == colour_of(number)).all()
            assert (pixels[height:] == 255).all()
        nothing = sheet.crop((GAP + 3 * 232, sheet.height // 2 + GAP, *sheet.size))
        assert nothing.getextrema() == ((255, 255),) * 3


def test_captions_are_above_their_images(make_cells, tmp_path):
    cells = [
        (caption, path) for caption, (_, path) in zip("i W".split(" "), make_cells(2), strict=True)
    ]
    write_contact_sheet(cells, tmp_path / "all.png")
    with Image.open(tmp_path / "all.png") as sheet:
        grey, line = np.asarray(sheet.convert("L")), line_height(224)
    first, second = (grey[GAP + row * line : GAP + (row + 1) * line] for row in (0, 1))
    inked = [(second[:, left : left + 224] < 128).sum() for left in (GAP, GAP + 232)]
    assert 0 < inked[0] < inked[1] / 2
    assert (first == 255).all()  # a short caption is right above its image


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 40, 100, 101, 300, MOST])
def test_layout(count):
    columns, rows, side = layout(count)
    assert columns * rows >= count > columns * (rows - 1)
    assert 96 <= side <= 224
    assert (side == 224) == (count <= 100)
    assert layout(MOST)[2] == 150
    width, height = sheet_size(columns, rows, (side, side))
    if count >= 12:
        assert 1.2 < width / height < 1.48
    assert width * height < 2 * Image.MAX_IMAGE_PIXELS  # more, Pillow refuses to open


def test_very_many_images_have_several_sheets(make_cells, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MOST", 5)
    path, cells = tmp_path / "all.png", make_cells(12)
    three = [tmp_path / f"all-{number}.png" for number in (1, 2, 3)]
    assert write_contact_sheet(cells, path) == (three, [])
    with Image.open(three[2]) as sheet:  # of the last two
        assert cell_at(sheet, 0, 0, 224).getpixel((112, 70)) == colour_of(10)
        assert cell_at(sheet, 1, 0, 224).getpixel((112, 70)) == colour_of(11)
    assert write_contact_sheet(cells[:7], path) == (three[:2], [])
    assert not three[2].exists()
    assert write_contact_sheet(cells[:5], path) == ([path], [])
    assert [file.name for file in tmp_path.glob("*.png")] == ["all.png"]


@pytest.mark.parametrize("suffix", [".pdf", ".PDF"])
def test_pdf_has_pages_of_twenty(make_cells, tmp_path, suffix):
    path = tmp_path / f"all{suffix}"
    assert write_contact_sheet(iter(make_cells(43)), path) == ([path], [])
    pages, boxes = pages_of(path)
    assert len(pages) == 3
    assert [page.size for page in pages] == [PAGE] * 3
    millimetres = [tuple(round(side / 72 * 25.4) for side in box) for box in boxes]
    assert millimetres == [(210, 297)] * 3
    width, height = sheet_size(4, 5, (270, 270))
    origin = (PAGE[0] - width) // 2, (PAGE[1] - height) // 2
    assert min(origin) > 30  # printers leave a margin white
    for number in range(60):
        place = cell_at(pages[number // 20], number % 4, number % 20 // 4, 270, origin)
        middle = np.asarray(place)[16:160, 16:-16].reshape(-1, 3).astype(int)
        expected = colour_of(number) if number < 43 else (255, 255, 255)
        assert np.abs(middle - expected).mean() < 1, number  # JPEG


@pytest.mark.parametrize("name", ["all.png", "all.pdf"])
def test_same_bytes_each_time(make_cells, tmp_path, name):
    cells, contents = make_cells(3), []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_contact_sheet(cells, tmp_path / folder / name)
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["all.png", "all.pdf"])
def test_what_can_not_be_read_is_grey_and_named(make_cells, tmp_path, name):
    cells = make_cells(3)
    cells[0][1].unlink()
    cells[2][1].write_bytes(cells[2][1].read_bytes()[:60])
    assert write_contact_sheet(cells, tmp_path / name)[1] == [cells[0][1], cells[2][1]]
    if name == "all.png":
        with Image.open(tmp_path / name) as sheet:
            grey = [(224 * 224, (200, 200, 200))]
            assert cell_at(sheet, 0, 0, 224).getcolors() == grey
            assert cell_at(sheet, 0, 1, 224).getcolors() == grey
            assert cell_at(sheet, 1, 0, 224).getpixel((112, 112)) == colour_of(1)


def test_pages_are_written_as_their_cells_come(make_cells, tmp_path):
    written = []

    def cells():
        for number, cell in enumerate(make_cells(41)):
            if number % 20 == 0:
                (part,) = tmp_path.glob(".*.part")
                written.append(part.stat().st_size)
            yield cell

    write_contact_sheet(cells(), tmp_path / "all.pdf")
    whole = (tmp_path / "all.pdf").stat().st_size
    # a buffer's worth may not be there yet
    assert written[0] == 0
    assert 0.3 * whole < written[1] < 0.8 * whole
    assert written[1] * 1.5 < written[2] < whole


@pytest.mark.parametrize("name", ["all.png", "all.pdf"])
def test_one_overlay_is_held_at_a_time(make_cells, tmp_path, monkeypatch, name):
    held, most = set(), []
    opened = contact_sheet.open_image

    def counted(path):
        most.append(len(held))
        image = opened(path)
        held.add(number := len(most))
        weakref.finalize(image, held.remove, number)
        return image

    monkeypatch.setattr(contact_sheet, "open_image", counted)
    write_contact_sheet(make_cells(23), tmp_path / name)
    assert most == [0] * 23


@pytest.mark.parametrize("name", ["all.png", "all.pdf"])
def test_names_may_be_anything(make_cells, tmp_path, name):
    captions = [
        os.fsdecode(b"broken \xff\xfe.png"),
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627.png",
        "\u202egnp.exe",
        "猫と犬" * 100,
        "👩‍🔬 \x00\x1b[31m\ttab\nline\r\n",
        "a" * 5000,
        "",
        " ",
    ]
    cells = [(caption, path) for caption, (_, path) in zip(captions, make_cells(8), strict=True)]
    assert write_contact_sheet(cells, tmp_path / name)[1] == []
    if name == "all.png":
        with Image.open(tmp_path / name) as sheet:
            for number in range(8):
                assert cell_at(sheet, number % 4, number // 4, 224).getpixel((112, 112)) == (
                    colour_of(number)
                )


@pytest.mark.parametrize("name", ["all.png", "all.pdf"])
def test_no_images_leave_no_file(tmp_path, name):
    with pytest.raises(ValueError, match="needs at least one"):
        write_contact_sheet([], tmp_path / name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["all.jpg", "all", "pdf"])
def test_other_suffixes_are_refused(make_cells, tmp_path, name):
    with pytest.raises(ValueError, match=f"a .png or .pdf file, not '{name}'"):
        write_contact_sheet(iter(()), tmp_path / name)


def test_a_failure_leaves_the_old_file(make_cells, tmp_path):
    def cells():
        yield from make_cells(25)
        raise KeyboardInterrupt

    (tmp_path / "all.pdf").write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt):
        write_contact_sheet(cells(), tmp_path / "all.pdf")
    assert (tmp_path / "all.pdf").read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.pdf", "overlays"]
