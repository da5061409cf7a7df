"""The interactive page, in a browser: what it calculates against the tool, and what people do."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import ROOT, make_vit
from vit_rollout import VITAttentionRollout
from vitexplain.anatomy import anatomy
from vitexplain.api import OpenImage, as_image, exploration_page
from vitexplain.drawing.explore.explore import MODULES, explore_page
from vitexplain.explainer import Explainer
from vitexplain.exploration import explore
from vitexplain.images.region import Region
from vitexplain.models.loading import wrap_model
from vitexplain.queries import token_maps
from vitexplain.settings import MapOptions

pytestmark = pytest.mark.slow
FOLDER = ROOT / "vitexplain" / "drawing" / "explore"
HARMFUL = "<img src=x onerror=alert(1)>.png"
SETTINGS = [
    ("mean", 0.0, 0),
    ("mean", 0.5, 0),
    ("mean", 0.9, 2),
    ("mean", 0.97, 1),
    ("max", 0.0, 1),
    ("max", 0.5, 0),
    ("max", 0.9, 0),
    ("max", 0.99, 3),
    ("min", 0.2, 0),
    ("min", 0.8, 1),
]


@pytest.fixture(scope="module")
def opened(bundled):
    return OpenImage.of(as_image(ROOT / "examples" / "both.png"), bundled.transform)


@pytest.fixture(scope="module")
def explainer(bundled):
    methods = ("attention_rollout", "grad_rollout", "gradcam")
    return Explainer(MapOptions(method=methods, top_k=3, compare=True), bundled)


@pytest.fixture(scope="module")
def maps(explainer, opened):
    (found,) = explainer(opened.tensor[None])
    return found.maps


@pytest.fixture(scope="module")
def file(tmp_path_factory, explainer, opened):
    file = tmp_path_factory.mktemp("explore") / "both_explore.html"
    exploration_page(explainer, opened, HARMFUL, colormap="turbo").write(file)
    return file


@pytest.fixture
def page(open_page, file):
    return open_page(file, locale="en-US")


def view(page, name):
    page.check(f'#views input[value="{name}"]', force=True)


def put(page, name, value):
    """As by dragging: a slider's value, or what is chosen."""
    page.evaluate(
        """([name, value]) => {
            const element = document.getElementById(name);
            element.value = value;
            element.dispatchEvent(new Event(element.tagName === "SELECT" ? "change" : "input"));
        }""",
        [name, str(value)],
    )


def values(page):
    return np.array(page.evaluate('[...document.getElementById("map").values]'))


def stage(page, across, down):
    """A place in the picture, each 0 to 1, as the mouse needs it."""
    box = page.locator("#stage").bounding_box()
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


def test_rollout_in_the_page_is_the_tools(page, bundled, opened):
    view(page, "rollout")
    for fusion, ratio, start in SETTINGS:
        for name, value in (("fusion", fusion), ("ratio", ratio), ("start", start)):
            put(page, name, value)
        found = values(page)
        expected = VITAttentionRollout(
            bundled.model, head_fusion=fusion, discard_ratio=ratio, start_block=start
        )(opened.tensor[None])
        np.testing.assert_allclose(found / found.max(), expected.flatten(), atol=1e-2)


def test_a_patch_that_is_pointed_at(page, bundled, opened):
    """Row 8 (from 0) of 14, column 10: its attention and its rollout, head by head."""
    page.mouse.move(*stage(page, 10.5 / 14, 8.5 / 14))
    token = 1 + 8 * 14 + 10
    for block, head in ((0, None), (2, 1), (3, 3)):
        put(page, "block", block)
        put(page, "head", -1 if head is None else head)
        put(page, "fusion", "mean")
        (expected,) = token_maps(
            bundled.model, opened.tensor[None], [token], block=block, head=head, discard_ratio=0.5
        )
        np.testing.assert_allclose(values(page), expected.attention.flatten(), atol=1e-5)
    page.mouse.move(*stage(page, 10.4 / 14, 8.4 / 14))
    assert page.inner_text("#value").startswith("patch in row 9, column 11: ")
    view(page, "rollout")
    put(page, "ratio", 0.5)
    page.mouse.move(*stage(page, 10.6 / 14, 8.6 / 14))
    np.testing.assert_allclose(values(page), expected.rollout.flatten(), atol=1e-4)
    page.mouse.move(2, 2)
    assert page.inner_text("#saying") == "Rollout: what reaches the classifier through the blocks"


def test_who_attends_to_a_patch(page, bundled, opened):
    """The column of the matrix: in place of one row, that entry of every row."""
    page.mouse.click(*stage(page, 0.5 / 14, 0.5 / 14))
    put(page, "fusion", "mean")
    put(page, "block", 1)
    page.select_option("#from", "from")
    found = token_maps(bundled.model, opened.tensor[None], range(1, 197), block=1)
    expected = [each.attention[0, 0] for each in found]
    np.testing.assert_allclose(values(page), expected, atol=1e-5)


def test_a_tap_keeps_a_patch_and_lets_it_go(open_page, file):
    page = open_page(
        file, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844}, locale="en"
    )
    page.touchscreen.tap(*stage(page, 3.5 / 14, 2.5 / 14))
    assert page.inner_text("#saying") == "Attention of the patch in row 3, column 4, block 4"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.touchscreen.tap(*stage(page, 3.5 / 14, 2.5 / 14))
    assert page.inner_text("#saying") == "Attention of what the classifier reads, block 4"


def test_by_keyboard_alone(page):
    page.keyboard.press("Tab")  # the tour
    assert page.evaluate("document.activeElement.id") == "begin"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stage"
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert page.inner_text("#spoken").startswith("patch in row 2, column 2: ")
    page.keyboard.press("Escape")
    assert page.inner_text("#saying") == "Attention of what the classifier reads, block 4"
    page.focus("#prefix button:nth-child(2)")
    page.keyboard.press("Enter")
    assert page.inner_text("#saying") == "Attention of the class token, block 4"


def test_maps_and_their_faithfulness(page, maps):
    view(page, "maps")
    first = next(found.category for found in maps if found.category)
    of_first = [found for found in maps if found.category in (None, first)]
    cards = page.locator("#gallery button")
    assert cards.count() == len(of_first) == 3
    for place, found in enumerate(of_first):
        assert f"{found.faithfulness:.2f}" in cards.nth(place).inner_text()
        cards.nth(place).click()
        np.testing.assert_allclose(values(page), found.mask.flatten(), atol=1e-6)
    second = [found for found in maps if found.category][1]
    page.select_option("#category", str(second.category.index))
    assert second.category.short_name in page.inner_text("#saying")


def test_predictions_norms_and_votes_follow_the_block(page, bundled, opened):
    expected = anatomy(bundled.model, opened.tensor[None]).blocks
    view(page, "norms")
    for block in (0, 2):
        put(page, "block", block)
        np.testing.assert_allclose(values(page), expected[block].norms.flatten(), rtol=1e-5)
        assert page.inner_text("#after").startswith(f"After block {block + 1}: ")
    view(page, "votes")
    counts = [int(text.rsplit(": ", 1)[1]) for text in page.locator("#legend li").all_inner_texts()]
    assert sum(counts) == 196


@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_tour_asks_and_answers_in_eight_steps(page, language):
    page.select_option("#language", language)
    page.click("#begin")
    for step in range(1, 9):
        assert re.search(rf"\b{step}\b.*\b8$", page.inner_text("#progress"))
        assert page.inner_text("#answer") == ""
        page.locator("#choices button").first.click()
        answer = page.inner_text("#answer")
        assert len(answer) > 40
        assert not re.search(r"undefined|NaN|null|\[object", answer + page.inner_text("#lesson"))
        if step < 8:
            page.click("#next")
    assert page.is_hidden("#next")
    page.click("#end")
    assert page.is_hidden("#tour")


def test_both_languages_say_the_same_things(page):
    """No text is missing in one of them."""
    same = page.evaluate(
        """() => [...document.querySelectorAll("[data-text]")].map((each) => each.textContent)"""
    )
    page.select_option("#language", "fr")
    french = page.evaluate(
        """() => [...document.querySelectorAll("[data-text]")].map((each) => each.textContent)"""
    )
    assert all(same)
    assert all(french)
    assert sum(one != other for one, other in zip(same, french, strict=True)) > 15
    assert page.evaluate("document.documentElement.lang") == "fr"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_people_out(open_page, file, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(file, color_scheme=scheme)
    for name in ("attention", "maps", "votes"):
        view(page, name)
        found = axe.run(page).response["violations"]
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    page.click("#begin")
    page.locator("#choices button").first.click()
    found = axe.run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


def test_names_are_text(page):
    """The fixture fails if any script of theirs ran, or anything was asked for."""
    assert page.inner_text("#title") == HARMFUL
    assert page.locator("img[src=x]").count() == 0


def test_modules_have_names_of_their_own():
    """They share one script in the page."""
    names = []
    for module in MODULES:
        text = (FOLDER / f"{module}.js").read_text(encoding="utf-8")
        names += re.findall(r"^(?:export )?(?:const|let|function|class) (\w+)", text, re.MULTILINE)
    assert len(names) == len(set(names)) > 40


WHOLE = Region(0, 0, 32, 32)


def bare_page(found, image, region):
    """Without maps or categories."""
    return explore_page(
        found,
        (),
        (),
        image=image,
        region=region,
        name="a.png",
        model="small",
        top=(),
        rollout={"head_fusion": "mean", "discard_ratio": 0, "start_block": 0},
        colormap="turbo",
    )


def test_rollout_of_patches_that_are_read_is_without_their_own_share(open_page, tmp_path):
    """As the tool's; what an attention pool reads is all attention, and stays."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for number, pooling in enumerate(("avg", "map")):
        loaded = wrap_model(make_vit(class_token=False, global_pool=pooling))
        found = bare_page(explore(loaded.model, image), Image.new("RGB", (32, 32)), WHOLE)
        found.write(tmp_path / f"{number}.html")
        page = open_page(tmp_path / f"{number}.html", locale="en")
        view(page, "rollout")
        put(page, "ratio", 0.5)
        expected = VITAttentionRollout(loaded.model, discard_ratio=0.5)(image).flatten()
        np.testing.assert_allclose(values(page) / values(page).max(), expected, atol=1e-3)


def test_a_model_without_categories_of_another_grid(open_page, tmp_path):
    """Registers, an image that is not square, no maps: the page still shows what there is."""
    loaded = wrap_model(make_vit(reg_tokens=2, img_size=(16, 32), num_classes=0))
    image = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    image_seen = Image.new("RGB", (300, 200), "red")
    found = explore(loaded.model, image)
    page = bare_page(found, image_seen, Region(-10, 0, 310, 200))
    page.write(tmp_path / "page.html")
    page = open_page(tmp_path / "page.html", locale="en")
    assert page.locator("#prefix button").all_inner_texts()[1:] != []
    assert "register token 2" in page.inner_text("#prefix")
    view(page, "rollout")
    expected = VITAttentionRollout(loaded.model, discard_ratio=0)(image).flatten()
    np.testing.assert_allclose(values(page) / values(page).max(), expected, atol=1e-3)
    page.click("#begin")
    for _ in range(7):
        page.locator("#choices button").first.click()
        assert "undefined" not in page.inner_text("#tour")
        page.click("#next")


def test_squares_of_patches_say_so(open_page, tmp_path):
    model = make_vit(num_heads=12)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = explore(model, image, largest=1500)
    page = bare_page(found, Image.new("RGB", (32, 32)), WHOLE)
    page.write(tmp_path / "page.html")
    page = open_page(tmp_path / "page.html", locale="en")
    page.click("summary")
    assert "squares of 2 × 2 are taken together, 2 × 2 of them" in page.inner_text("#limits")
    assert "too many heads" in page.inner_text("#limits")
    view(page, "norms")
    norms = anatomy(model, image).blocks[-1].norms
    np.testing.assert_allclose(
        values(page), norms.reshape(2, 2, 2, 2).max(axis=(1, 3)).flatten(), rtol=1e-5
    )


def test_the_same_input_gives_the_same_bytes(file, explainer, opened):
    again = exploration_page(explainer, opened, HARMFUL, colormap="turbo")
    assert again.text.encode() == file.read_bytes()
    assert json.loads(re.search(r'id="data">(.*?)</script>', again.text)[1])["name"] == HARMFUL
    assert 'sandbox="allow-scripts"' in again._repr_html_()
