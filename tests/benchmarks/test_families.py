import re
import subprocess
import sys

import pytest

from benchmarks import families, speed
from helpers import ROOT
from vitexplain.attention.families import GLOBAL, WINDOWED
from vitexplain.attention.pyramid import PYRAMIDS
from vitexplain.markers import write_between


def test_families_have_a_layout_or_a_reason():
    names = ["test_vit", "vit_dlittle_patch16_reg1_gap_256", "cait_xxs24_224", "resnet18"]
    found = families.walk(names)
    assert list(found) == ["Cait", "ResNet", "VisionTransformer"]
    vit = found["VisionTransformer"]
    assert list(vit.rolled) == ["test_vit"]
    assert list(vit.others) == ["vit_dlittle_patch16_reg1_gap_256"]
    tried = {kind: families.try_smallest(family) for kind, family in found.items()}
    text = families.table(found, tried)
    assert "| VisionTransformer | 1 (and 1 by other methods) | class token | `test_vit` |" in text
    assert "its talking heads are mixed after the softmax | `cait_xxs24_224` |" in text
    assert "| ResNet | 1 | gradcam, integrated_gradients, occlusion |" in text
    assert "4 models of 3 classes. 1 by all methods, 0 by both rollouts and those that" in text


def test_grids_that_shrink_are_rolled_out():
    found = families.walk(["pit_ti_224", "hiera_tiny_224", "levit_128s"])
    assert all(family.shrinks and family.rolled for family in found.values())
    text = families.table(found, {kind: families.try_smallest(f) for kind, f in found.items()})
    assert (
        "| PoolingVisionTransformer, by both rollouts and without attention | 1 | class token"
        in text
    )


def test_what_no_method_explains_has_the_reason():
    found = families.walk(["mobilenetv5_300m_enc"])
    ((kind, family),) = found.items()
    assert families.try_smallest(family) == ""
    assert "refused: it has features of patches only" in families.table(found, {kind: ""})


def test_the_readmes_table_names_what_the_code_supports():
    readme = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = readme.split(families.BEGIN)[1].split(families.END)[0]
    works = set(re.findall(r"^\| (\w+).* \| \d+ ", table.split("| without")[0], re.MULTILINE))
    supported = {c.__name__ for c in (*GLOBAL, *WINDOWED, *PYRAMIDS)}
    assert works - {"VisionTransformerDistilled"} == supported


def test_speed_measures_and_tells(monkeypatch, capsys, tmp_path):
    """One small case end to end: ratios and megabytes, whatever they are on this machine."""
    monkeypatch.setitem(speed.CASES, "deit_tiny, batch 1", ("test_vit", {}, 1))
    monkeypatch.setattr(speed, "fresh_memory", lambda *_: 3.2)
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{speed.BEGIN}\nold\n{speed.END}\nz\n", encoding="utf-8")
    case = ["--cases", "deit_tiny, batch 1", "--tasks"]
    given = ["--rounds", "2", *case, "--write", str(readme)]
    assert speed.main(given) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"\| deit_tiny, batch 1( \| \d+\.\d\d){2}( \| 3 MiB){4} \|", row)
    text = readme.read_text(encoding="utf-8")
    assert row in text
    assert "old" not in text
    assert text.startswith("a\n") and text.endswith("\nz\n")


def test_baseline_gradient_reaches_the_first_attention():
    import timm
    import torch

    model = timm.create_model("test_vit").eval()
    gradient = speed._forward_backward(model, torch.randn(2, 3, 160, 160))
    assert gradient.shape[:2] == (2, 101)
    assert gradient.abs().sum() > 0
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_is_measured_in_a_process_of_its_own():
    """The matrices of a block are (1, 6, 1370, 1370): all of them at once would be 540 MB."""
    command = [sys.executable, "-m", "benchmarks.speed", "--memory_of"]
    case = "DINOv2-S 518 px, batch 1"
    done = subprocess.run(
        [*command, case, "rollout"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert 40 < float(done.stdout) < 300


def test_missing_markers_are_an_error(tmp_path):
    path = tmp_path / "x.md"
    path.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold the markers"):
        write_between(path, "<a>", "<b>", "text")
