"""A sweep's maps are those of the single settings; its sheet and its animation show them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageSequence

import windowed
from helpers import ROOT, make_vit
from vit_grad_rollout import VITAttentionGradRollout
from vit_rollout import VITAttentionRollout
from vitexplain.cli.sweep_option import parse_sweep
from vitexplain.drawing.heatmap import draw_overlay
from vitexplain.drawing.sheet import GAP, _font, draw_sheet, fit, line_height
from vitexplain.drawing.sweep import CELL, FRAME, draw_sweep, shrunk, write_gif
from vitexplain.images.reading import open_image
from vitexplain.images.region import Region
from vitexplain.models.loading import LoadedModel, load_model
from vitexplain.runs.single import explain_image
from vitexplain.runs.sweep import sweep_maps
from vitexplain.settings import MapOptions, Settings

BOTH = ROOT / "examples" / "both.png"
NAMES = ["hen, biddy", "tench, Tinca tinca", "cock", "ape", "bee", "cow, moo", "dog"]


def make_loaded(model):
    return LoadedModel(model, "small", None, NAMES[: model.num_classes])


MODELS = {
    "class token": (lambda: make_vit(), 32),
    "attention pool": (lambda: make_vit(class_token=False, global_pool="map"), 32),
    "hooks of its own": (lambda: hooked(make_vit()), 32),
    "windows": (lambda: windowed.make(windowed.MODELS[0], 64, 64, 4), 64),
}


def hooked(model):
    """Somebody looks at the attention: then it is computed in the open."""
    model.blocks[0].attn.attn_drop.register_forward_hook(lambda *_: None)
    return model


@pytest.fixture(params=MODELS)
def small(request):
    make, side = MODELS[request.param]
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    return make_loaded(make()), image


@pytest.fixture(scope="module")
def bundled():
    loaded = load_model("bundled")
    image = open_image(BOTH)
    return loaded, image, loaded.transform(image)[None]


def single(loaded, tensor, chosen):
    """One map by the explainers themselves, as the command makes it."""
    common = {
        "discard_ratio": chosen.discard_ratio,
        "start_block": chosen.start_block,
        "as_published": chosen.as_published,
    }
    if chosen.category is None:
        fusion = chosen.head_fusion or "max"
        explainer = VITAttentionRollout(loaded.model, head_fusion=fusion, **common)
        return explainer.explain(tensor)
    fusion = chosen.head_fusion or "mean"
    explainer = VITAttentionGradRollout(loaded.model, head_fusion=fusion, **common)
    index = None if chosen.category == "top" else [loaded.category_index(chosen.category)]
    return explainer.explain(tensor, index)


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts",
    [
        ["discard_ratio=0.9,0,0.5,0.95"],  # in no order
        ["head_fusion=mean,max,min", "discard_ratio=0.6,0.2"],
        ["discard_ratio=0.3,0.8", "start_block=1,0"],
        ["category=top,tinca tinca,2", "head_fusion=min,mean"],
        ["discard_ratio=0.8,0.3", "category=4,top"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("category", [None, 3])
def test_every_map_is_that_of_its_settings(small, texts, category):
    loaded, tensor = small
    options, sweep = MapOptions(category=category, discard_ratio=0.4), parse_sweep(texts)
    rows = sweep_maps(loaded, tensor, options, sweep)
    count, columns = ([1] + [len(values) for values in sweep.values()])[-2:]
    assert [len(row) for row in rows] == [columns] * count
    different = set()
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            places = (row, column)[-len(sweep) :]
            values = {n: v[p] for (n, v), p in zip(sweep.items(), places, strict=True)}
            assert cell.values == values
            expected = single(loaded, tensor, dataclasses.replace(options, **values))
            np.testing.assert_array_equal(cell.mask, expected.masks[0])
            chosen = cell.found.category
            assert (None if chosen is None else [chosen.index]) == expected.categories
            if chosen:
                share = expected.logits.softmax(dim=1)[0, chosen.index]
                assert chosen.probability == pytest.approx(float(share))
            different.add(cell.mask.tobytes())
    assert len(different) > 1


def test_as_published_too(bundled):
    loaded, _, tensor = bundled
    options = MapOptions(category=243, as_published=True)
    (row,) = sweep_maps(loaded, tensor, options, parse_sweep(["discard_ratio=0.5,0.99"]))
    for cell, ratio in zip(row, (0.5, 0.99), strict=True):
        chosen = dataclasses.replace(options, discard_ratio=ratio)
        np.testing.assert_array_equal(cell.mask, single(loaded, tensor, chosen).masks[0])
    assert np.abs(row[0].mask - row[1].mask).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("category", [None, 243])
def test_every_map_is_the_commands(bundled, tmp_path, category):
    loaded, _, tensor = bundled
    settings = Settings.of(
        image_path=(str(BOTH),),
        category=category,
        model="bundled",
        output_dir=str(tmp_path),
        save_mask=True,
    )
    rows = sweep_maps(
        loaded, tensor, settings.maps, parse_sweep(["discard_ratio=0.2,0.95", "start_block=0,2"])
    )
    for row in rows:
        for cell in row:
            report = explain_image(
                dataclasses.replace(
                    settings, maps=dataclasses.replace(settings.maps, **cell.values)
                )
            )
            expected = np.load(report["files"]["mask"], allow_pickle=False)
            np.testing.assert_allclose(cell.mask, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["start_block=0,3"], "start_block must be from 0 to 2, not 3"),
        (["category=ape,cat"], "no category is called 'cat'"),
        (["category=7"], "category 7 is out of range: from 0 to 6"),
        (["category=tench,Tinca tinca"], "'tench' and 'Tinca tinca' are both category 1"),
        (["category=5,Cow"], "'5' and 'Cow' are both category 5"),
    ],
)
def test_what_the_model_can_not_do_is_refused_before_any_pass(texts, message):
    loaded = make_loaded(make_vit())
    loaded.model.register_forward_hook(lambda *_: pytest.fail("a pass was made"))
    with pytest.raises(ValueError, match=message):
        sweep_maps(loaded, torch.zeros(1, 3, 32, 32), MapOptions(), parse_sweep(texts))


def test_labels_name_categories(images):
    loaded = make_loaded(make_vit())
    sweep = parse_sweep(["category=top,5,BIDDY", "discard_ratio=0.5"])
    rows = sweep_maps(loaded, images[:1], MapOptions(), sweep)
    top1 = NAMES[loaded.model(images[:1])[0].argmax()].split(",")[0]
    assert [row[0].labels[0] for row in rows] == [
        f"category top: {top1}",
        "category 5: cow",
        "category BIDDY",
    ]
    assert rows[2][0].caption == "category BIDDY, discard_ratio 0.5"


def test_drawn_small_but_of_the_same_part():
    image = Image.new("RGB", (1920, 960))
    small, region = shrunk(image, Region(480, 0, 1440, 960))
    assert small.size == (480, 240)
    assert region == (120, 0, 360, 240)
    assert shrunk(small, region) == (small, region)


def grey(found):
    """An overlay that can be recognised."""
    return Image.new("RGB", (64, 32), (round(255 * float(found.mask.mean())),) * 3)


def drawn_at(sheet, column, row, height):
    """The image in a cell, without its caption."""
    left = GAP + column * (CELL + GAP)
    top = GAP + row * (height + 2 * line_height(CELL) + GAP) + 2 * line_height(CELL)
    return sheet.crop((left, top, left + CELL, top + height))


@pytest.mark.parametrize(
    ("texts", "places"),
    [
        # the image is at (0, 0): a row of four; two rows of four; a row for each value
        (["discard_ratio=0,0.5,0.9"], [(1, 0), (2, 0), (3, 0)]),
        (
            ["discard_ratio=0,0.3,0.5,0.6,0.7,0.8,0.9"],
            [(1, 0), (2, 0), (3, 0), (0, 1), (1, 1), (2, 1), (3, 1)],
        ),
        (
            ["head_fusion=mean,max", "discard_ratio=0,0.5,0.9"],
            [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1)],
        ),
    ],
)
def test_sheet(images, texts, places):
    rows = sweep_maps(make_loaded(make_vit()), images[:1], MapOptions(), parse_sweep(texts))
    image = Image.new("RGB", (128, 64), "red")
    sheet = draw_sweep(image, rows, grey)
    columns, lines = (max(place[axis] for place in places) + 1 for axis in (0, 1))
    heading = line_height(CELL) if len(rows) == 2 else 0  # beside the rows of a table
    assert sheet.width == GAP + columns * (CELL + GAP) + heading
    scale = line_height(CELL) + GAP
    assert sheet.height == GAP + lines * (112 + 2 * line_height(CELL) + GAP) + scale
    assert drawn_at(sheet, 0, 0, 112).getcolors() == [(CELL * 112, (255, 0, 0))]
    cells = [cell for row in rows for cell in row]
    for cell, (column, row) in zip(cells, places, strict=True):
        expected = fit(grey(cell.found), (CELL, CELL))
        shifted = sheet.crop((heading, 0, *sheet.size))
        assert drawn_at(shifted, column, row, 112).tobytes() == expected.tobytes()
    if len(rows) == 2:
        assert drawn_at(sheet, 0, 1, 112).getcolors() == [(CELL * 112, (255, 255, 255))]
        for row, turned in enumerate(["head_fusion mean", "head_fusion max"]):
            room = 112 + 2 * heading
            band = Image.new("RGB", (room, heading), "white")
            ImageDraw.Draw(band).text((room // 2, 0), turned, "black", _font(CELL), "ma")
            top, left = GAP + row * (room + GAP), CELL + GAP + GAP // 2
            beside = sheet.crop((left, top, left + heading, top + room))
            assert beside.rotate(-90, expand=True).tobytes() == band.tobytes()


def frames_of(path):
    with Image.open(path) as animation:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]


def colours(image):
    """Of spots of 8 x 8 pixels: what is seen of dithered colours."""
    across, down = image.width // 8, image.height // 8
    small = image.resize((across, down), Image.Resampling.BOX, (0, 0, 8 * across, 8 * down))
    return np.asarray(small, dtype=float)


def test_animation(bundled, tmp_path):
    loaded, image, tensor = bundled
    texts = ["discard_ratio=0,0.5,0.9,0.95,0.99"]
    (row,) = sweep_maps(loaded, tensor, MapOptions(), parse_sweep(texts))
    small, region = shrunk(image, loaded.transform.region(*image.size))

    def draw(found):
        return draw_overlay(small, found.mask, region)

    write_gif(tmp_path / "a.gif", row, draw, {"Command": "é \udcff"})
    write_gif(tmp_path / "b.gif", row, draw, {"Command": "é \udcff"})
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.info["loop"] == 0
        assert animation.info["comment"].decode() == "Command: é \\udcff"
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(animation)]
    assert durations == [700] * 5
    frames = frames_of(tmp_path / "a.gif")
    width = FRAME - 2 * GAP
    for frame, cell in zip(frames, row, strict=True):
        plain = draw_sheet([[(cell.caption, draw(cell.found))]], (width, width // 2), lines=1)
        assert frame.size == plain.size == (480, 2 * GAP + line_height(width) + 232)
        assert frame.getpixel((0, 0)) == (255, 255, 255)
        assert np.abs(colours(frame) - colours(plain)).max() < 12
        captions = [each.crop((0, 0, 480, GAP + line_height(width))) for each in (frame, plain)]
        assert np.abs(np.subtract(*(np.asarray(c, dtype=float) for c in captions))).max() < 100


def test_what_does_not_change_does_not_flicker(images, tmp_path):
    """One palette for frames of the most different colours."""
    (row,) = sweep_maps(
        make_loaded(make_vit()), images[:1], MapOptions(), parse_sweep(["discard_ratio=0,0.9"])
    )
    noise = np.random.default_rng(0).integers(0, 255, (15, 30, 3), dtype=np.uint8)
    noise = np.asarray(Image.fromarray(noise).resize((464, 232), Image.Resampling.BICUBIC))

    def draw(found):
        pixels = noise // 2
        pixels[116:, :, number_of[found.mask.tobytes()]] += 127
        return Image.fromarray(pixels)

    number_of = {cell.mask.tobytes(): number for number, cell in enumerate(row)}
    write_gif(tmp_path / "a.gif", row, draw)
    first, second = map(colours, frames_of(tmp_path / "a.gif"))
    top, bottom = math.ceil((GAP + line_height(464)) / 8), (GAP + line_height(464) + 116) // 8
    assert np.abs(first - second)[top:bottom].max() < 6
    assert np.abs(first - second)[bottom + 1 : -2, 2:-2].mean() > 50


def test_frames_fit_into_their_size(images, tmp_path):
    (row,) = sweep_maps(
        make_loaded(make_vit()), images[:1], MapOptions(), parse_sweep(["start_block=0,1,2"])
    )
    for size in ((300, 300), (10, 900), (900, 10)):
        write_gif(tmp_path / "a.gif", row, lambda _mask, size=size: Image.new("RGB", size, "red"))
        frames = frames_of(tmp_path / "a.gif")
        assert len(frames) == 3
        assert max(frames[0].size) == FRAME
        assert (np.asarray(frames[0]) == (255, 0, 0)).all(axis=2).any()
