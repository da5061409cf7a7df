"""Profiles: what is opened is sRGB, as browsers show it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from vitexplain.images.reading import open_image


def rgb_profile(primaries, gamma):
    """A matrix profile by hand: three primaries (x, y), white D50, one gamma."""
    import struct

    def fixed(value):
        return struct.pack(">i", round(value * 65536))

    white = np.array([0.9642, 1.0, 0.8249])
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    columns = columns * np.linalg.solve(columns, white)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(fixed, white))}
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True):
        tags[name] = b"XYZ \0\0\0\0" + b"".join(map(fixed, column))
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        tags[name] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + b"\0" * 79
    offset, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += struct.pack(">4sII", name, offset + len(data), len(content))
        data += content
    body = struct.pack(">I", len(tags)) + table + data
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ",
                         b"XYZ ") + b"\0" * 12 + b"acsp" + b"\0" * 28  # fmt: skip
    header += b"".join(map(fixed, white)) + b"\0" * (128 - len(header) - 12)
    return header + body, columns


def to_srgb(values, columns, gamma):
    """By the matrices of the two spaces, both at D50."""
    linear = (np.asarray(values) / 255) ** gamma
    xyz = columns @ linear
    to_linear = np.linalg.inv(
        [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169],
         [0.0139322, 0.0971045, 0.7141733]]
    )  # fmt: skip
    srgb = (to_linear @ xyz).clip(0, 1)
    return 255 * np.where(srgb <= 0.0031308, 12.92 * srgb, 1.055 * srgb ** (1 / 2.4) - 0.055)


WIDE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))  # as Adobe RGB's


@pytest.mark.parametrize("colour", [(120, 130, 90), (90, 60, 50), (200, 190, 180), (40, 80, 60)])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_wide_gamut_becomes_srgb(colour, suffix, tmp_path):
    content, columns = rgb_profile(WIDE, 2.2)
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.new("RGB", (8, 8), colour).save(path, icc_profile=content, **options)
    found = open_image(path).getpixel((3, 3))
    np.testing.assert_allclose(found, to_srgb(colour, columns, 2.2), atol=2)
    assert np.abs(np.subtract(found, colour)).max() > 2


def test_srgb_is_left_alone(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=content)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), values)


def test_transparency_is_kept(tmp_path):
    content, columns = rgb_profile(WIDE, 2.2)
    image = Image.new("RGBA", (8, 8), (120, 130, 90, 255))
    image.putpixel((0, 0), (120, 130, 90, 0))
    image.save(tmp_path / "a.png", icc_profile=content)
    found = open_image(tmp_path / "a.png")
    assert found.getpixel((0, 0)) == (255, 255, 255)
    expected = to_srgb((120, 130, 90), columns, 2.2)
    np.testing.assert_allclose(found.getpixel((3, 3)), expected, atol=2)


@pytest.mark.parametrize("content", [b"nonsense", b"\0" * 200])
def test_a_damaged_profile_is_told(content, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (120, 130, 90)).save(buffer, "PNG", icc_profile=content)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    found = open_image(tmp_path / "a.png")
    assert found.getpixel((3, 3)) == (120, 130, 90)
    assert "colour profile is damaged" in found.info["notice"]


def test_a_profile_of_another_kind_of_colours_is_told(tmp_path):
    content, _ = rgb_profile(WIDE, 2.2)
    Image.new("L", (8, 8), 99).save(tmp_path / "a.png", icc_profile=content)
    found = open_image(tmp_path / "a.png")
    assert found.getpixel((3, 3)) == (99, 99, 99)
    assert "colour profile" in found.info["notice"]
