import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw
from PIL.PngImagePlugin import PngInfo

from vitexplain.images.reading import PictureError, open_image, to_rgb


def colours():
    """A red, a green, a blue and a white quarter."""
    image = Image.new("RGB", (40, 20), "white")
    for box, colour in [((0, 0), "red"), ((20, 0), "lime"), ((0, 10), "blue")]:
        ImageDraw.Draw(image).rectangle([box, (box[0] + 19, box[1] + 9)], fill=colour)
    return image


QUARTERS = [((5, 5), (255, 0, 0)), ((30, 5), (0, 255, 0)), ((5, 15), (0, 0, 255))]


def check_colours(image, tolerance=0):
    assert image.mode == "RGB"
    for place, colour in [*QUARTERS, ((30, 15), (255, 255, 255))]:
        assert np.abs(np.subtract(image.getpixel(place), colour)).max() <= tolerance


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("RGB", "png", 0),
        ("RGB", "jpg", 40),
        ("RGB", "webp", 40),
        ("RGB", "bmp", 0),
        ("RGB", "gif", 0),
        ("CMYK", "jpg", 60),
        ("CMYK", "tif", 0),
        ("YCbCr", "tif", 3),
        ("P", "png", 0),
        ("RGBA", "png", 0),
    ],
)
def test_modes(tmp_path, mode, suffix, tolerance):
    path = tmp_path / f"image.{suffix}"
    colours().convert(mode).save(path)
    check_colours(open_image(path), tolerance)


def test_lab(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(colours(), srgb, lab, outputMode="LAB").save(tmp_path / "lab.tif")
    check_colours(open_image(tmp_path / "lab.tif"), tolerance=30)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey(tmp_path, mode):
    Image.new("L", (4, 3), 255).convert(mode).save(tmp_path / "grey.png")
    image = open_image(tmp_path / "grey.png")
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == (255, 255, 255)


def test_16_bits_keep_their_brightness(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.asarray(open_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 1, 128, 255]
    Image.fromarray(values).save(tmp_path / "deep.tif")
    assert np.asarray(open_image(tmp_path / "deep.tif"))[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 200.0], [0, 100, 200]),
        ([0.0, 32896.0, 65535.0], [0, 128, 255]),
        ([-3.0, 0.0, 3.0], [0, 128, 255]),
        ([0.0, 5e5, 1e6], [0, 128, 255]),
        ([0.0, np.nan, np.inf], [0, 0, 0]),
        ([7.0, 7.0, 7.0], [7, 7, 7]),
        ([-7.0, -7.0, -7.0], [0, 0, 0]),
    ],
)
def test_floats(tmp_path, values, expected):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "float.tif")
    assert np.asarray(open_image(tmp_path / "float.tif"))[0, :, 2].tolist() == expected


def test_32_bit_integers(tmp_path):
    Image.fromarray(np.array([[0, 128, 255]], dtype=np.int32)).save(tmp_path / "int.tif")
    assert np.asarray(open_image(tmp_path / "int.tif"))[0, :, 0].tolist() == [0, 128, 255]


def test_transparency_is_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 128))
    image.save(tmp_path / "alpha.png")
    opened = open_image(tmp_path / "alpha.png")
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 0)) == (255, 127, 127)


def test_transparent_palette_and_colour_key(tmp_path):
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    opened = open_image(tmp_path / "palette.png")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]
    Image.new("RGB", (2, 1), (9, 8, 7)).save(tmp_path / "key.png", transparency=(9, 8, 7))
    assert open_image(tmp_path / "key.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """Whatever the camera stored, the image comes out upright."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = colours() if undo is None else colours().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    check_colours(open_image(tmp_path / "turned.png"))


def test_damaged_exif_does_not_matter(tmp_path):
    colours().save(tmp_path / "exif.jpg", quality=95, exif=b"Exif\x00\x00MM\x00*garbage!")
    assert open_image(tmp_path / "exif.jpg").size == (40, 20)


def test_first_frame_of_an_animation(tmp_path):
    for name in ("moving.gif", "moving.webp", "moving.png", "pages.tif"):
        later = Image.new("RGB", (40, 20), "black")
        colours().save(tmp_path / name, save_all=True, append_images=[later])
        check_colours(open_image(tmp_path / name), tolerance=40)


def test_tiny(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "tiny.png")
    assert open_image(tmp_path / "tiny.png").getpixel((0, 0)) == (1, 2, 3)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def broken(tmp_path, kind):
    path = tmp_path / f"{kind}.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    if kind == "text":
        path.write_text("this is no image")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        Image.new("1", (20000, 10000)).save(path)
    elif kind != "missing":
        path = tmp_path / f"cut.{kind}"
        noise.save(path)
        cut(path, 0.5)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("text", "is not an image"),
        ("empty", "is not an image"),
        ("bomb", "too large: more than 178 million pixels"),
        ("jpg", "damaged"),
        ("png", "damaged"),
        ("tif", "damaged"),
        ("webp", "damaged|not an image"),
        ("bmp", "damaged"),
    ],
)
def test_errors_name_the_path_and_the_trouble(tmp_path, kind, message):
    path = broken(tmp_path, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError, match=message) as caught:
            open_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metadata_bombs_are_one_error(tmp_path):
    info = PngInfo()
    info.add_text("a", "x" * (70 << 20), zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "texts.png", pnginfo=info)
    with pytest.raises(PictureError):
        open_image(tmp_path / "texts.png")


def test_to_rgb_leaves_its_argument_alone():
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    to_rgb(image)
    assert image.getpixel((0, 0)) == (0, 0, 0, 0)
