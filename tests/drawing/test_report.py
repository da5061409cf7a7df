"""The report, in a browser as users open it: from a file, without a network."""

import base64
import io
import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from vitexplain.drawing.report.report import write_report

pytestmark = pytest.mark.slow
HARMFUL = "<img src=x onerror=alert(1)>.png"
CLOSING = "</script><script>alert(2)</script>"


def mask_of(bright_row, bright_column, grid=(4, 4)):
    mask = np.zeros(grid, np.uint8)
    mask[bright_row, bright_column] = 255
    return base64.b64encode(mask).decode()


def result(path, name, category, probability, **changes):
    """A line of results.jsonl; the map is bright in its upper left corner."""
    category = {"index": category, "name": f"category {category}", "probability": probability}
    return {
        "path": str(path),
        "name": name,
        "size": [80, 40],
        "region_seen": [0, 0, 80, 40],
        "model": "bundled",
        "top": [category, {"index": 7, "name": "another", "probability": 0.01}],
        "maps": [
            {
                "method": {"name": "grad_rollout", "head_fusion": "mean", "discard_ratio": 0.9},
                "category": category,
                "overlay": f"sub/{name}_243.png",
                "grid": [4, 4],
                "mask": mask_of(0, 0),
            }
        ],
        "milliseconds": {"decode": 1.25, "model": 20.0, "write": 3.0},
    } | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    Image.new("RGB", (80, 40), (255, 255, 255)).save(folder / "white.png")
    Image.new("RGB", (40, 80), (255, 255, 255)).save(folder / "high.png")
    return folder


@pytest.fixture(scope="module")
def results(folder):
    white = folder / "white.png"
    second = {
        "method": {"name": "attention_rollout", "head_fusion": "max", "discard_ratio": 0.9},
        "category": None,
        "faithfulness": 0.25,
        "most_faithful": True,
        "overlay": "x.png",
        "grid": [4, 4],
        "mask": mask_of(3, 3),
    }
    named = result(white, HARMFUL, 3, 0.5)
    named["top"][0]["name"] = CLOSING
    several = result(white, "c.png", 1, 0.2)
    several["maps"].append(second)
    return [
        result(white, "a.png", 1, 0.9),
        result(white, "B.png", 2, 0.3, region_seen=[20, 0, 60, 40]),
        several,
        result(folder / "gone.png", "gone.png", 2, 0.95),
        result(
            folder / "high.png", "high.png", 1, 0.4, size=[40, 80], region_seen=[-20, 0, 60, 80]
        ),
        named,
    ]


@pytest.fixture(scope="module")
def page_file(folder, results):
    write_report(results, folder / "report.html", "Title & <b>", alpha=0.4)
    return folder / "report.html"


@pytest.fixture
def page(open_page, page_file):
    return open_page(page_file)


def names(page):
    return page.locator(".card .name").all_text_contents()


def opacity(page, number=0):
    page.wait_for_timeout(200)  # the transition
    return float(
        page.evaluate(f"getComputedStyle(document.querySelectorAll('.seen')[{number}]).opacity")
    )


def pixels(locator):
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"), dtype=int)


def test_every_image_has_a_card(page, results):
    assert page.locator("h1").inner_text() == page.title() == "Title & <b>"
    assert page.locator("#count").inner_text() == "6 of 6 images"
    assert names(page) == [each["name"] for each in results]
    first = page.locator(".card button").first
    assert first.get_attribute("aria-label") == "a.png: category 1, 90.0 %. Open large view"
    assert page.locator(".card").nth(3).locator(".gone").inner_text() == "image not found"


def test_hover_shows_the_input_and_the_slider_blends(page):
    page.mouse.move(0, 0)
    assert opacity(page) == pytest.approx(0.4)
    page.locator(".card button").first.hover()
    assert opacity(page) == 0
    page.mouse.move(0, 0)
    for value in (100, 0, 70):
        page.locator("#blend").fill(str(value))
        assert opacity(page) == pytest.approx(value / 100)
        assert opacity(page, 1) == pytest.approx(value / 100)


def test_a_finger_switches_on_the_image_and_opens_below(open_page, page_file):
    page = open_page(page_file, has_touch=True, is_mobile=True)
    card = page.locator(".card").first
    for shown in (0, 0.4):
        card.locator(".frame").tap()
        assert opacity(page) == pytest.approx(shown)
        assert not page.locator("#large").is_visible()
    card.locator(".caption").tap()
    assert page.locator("#large").is_visible()


def test_map_lies_where_it_belongs(page):
    page.locator("#blend").fill("100")
    page.wait_for_timeout(300)
    frames = [pixels(frame) for frame in page.locator(".card .image").all()]
    red, blue = (
        cv2.applyColorMap(np.uint8([[v]]), cv2.COLORMAP_TURBO)[0, 0, ::-1] for v in (255, 0)
    )
    whole, cropped, _, gone, high, _ = frames
    height, width = whole.shape[:2]

    def near(pixel, colour):
        return np.abs(pixel - colour).max() < 40

    assert near(whole[height // 16, width // 16], red)
    assert near(whole[-height // 8, -width // 8], blue)
    # the model saw the middle half: its corner is a quarter in, and what it did not see is dark
    assert near(cropped[height // 16, width // 4 + width // 32], red)
    assert cropped[height // 2, width // 8].max() < 20
    assert cropped[height // 2, -width // 8].max() < 20
    # padded to a square: the left quarter of the map, with its bright patch, is beside the image
    assert near(high[high.shape[0] // 2, high.shape[1] // 2], (0, 0, 0)) or near(
        high[high.shape[0] // 2, high.shape[1] // 2], blue
    )
    assert not any(near(pixel, red) for pixel in high[::10, ::10].reshape(-1, 3))
    assert near(gone[height // 16, width // 16], red)


def test_filter_search_and_order(page):
    page.locator("#category").select_option(label="category 1 (3)")
    assert names(page) == ["a.png", "c.png", "high.png"]
    assert page.locator("#count").inner_text() == "3 of 6 images"
    page.locator("#sort").select_option("least")
    assert names(page) == ["c.png", "high.png", "a.png"]
    page.locator("#category").select_option("")
    page.locator("#sort").select_option("most")
    assert names(page) == ["gone.png", "a.png", HARMFUL, "high.png", "B.png", "c.png"]
    page.locator("#search").fill("b")
    assert names(page) == ["B.png"]
    page.locator("#search").fill("nothing is called so")
    assert names(page) == []
    assert page.locator("#count").inner_text() == "0 of 6 images"
    page.locator("#search").fill("")
    page.locator("#sort").select_option("name")
    assert names(page)[0] == "a.png"


def focused(page):
    return page.evaluate("document.activeElement.querySelector('.name')?.textContent")


def test_arrow_keys_move_in_the_grid(page):
    page.locator("#blend").focus()
    page.keyboard.press("Tab")
    assert focused(page) == "a.png"
    columns = page.evaluate(
        "getComputedStyle(document.getElementById('cards')).gridTemplateColumns.split(' ').length"
    )
    assert columns == 4
    for key, name in (
        *(("ArrowRight", "B.png"), ("ArrowDown", HARMFUL), ("ArrowUp", "B.png")),
        *(("ArrowLeft", "a.png"), ("ArrowLeft", "a.png"), ("End", HARMFUL), ("Home", "a.png")),
    ):
        page.keyboard.press(key)
        assert focused(page) == name, key
    page.keyboard.press("Shift+Tab")  # the grid is one stop
    assert page.evaluate("document.activeElement.id") == "blend"


def test_large_view(page):
    page.locator(".card button").nth(2).focus()
    page.keyboard.press("Enter")
    large = page.locator("#large")
    assert large.locator("h2").inner_text() == "c.png"
    captions = large.locator("figcaption").all_inner_texts()
    assert captions == [
        "input",
        "gradient attention rollout: category 1, 20.0 % · overlay\nwhich patches change the "
        "answer and where the object is",
        "attention rollout: every category · overlay · faithfulness 0.25 · the most faithful\n"
        "what was taken in, whatever the answer",
    ]
    assert large.locator("figure.best").all() and large.locator("strong").count() == 1
    links = [link.get_attribute("href") for link in large.locator("a").all()]
    assert links == ["white.png", "sub/c.png_243.png", "x.png"]
    alternatives = [image.get_attribute("alt") for image in large.locator(".image > img").all()]
    assert alternatives == [
        "input: c.png",
        "map of c.png for category 1, 20.0 %, gradient attention rollout",
        "map of c.png for every category, attention rollout",
    ]
    rows = [row.split("\t") for row in large.locator("tr").all_inner_texts()]
    assert ["1 category 1", "20.0 %"] in rows
    for fact in (["model", "bundled"], ["image", "80 × 40 pixels"],
                 ["methods", "gradient attention rollout, attention rollout"]):  # fmt: skip
        assert fact in rows
    assert not large.get_by_text("decode, ms").is_visible()
    large.locator("summary").click()
    rows = [row.split("\t") for row in large.locator("details tr").all_inner_texts()]
    assert ["attention rollout", "head fusion max, discard ratio 0.9"] in rows
    assert ["decode, ms", "1.2"] in rows
    page.keyboard.press("ArrowRight")
    assert large.locator("h2").inner_text() == "gone.png"
    page.keyboard.press("Home")
    assert large.locator("h2").inner_text() == "a.png"
    assert large.locator("#previous").is_disabled()
    page.locator("#next").click()
    assert large.locator("h2").inner_text() == "B.png"
    page.keyboard.press("Escape")
    assert not large.is_visible()
    for _ in range(40):  # the browser first gives the focus back to where it was
        if focused(page) == "B.png":
            break
        page.wait_for_timeout(50)
    assert focused(page) == "B.png"


def test_the_large_view_says_where_no_map_beats_the_baselines(folder, open_page):
    white, several = folder / "white.png", []
    for number, beats in enumerate(((False, False), (True, False))):
        several.append(result(white, f"{number}.png", 1, 0.9))
        (one,) = several[-1]["maps"]
        measured = {"faithfulness": 0.1, "baseline": 0.2, "most_faithful": False}
        several[-1]["maps"] = [one | measured | {"beats_baselines": each} for each in beats]
    write_report(several, folder / "unbeaten.html", "unbeaten")
    page = open_page(folder / "unbeaten.html")
    for number, said in enumerate((True, False)):
        page.locator(".card button").nth(number).click()
        assert page.locator("#large h2").inner_text() == f"{number}.png"
        assert page.locator("#unbeaten").is_visible() == said
        page.locator("#close").click()


def test_the_large_view_says_which_map_to_look_at(folder, open_page):
    """As of the maps of this image; nothing of a single one, nor where none beats the baselines."""
    one = result(folder / "white.png", "a.png", 1, 0.9)
    one["top"][0]["name"] = CLOSING
    (first,) = one["maps"]
    names = ["consensus", "relevance", "legrad", "attention"]

    def several(name, beats, category=one["top"][0]):
        maps = [
            first | {"method": {"name": each}, "category": category if each != "attention" else
                     None, "faithfulness": 0.3, "beats_baselines": beats}
            for each in names
        ]  # fmt: skip
        return dict(one, name=name, maps=maps)

    results = [one, several("b.png", True), several("c.png", False)]
    results[1]["maps"][2]["faithfulness"] = 0.4
    other = dict(results[1]["maps"][0], category=one["top"][1])
    results.append(dict(results[1], name="d.png", maps=[*results[1]["maps"], other]))
    write_report(results, folder / "answers.html", "answers")
    page = open_page(folder / "answers.html")
    large = page.locator("#large")

    def said(number):
        page.locator(".card button").nth(number).click()
        tables = large.locator("table", has_text="which map to look at")
        rows = [row.split("\t") for row in tables.locator("tr").all_inner_texts()]
        page.locator("#close").click()
        return dict(rows)

    assert said(0) == said(2) == {}
    others = {
        "Where the object is": "relevance",
        "What was taken in, whatever the answer": "attention of one block",
    }
    assert said(1) == {"Which patches change the answer": "LeGrad"} | others
    page.locator(".card button").nth(1).click()
    assert large.locator("figcaption .answers").all_inner_texts() == [
        "which patches change the answer", "where the object is",
        "which patches change the answer", "what was taken in, whatever the answer",
    ]  # fmt: skip
    page.locator("#close").click()
    assert said(3)["Which patches change the answer"] == (
        f"LeGrad for {CLOSING}, consensus of four methods for another"
    )


def test_the_page_says_what_all_of_its_maps_answer(folder, open_page):
    """Methods that answer the same are not told apart; a contrast answers no question here."""
    one = result(folder / "white.png", "a.png", 1, 0.9)
    (first,) = one["maps"]
    for names, against, expected in (
        (["legrad", "consensus"], {}, "Maps by LeGrad, consensus of four methods: which patches "
         "change the answer"),
        (["grad_rollout"], {}, "Maps by gradient attention rollout: which patches change the "
         "answer and where the object is"),
        (["relevance", "legrad"], {"against": [one["top"][1]]}, "Maps of which patches change the "
         "answer: LeGrad; others: relevance"),
        (["relevance"], {"against": [one["top"][1]]}, "Maps by relevance"),
    ):  # fmt: skip
        maps = [first | against | {"method": {"name": name}} for name in names]
        write_report([dict(one, maps=maps)], folder / "made.html", "made")
        assert open_page(folder / "made.html").locator("#made").inner_text() == expected


def test_harmful_names_are_only_text(page):
    """That no dialog opens and nothing is asked for, the page's fixture checks."""
    assert HARMFUL in names(page)
    page.locator(".card button").last.click()
    assert page.locator("#large h2").inner_text() == HARMFUL
    assert CLOSING in page.locator("#large figcaption").last.inner_text()
    href = page.locator("#large figcaption a").get_attribute("href")
    assert href == "sub/%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E.png_243.png"
    assert page.locator("script:not([type])").count() == 1


def test_the_page_says_what_was_drawn_and_what_the_colours_mean(page):
    made = page.locator("#made").inner_text()
    assert made == (
        "Maps of which patches change the answer: gradient attention rollout; of where the object "
        "is: gradient attention rollout; of what was taken in, whatever the answer: attention "
        "rollout"
    )
    bar = page.locator("header .scale img")
    bar.scroll_into_view_if_needed()
    colours = pixels(bar)
    ends = [cv2.applyColorMap(np.uint8([[v]]), cv2.COLORMAP_TURBO)[0, 0, ::-1] for v in (5, 250)]
    for column, colour in ((3, ends[0]), (-4, ends[1])):
        assert np.abs(colours[colours.shape[0] // 2, column] - colour).max() < 40
    assert page.locator("header .scale").inner_text().split("\n") == [
        "weakest", "strongest patch of each map",
    ]  # fmt: skip


def test_the_grid_shows_the_maps_of_the_chosen_method(page):
    """c.png has two: the second, the more faithful one, is bright at the lower right."""
    page.locator("#blend").fill("100")
    card = page.locator(".card").nth(2)

    def corners():
        page.wait_for_timeout(300)
        drawn = pixels(card.locator(".image"))
        height, width = drawn.shape[:2]
        return [drawn[y * height // 16, x * width // 16][0] for y, x in ((1, 1), (15, 15))]

    assert [option.inner_text() for option in page.locator("#map option").all()] == [
        "highest faithfulness", "gradient attention rollout", "attention rollout",
    ]  # fmt: skip
    first, last = corners()
    assert first < 80 < 100 < last
    page.locator("#map").select_option("gradient attention rollout")
    first, last = corners()
    assert last < 80 < 100 < first
    assert card.locator(".which").inner_text() == "gradient attention rollout"


def test_several_categories_can_be_switched_too(folder, open_page):
    several = result(folder / "white.png", "a.png", 3, 0.5)
    second = dict(several["maps"][0], category=several["top"][1], mask=mask_of(3, 3))
    several["maps"].append(second)
    write_report([several], folder / "several.html", "several")
    page = open_page(folder / "several.html")
    page.locator("#map").select_option("gradient attention rollout, category 2")
    page.wait_for_timeout(300)
    text = page.locator(".which").inner_text()
    assert text == "gradient attention rollout, category 2: another, 1.0 %"


def test_search_finds_categories(page):
    page.locator("#search").fill("Category 2")
    assert names(page) == ["B.png", "gone.png"]
    page.locator("#search").fill("another")  # every image's second category
    assert len(names(page)) == 6


def test_outputs_without_probabilities(folder, open_page):
    """Of a model of values: the outputs themselves, and the order by them."""
    found = [result(folder / "white.png", f"{n}.png", 0, None) for n in range(3)]
    for each, output in zip(found, (0.5, 12.345678, -2.0), strict=True):
        each["top"][0]["output"] = output
    found.append(result(folder / "white.png", "none.png", 0, None, top=[]))
    found[3]["maps"][0]["category"] = None
    write_report(found, folder / "values.html", "values")
    page = open_page(folder / "values.html")
    shares = page.locator(".share").all_inner_texts()
    assert shares == ["output 0.5000", "output 12.35", "output -2.000", ""]
    page.locator("#sort").select_option("most")
    assert names(page) == ["1.png", "0.png", "none.png", "2.png"]
    page.locator(".card button").first.click()
    assert "category 0, output 12.35" in page.locator("#large figcaption").last.inner_text()


def test_images_that_failed_are_listed(folder, results, open_page):
    reasons = [("in/" + HARMFUL, "it is cut short"), ("b.png", CLOSING)]
    write_report(results[:1], folder / "failed.html", "failed", failures=reasons)
    page = open_page(folder / "failed.html")
    page.locator("#failed summary").click()
    rows = [tuple(row.split("\t")) for row in page.locator("#failed tr").all_inner_texts()]
    assert rows == reasons
    assert page.locator("#failed summary").inner_text() == "2 images could not be explained"


def test_no_list_of_failures_where_there_are_none(page):
    assert not page.locator("#failed").is_visible()
    assert page.locator("#which").is_visible()


def judged(folder, pairs):
    """One image for each (true category, predicted category), the confidence falling."""
    found = []
    for number, (truth, predicted) in enumerate(pairs):
        each = result(folder / "white.png", f"{number}.png", predicted, 0.9 - number / 100)
        each |= {
            "truth": {"index": truth, "name": f"category {truth}"},
            "correct": truth == predicted,
        }
        found.append(each)
    first = found[0]["maps"][0]
    true = {"index": pairs[0][0], "name": CLOSING, "probability": 0.1}
    found[0]["maps"] += [
        {**first, "category": true},
        {**first, "category": true, "against": [first["category"]], "mask": mask_of(2, 2)},
    ]
    return found


@pytest.fixture
def judged_page(folder, open_page):
    def opened(pairs):
        results = judged(folder, pairs)
        right = sum(each["correct"] for each in results)
        share = {"right": right, "of": len(pairs), "value": right / len(pairs)}
        accuracy = {**share, "interval": [0.1, 0.9]}
        write_report(results, folder / "judged.html", "judged", accuracy=accuracy)
        return open_page(folder / "judged.html")

    return opened


PAIRS = [(1, 2), (1, 1), (2, 2), (1, 2), (2, 1), (1, 1)]


def test_mistakes_come_first_and_can_be_filtered(judged_page):
    page = judged_page(PAIRS)
    assert page.locator("#accuracy").inner_text() == (
        "3 of 6 predictions are right: top-1 0.500 (95 % interval 0.100 to 0.900)"
    )
    assert names(page) == [f"{n}.png" for n in (0, 3, 4, 1, 2, 5)]
    assert page.locator(".card .wrong").first.inner_text() == "wrong: it is category 1"
    page.locator("#correct").select_option("right")
    assert names(page) == ["1.png", "2.png", "5.png"]
    page.locator("#truth").select_option("2")
    assert names(page) == ["2.png"]


def test_the_confusion_matrix_opens_the_images_of_a_cell(judged_page):
    page = judged_page(PAIRS)
    page.locator("#confusion summary").click()
    rows = [row.split("\t") for row in page.locator("#confusion tr").all_inner_texts()]
    assert rows[1:] == [["category 1", "2", "2"], ["category 2", "1", "1"]]
    page.get_by_label("2 of category 1 predicted as category 2: show them").click()
    assert names(page) == ["0.png", "3.png"]
    assert focused(page) == "0.png"


def test_of_many_categories_the_most_frequent_confusions_are_listed(judged_page):
    pairs = [(1, 2), (1, 2), *((n, n + 1) for n in range(3, 30))]
    page = judged_page(pairs)
    page.locator("#confusion summary").click()
    rows = page.locator("#confusion tr").all_inner_texts()
    assert rows[0] == "category 1, taken for category 2\t2"
    assert len(rows) == 20


def test_a_mistakes_maps_are_named_by_what_they_explain(judged_page):
    page = judged_page(PAIRS)
    kinds = page.locator("#map option").all_inner_texts()
    assert kinds == [
        f"gradient attention rollout, {role}"
        for role in ("predicted", "true category", "true against predicted")
    ]
    page.locator("#map").select_option(kinds[2])
    page.wait_for_timeout(300)
    said = page.locator(".card .which").all_inner_texts()
    assert "against category 2" in said[0]
    assert said[1] == kinds[0]  # it has no other
    assert page.locator("header .scale img").count() == 2


def test_both_scales_stay_within_the_header_of_a_phone(judged_page, folder, open_page):
    judged_page(PAIRS)
    page = open_page(folder / "judged.html", viewport={"width": 390, "height": 800})
    header = page.locator("header").bounding_box()
    for bar in page.locator("header .scale img").all():
        box = bar.bounding_box()
        assert box["y"] + box["height"] <= header["y"] + header["height"]
        assert box["x"] + box["width"] <= 390


def test_without_true_categories_nothing_is_said_of_them(page):
    for place in ("#accuracy", "#confusion", "#truth", "#correct"):
        assert not page.locator(place).is_visible()
    assert page.locator("#sort").input_value() == "name"


def test_a_click_beside_the_large_view_closes_it(open_page, page_file):
    page = open_page(page_file, viewport={"width": 1400, "height": 700})
    page.locator(".card button").first.click()
    page.locator("#large figure").first.click()
    assert page.locator("#large").is_visible()
    page.mouse.click(3, 350)
    assert not page.locator("#large").is_visible()


def test_focus_is_seen_whole_and_not_below_the_header(open_page, page_file):
    page = open_page(page_file, viewport={"width": 500, "height": 460})
    page.locator(".card button").first.focus()
    for key in ("End", "Home", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        card, header = (
            page.evaluate(f"{what}.getBoundingClientRect().{edge}")
            for what, edge in (("document.activeElement", "top"),
                               ("document.querySelector('header')", "bottom"))
        )  # fmt: skip
        sticky = page.evaluate("getComputedStyle(document.querySelector('header')).position")
        assert sticky == "static" or card >= header - 1, key
    for height, position in ((460, "static"), (560, "sticky")):  # a low window needs its room
        page.set_viewport_size({"width": 1000, "height": height})
        page.wait_for_timeout(100)
        page.keyboard.press("End")
        page.keyboard.press("Home")
        page.wait_for_timeout(100)
        header = "document.querySelector('header')"
        assert page.evaluate(f"getComputedStyle({header}).position") == position
        top = page.evaluate("document.activeElement.getBoundingClientRect().top")
        assert top >= page.evaluate(f"{header}.getBoundingClientRect().bottom")
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineOffset")
    assert ring == "-3px"  # inside: the card clips what is outside


def test_paper_has_all_images(open_page, tmp_path, folder):
    many = [result(folder / "white.png", f"{n}.png", 0, 0.5) for n in range(60)]
    write_report(many, tmp_path / "many.html", "many")
    page = open_page(tmp_path / "many.html")
    page.wait_for_timeout(200)
    assert page.locator(".card .image").count() < 60
    page.pdf(path=tmp_path / "many.pdf", format="A4")
    assert page.locator(".card .image").count() == 60


def test_a_phone_needs_no_sideways_scrolling(open_page, page_file):
    page = open_page(page_file, viewport={"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".card button").last.click()
    assert page.evaluate("document.getElementById('large').scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(open_page, page_file, scheme):
    """At least 4.5 between every text and its ground (WCAG 2.2, AA)."""
    page = open_page(page_file, color_scheme=scheme)
    page.locator(".card button").first.click()

    def luminance(colour):
        channels = np.array([float(v) for v in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    for selector, ground in (
        *(("h1", "header"), ("#count", "header"), ("label", "header"), ("#search", "#search")),
        *((".card .name", ".card button"), ("#large h2", "#large"), ("#large th", "#large")),
        *(("#large a", "#large"), ("#close", "#close"), ("#large .answers", "#large")),
    ):
        colour, behind = (
            page.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
            for where, what in ((selector, "color"), (ground, "backgroundColor"))
        )
        low, high = sorted((luminance(colour), luminance(behind)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def test_a_thousand_images(open_page, tmp_path):
    sources = []
    for number in range(20):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8))
        sources.append(tmp_path / f"{number}.jpg")
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(sources[-1])
    many = [
        result(sources[n % 20], f"{n:04}.jpg", n % 50, n / 1000, size=[500, 375])
        for n in range(1000)
    ]
    write_report(many, tmp_path / "report.html", "1000")
    assert (tmp_path / "report.html").stat().st_size < 25e6
    page = open_page(tmp_path / "report.html")
    assert page.locator("#count").inner_text() == "1000 of 1000 images"
    page.wait_for_timeout(300)
    assert 12 <= page.locator(".card .image").count() <= 80
    page.locator("#category").select_option(label="category 49 (20)")
    assert len(names(page)) == 20
    page.locator("#category").select_option("")
    page.keyboard.press("Tab")
    page.locator(".card button").last.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert page.locator(".card").last.locator(".image img").count() == 2
    assert page.locator(".card .image").count() < 300


def test_the_same_bytes_again(folder, results, page_file):
    write_report(results, folder / "again.html", "Title & <b>", alpha=0.4)
    assert (folder / "again.html").read_bytes() == page_file.read_bytes()


def test_large_images_become_small_and_stay_right(folder):
    pixels = np.zeros((900, 1200, 3), np.uint8)
    pixels[:450, 600:] = (255, 0, 0)
    Image.fromarray(pixels).save(folder / "large.png")
    write_report([result(folder / "large.png", "large.png", 1, 0.5)], folder / "one.html", "one")
    text = (folder / "one.html").read_text(encoding="utf-8")
    images = json.loads(re.search(r'id="images-0">(.*?)</script>', text)[1])
    thumbnail = Image.open(io.BytesIO(base64.b64decode(images["thumbnail"])))
    assert thumbnail.size == (320, 240)
    red = np.asarray(thumbnail.convert("RGB"), dtype=int)[60, 240]
    assert np.abs(red - (255, 0, 0)).max() < 12
