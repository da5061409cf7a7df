"""`--explore` from the command line and from Python."""

import base64
import json
import re
import webbrowser

import numpy as np
import pytest

from helpers import ROOT, run_here
from vit_explain import main
from vitexplain import explain

BOTH = str(ROOT / "examples" / "both.png")


def data_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))[1])


def asked(tmp_path, *options):
    path = tmp_path / "both_explore.html"
    base = ["--image_path", BOTH, "--model", "bundled", "--explore", "--output_dir", str(tmp_path)]
    assert main([*base, *options]) == 0
    return data_of(path)


def test_the_command_begins_with_its_options(tmp_path, capsys):
    options = ("--method", "grad_rollout", "--category", "tiger cat", "--discard_ratio", "0.5")
    data = asked(tmp_path, *options, "--start_block", "1", "--head_fusion", "min")
    assert "both_explore.html\nOpen it in a browser." in capsys.readouterr().out
    assert data["rollout"] == {"fusion": "min", "ratio": 0.5, "start": 1}
    (found,) = data["maps"]
    assert found["category"]["index"] == 282
    assert found["faithfulness"] is not None
    assert data["name"] == "both.png"
    assert [each["block"] for each in data["predictions"]] == [0, 1, 2, 3]


def test_a_contrast_has_two_sides(tmp_path):
    data = asked(
        tmp_path, "--category", "tiger cat", "--against", "bull mastiff", "--method", "gradcam"
    )
    (found,) = data["maps"]
    assert found["signed"]
    assert [each["name"] for each in found["against"]] == ["bull mastiff"]


def test_why_two_images_are_alike(tmp_path):
    other = str(ROOT / "examples" / "cat.jpg")
    data = asked(tmp_path, "--similar_to", other, "--method", "gradcam")
    assert [found["faithfulness"] for found in data["maps"]] == [None]
    assert data["predictions"] == []


def test_show_opens_the_browser(tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    asked(tmp_path, "--show", "--method", "rollout")
    assert opened == [(tmp_path / "both_explore.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda _url: False)
    asked(tmp_path, "--show", "--method", "rollout")
    assert "no browser was found: open " in capsys.readouterr().err


def test_from_python(tmp_path, bundled, monkeypatch):
    found = explain(BOTH, category="tiger cat", model=bundled)
    quick = ("attention_rollout", "grad_rollout")
    monkeypatch.setattr("vitexplain.explainer.methods_of", lambda *_args, **_options: quick)
    page = found.explore(tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    assert {each["method"] for each in data["maps"]} == {*quick}
    assert len({each["category"]["index"] for each in data["maps"] if each["category"]}) == 5
    assert "<iframe" in page._repr_html_()
    assert re.fullmatch(r"<Page of \d\.\d MiB>", repr(page))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--discard_ratio", "1.5"], "discard_ratio must be"),
        (["--category", "nonsense"], "no category is called 'nonsense'"),
        (["--start_block", "9"], "start_block"),
    ],
)
def test_wrong_requests_write_nothing(tmp_path, options, said):
    base = ["--image_path", BOTH, "--model", "bundled", "--explore", "--method", "grad_rollout"]
    done = run_here(*base, *options, "--output_dir", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


def test_masks_are_those_of_the_command(tmp_path, bundled):
    data = asked(tmp_path, "--method", "grad_rollout", "--category", "243")
    (found,) = data["maps"]
    mask = np.frombuffer(base64.b64decode(found["mask"]), "<f4").reshape(found["grid"])
    expected = explain(BOTH, category=243, model=bundled).map
    np.testing.assert_allclose(mask, expected, atol=1e-5)
