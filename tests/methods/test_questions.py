"""Which map to look at for which question: true of the maps at hand, whichever they are."""

import json
import random
import re

import pytest
import timm
import torch
from PIL import Image

from helpers import ROOT
from vit_explain import main
from vitexplain.cli.text import comparison_text
from vitexplain.methods.questions import (
    LEADING,
    QUESTIONS,
    TIE,
    by_question,
    in_words,
    look_at,
    questions_of,
)
from vitexplain.methods.registry import METHODS
from vitexplain.words import CHANGES, OBJECT, TAKEN_IN

CAT = {"index": 1, "name": "tiger cat, Felis", "probability": 0.5}
DOG = {"index": 2, "name": "dog", "probability": 0.2}


def a_map(name, faithfulness=None, category=CAT, beats=True, **more):
    measured = {} if faithfulness is None else {
        "faithfulness": faithfulness, "beats_baselines": beats,
    }  # fmt: skip
    category = category if METHODS[name].of_category else None
    return {"method": {"name": name}, "category": category, **measured, **more}


def named(maps):
    """question -> the one method that is named for it"""
    return {each["question"]: each["method"] for each in look_at(maps)}


def test_every_method_answers_a_question():
    for name, method in METHODS.items():
        assert method.answers and set(method.answers) <= set(QUESTIONS), name
        assert (TAKEN_IN in method.answers) == (not method.of_category), name
    for question, leading in LEADING.items():
        assert by_question()[question][: len(leading)] == leading


def test_all_methods_alike_are_told_apart_by_other_images():
    maps = [a_map(name, 0.3) for name in METHODS]
    assert named(maps) == {
        CHANGES: "consensus", OBJECT: "relevance", TAKEN_IN: "attention_rollout",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ({"consensus"}, {CHANGES: "grad_rollout", OBJECT: "relevance"}),
        ({"relevance"}, {CHANGES: "consensus", OBJECT: "grad_rollout"}),
        ({"relevance", "grad_rollout"}, {CHANGES: "consensus", OBJECT: "gradcam"}),
        ({"relevance", "grad_rollout", "gradcam"}, {CHANGES: "consensus"}),
    ],
)
@pytest.mark.parametrize("measured", [True, False])
def test_of_the_maps_that_are_there_the_next_best(without, expected, measured):
    names = [n for n in METHODS if n not in without and METHODS[n].of_category]
    assert named([a_map(name, 0.3 if measured else None) for name in names]) == expected


def test_the_most_faithful_on_the_image_itself_comes_first():
    faithful = {"consensus": 0.2, "grad_rollout": 0.2, "occlusion": 0.2 + 2 * TIE, "relevance": 0}
    maps = [a_map(*each) for each in faithful.items()]
    assert named(maps) == {CHANGES: "occlusion", OBJECT: "relevance"}
    maps.append(a_map("attention", 0.2 + 4 * TIE))
    assert named(maps)[CHANGES] == "attention"  # alone, it is what the sheet marks
    maps.append(a_map("gradcam", 0.2 + 4 * TIE))
    assert named(maps)[CHANGES] == "gradcam"  # it knows the category


def test_what_does_not_beat_the_baselines_is_not_named():
    maps = [a_map("consensus", 0.3, beats=False), a_map("legrad", 0.3)]
    assert named(maps) == {CHANGES: "legrad"}
    assert look_at([each | {"beats_baselines": False} for each in maps]) == []
    assert look_at([a_map("consensus", 0.3), a_map("consensus", 0.2, DOG)]) == []  # no choice


def test_whatever_is_compared_what_is_said_is_true_of_it():
    rng = random.Random(0)
    for _ in range(500):
        maps = [
            a_map(name, rng.randrange(12) * TIE / 2, category, beats=rng.random() < 0.7)
            for name in rng.sample(list(METHODS), rng.randrange(2, 7))
            for category in ((CAT, DOG) if METHODS[name].of_category else (None,))
        ]
        first = next((each["category"] for each in maps if each["category"]), None)
        for each in look_at(maps):
            of = [m for m in maps if m["method"]["name"] == each["method"]]
            if each["question"] != CHANGES:
                assert of and each["question"] in METHODS[each["method"]].answers
                continue
            for category in each["categories"] or [None]:
                row = [m for m in maps if (m["category"] or first) == category]
                beaten = [m for m in row if m["beats_baselines"]]
                best = max(m["faithfulness"] for m in row)
                if each["method"] is None:
                    leading = [m for m in beaten if m["faithfulness"] >= best - TIE]
                    assert not [m for m in leading if m["category"]] and len(leading) != 1
                else:
                    assert any(m in of and m["faithfulness"] >= best - TIE for m in beaten)


def test_each_category_has_its_own_answer():
    maps = [
        a_map("consensus", 0.3), a_map("consensus", 0.1, DOG),
        a_map("legrad", 0.1), a_map("legrad", 0.3, DOG), a_map("relevance", 0),
    ]  # fmt: skip
    assert in_words(look_at(maps)) == [
        ("Which patches change the answer", "consensus of four methods for tiger cat, LeGrad for "
         "dog"),
        ("Where the object is", "relevance"),
    ]  # fmt: skip
    maps[3] = a_map("legrad", 0.3, DOG, beats=False)
    assert in_words(look_at(maps))[0][1] == (
        "consensus of four methods for tiger cat, none of these maps for dog"
    )
    maps[3] = a_map("legrad", 0.1, DOG)
    assert in_words(look_at(maps))[0][1] == "consensus of four methods"


def test_a_contrast_or_a_similarity_does_not_show_where_the_object_is():
    similar = {"index": 1, "name": "similar", "probability": None, "output": 0.8}
    names = ("relevance", "grad_rollout", "consensus")
    for maps in ([a_map(name, against=[DOG]) for name in names],
                 [a_map(name, category=similar) for name in names]):  # fmt: skip
        assert [questions_of(each) for each in maps] == [(), (CHANGES,), (CHANGES,)]
        assert named(maps) == {CHANGES: "consensus"}


def test_values_that_no_reader_of_json_has():
    maps = [a_map("consensus"), a_map("legrad", 0.1)]
    maps[0] |= {"faithfulness": None, "beats_baselines": False}
    assert named(maps) == {CHANGES: "legrad"}


def test_the_page_of_methods_says_the_same():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \|", page, re.MULTILINE))
    short = {"attention_rollout": "rollout"}
    assert {question: tuple(re.findall("`(.+?)`", cell)) for question, cell in rows.items()} == {
        question: tuple(short.get(name, name) for name in names)
        for question, names in by_question().items()
    }


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_the_command_names_what_the_model_supports(model, tmp_path, capsys, monkeypatch):
    """Of random weights. Their maps may beat nothing: the baselines are held to be beaten."""
    monkeypatch.setattr("vitexplain.explainer.Map.beats_baselines", True)
    drawn = []
    monkeypatch.setattr(
        "vitexplain.drawing.comparison.with_answers",
        lambda sheet, answers: (drawn.append(answers), sheet)[1],
    )
    torch.manual_seed(1)
    weights = timm.create_model(model, num_classes=5).state_dict()
    torch.save(weights, tmp_path / "net.pth")
    pixels = torch.randint(0, 256, (160, 160, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert main(["--image_path", str(tmp_path / "x.png"), "--model", model, "--checkpoint",
                 str(tmp_path / "net.pth"), "--compare", "--output_dir", str(tmp_path / "out"),
                 "--json"]) == 0  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    maps, said = report["maps"], in_words(report["look_at"])
    there = {found["method"]["name"] for found in maps}
    assert ("relevance" in there) == (model == "test_vit")
    advice = {each["question"]: each["method"] for each in report["look_at"]}
    assert advice[OBJECT] == ("relevance" if "relevance" in there else "gradcam")
    best = max(found["faithfulness"] for found in maps)
    (chosen,) = (found for found in maps if found["method"]["name"] == advice[CHANGES])
    assert chosen["faithfulness"] >= best - TIE
    assert (TAKEN_IN in advice) == ("attention_rollout" in there)
    for found in maps:
        assert tuple(found["answers"]) == METHODS[found["method"]["name"]].answers
    assert drawn == [said]
    text = comparison_text(report)
    assert all(f"{question}: {answer}\n" in text for question, answer in said)
