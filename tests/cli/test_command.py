"""The command, end to end, as users start it."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers import ROOT, run_here

COMMAND = [sys.executable, str(ROOT / "vit_explain.py")]
CAT = ROOT / "examples" / "cat.jpg"
BUNDLED = ("--model", "bundled", "--device", "cpu")


def run(*arguments, cwd, **environment):
    """In this process, unless its environment is to be another."""
    if environment:
        return run_apart(*arguments, cwd=cwd, **environment)
    return run_here(*arguments, cwd=cwd)


def run_apart(*arguments, cwd, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def explain(*arguments, cwd, **environment):
    """Run, expect success, and return what was printed."""
    done = run(*arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_first_command_of_the_readme(tmp_path):
    out = explain(
        *[
            "--image_path",
            "examples/both.png",
            "--head_fusion",
            "max",
            "--discard_ratio",
            "0.9",
            "--use_cuda",
        ],
        cwd=tmp_path,
    )
    if not torch.cuda.is_available():
        assert out.splitlines()[0] == "Using CPU (CUDA is not available)"
    assert "input 224x224 (the whole image, resized), 14x14 patches" in out
    assert "pooling: class token" in out
    assert len(re.findall(r"^ +\d+\.\d% +\d+ \w", out, re.MULTILINE)) == 5
    assert "attention rollout, the same for every category" in out
    assert "heads fused by max" in out
    names = ["both_attention_rollout_0.900_max.png", "both_input.png"]
    assert files_in(tmp_path / "output") == names
    assert all(f"Wrote output/{name}" in out for name in names)
    with Image.open(tmp_path / "output" / names[0]) as overlay:
        assert overlay.size == (896, 448)
    with Image.open(tmp_path / "output" / names[1]) as seen:
        assert seen.size == (224, 224)


def test_second_command_of_the_readme(tmp_path):
    out = explain(
        *["--image_path", "examples/both.png", "--head_fusion", "max", "--discard_ratio", "0.9"],
        *["--use_cuda", "--category_index", "243"],
        cwd=tmp_path,
    )
    assert "gradient attention rollout for category 243 (bull mastiff" in out
    assert "both_grad_rollout_243_0.900_max.png" in files_in(tmp_path / "output")


def test_auto_says_which_model_it_took(tmp_path):
    done = run("--image_path", CAT, cwd=tmp_path)
    assert done.returncode == 0
    assert "Model: bundled" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "using the bundled model" in done.stderr


def test_json(tmp_path):
    out = explain(
        *BUNDLED,
        "--image_path",
        CAT,
        "--category",
        "tiger cat",
        "--json",
        "--save_mask",
        "--output_dir",
        tmp_path / "a" / "b",
        cwd=tmp_path,
    )
    report = json.loads(out)
    assert set(report) == {
        "device", "files", "method", "model", "notices", "picture", "top", "versions",
    }  # fmt: skip
    assert report["notices"] == []
    assert report["device"] == {"name": "cpu", "notice": "Using CPU", "precision": "fp32"}
    assert report["model"] == {
        "name": "bundled",
        "input_size": [224, 224],
        "crop": "none",
        "patch_grid": [14, 14],
        "readout": "class token",
    }
    assert report["picture"] == {
        "path": str(CAT),
        "size": [451, 300],
        "region_seen": [0, 0, 451, 300],
    }
    method = report["method"]
    assert method["category"]["index"] == 282
    assert method["category"]["name"] == "tiger cat"
    del method["category"]
    assert method == {
        "name": "grad_rollout",
        "head_fusion": "mean",
        "discard_ratio": 0.9,
        "start_block": 0,
        "as_published": False,
    }
    probabilities = [category["probability"] for category in report["top"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert report["versions"]["timm"] == timm.__version__
    base = str(tmp_path / "a" / "b" / "cat_grad_rollout_282_0.900_mean")
    assert report["files"] == {
        "overlay": f"{base}.png",
        "input": str(tmp_path / "a" / "b" / "cat_input.png"),
        "mask": f"{base}.npy",
    }
    mask = np.load(report["files"]["mask"], allow_pickle=False)
    assert (mask.shape, mask.dtype, mask.max()) == ((14, 14), np.float32, 1.0)
    with Image.open(report["files"]["overlay"]) as overlay:
        assert overlay.size == (451, 300)
        assert overlay.text["Category"] == "282 tiger cat"
        assert overlay.text["Model"] == "bundled"
        assert overlay.text["Command"].startswith("vit_explain.py --model bundled")
        assert torch.__version__ in overlay.text["Versions"]


@pytest.mark.slow
def test_same_bytes_each_time(tmp_path):
    arguments = (*BUNDLED, "--image_path", CAT, "--category", "top", "--save_mask")
    contents = []
    for run_in in (run_here, run_apart):
        assert run_in(*arguments, cwd=tmp_path).returncode == 0
        contents.append({p.name: p.read_bytes() for p in (tmp_path / "output").iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3


def test_category_top_is_the_first_choice(tmp_path):
    report = json.loads(
        explain(*BUNDLED, "--image_path", CAT, "--category", "TOP".lower(), "--json", cwd=tmp_path)
    )
    assert report["method"]["category"] == report["top"][0]


def test_crop_draws_over_what_the_model_saw(tmp_path):
    out = explain(*BUNDLED, "--image_path", CAT, "--crop", "--alpha", "1", cwd=tmp_path)
    # 451 x 300 to short side 256 is 384 x 256, of that the middle 224 x 224
    assert "the model's crop: x 94 to 357, y 19 to 281 of 451x300" in out
    with Image.open(tmp_path / "output" / "cat_attention_rollout_0.900_max.png") as overlay:
        pixels, image = np.asarray(overlay, dtype=int), np.asarray(Image.open(CAT), dtype=int)
    assert np.abs(pixels[:, :90] - 0.35 * image[:, :90]).max() <= 1
    assert np.abs(pixels[25:275, 100:350] - 0.35 * image[25:275, 100:350]).mean() > 30


def test_looks(tmp_path):
    """Size, strength and colours."""
    common = (*BUNDLED, "--image_path", CAT)
    name = "cat_attention_rollout_0.900_max.png"
    explain(
        *common,
        "--size",
        "model",
        "--colormap",
        "jet",
        cwd=tmp_path,
    )
    explain(*common, "--alpha", "0", "--output_dir", "plain", cwd=tmp_path)
    with Image.open(tmp_path / "output" / name) as overlay:
        assert overlay.size == (224, 224)
    with Image.open(tmp_path / "plain" / name) as overlay:
        assert overlay.tobytes() == Image.open(CAT).tobytes()


def test_start_block_and_fusion_change_the_mask(tmp_path):
    masks = []
    for extra in ([], ["--start_block", "2"], ["--head_fusion", "min"], ["--discard_ratio", "0"]):
        report = json.loads(
            explain(*BUNDLED, "--image_path", CAT, "--save_mask", "--json", *extra, cwd=tmp_path)
        )
        masks.append(np.load(tmp_path / report["files"]["mask"]))
    assert all(np.abs(masks[0] - other).max() > 0.01 for other in masks[1:])


def test_as_published(bundled, tmp_path):
    """Arithmetic, transform and colours of the older script, at the size it drew."""
    from vit_grad_rollout import VITAttentionGradRollout
    from vitexplain.drawing.overlay import draw_published as published_overlay
    from vitexplain.images.reading import open_image

    explain(
        *BUNDLED,
        "--image_path",
        CAT,
        "--as_published",
        "--category_index",
        282,
        "--head_fusion",
        "max",
        cwd=tmp_path,
    )
    resized = open_image(CAT).resize((224, 224))
    tensor = (torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    mask = VITAttentionGradRollout(bundled.model, as_published=True)(tensor, 282)
    expected = published_overlay(np.asarray(resized), mask).astype(int)
    with Image.open(tmp_path / "output" / "cat_grad_rollout_282_0.900_max.png") as drawn:
        assert np.abs(np.asarray(drawn, dtype=int) - expected).mean() < 0.5


def test_checkpoint_and_class_names(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3)
    save_file(model.state_dict(), tmp_path / "tuned.safetensors")
    (tmp_path / "names.json").write_text('["ant", "bee", "<b>cow</b>"]')
    report = json.loads(
        explain(
            "--model",
            "test_vit",
            "--checkpoint",
            "tuned.safetensors",
            "--class_names",
            "names.json",
            "--category",
            "bee",
            "--image_path",
            CAT,
            "--json",
            "--device",
            "cpu",
            cwd=tmp_path,
        )
    )
    assert report["model"]["input_size"] == [160, 160]
    assert report["model"]["patch_grid"] == [10, 10]
    assert {category["name"] for category in report["top"]} == {"ant", "bee", "<b>cow</b>"}
    assert report["method"]["category"]["index"] == 1


def test_model_without_categories_has_rollout_only(tmp_path):
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), tmp_path / "features.safetensors")
    common = ("--model", "test_vit", "--checkpoint", "features.safetensors", "--image_path", CAT)
    assert "Most likely" not in explain(*common, cwd=tmp_path)
    for category in ("top", "0", "bee"):
        done = run(*common, "--category", category, cwd=tmp_path)
        assert done.returncode == 2
        assert "has no categories" in done.stderr or "no category is called" in done.stderr


def test_empty_map_is_said_to_be_empty(tmp_path):
    """Even attention and a high discard ratio: the class token's row keeps no patch."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(0.01)
            block.attn.qkv.bias.zero_()
        model.cls_token.mul_(0)
    save_file(model.state_dict(), tmp_path / "even.safetensors")
    done = run(
        "--model",
        "test_vit",
        "--checkpoint",
        "even.safetensors",
        "--image_path",
        CAT,
        "--discard_ratio",
        "0.9999",
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert done.stderr == (
        "vit_explain: no patch reaches what the classifier pools, the map is empty: "
        "lower --discard_ratio\n"
    )


@pytest.mark.slow
def test_show_without_display_is_a_notice(tmp_path):
    environment = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    done = subprocess.run(
        [*COMMAND, *BUNDLED, "--image_path", str(CAT), "--show"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if sys.platform == "linux":
        assert done.returncode == 0
        assert "no window" in done.stderr
        assert done.stderr.count("\n") == 1


def test_help_needs_no_torch():
    code = "import sys, vit_explain\ntry: vit_explain.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'timm', 'cv2', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_missing_package_says_what_to_install(tmp_path):
    missing = "raise ModuleNotFoundError(\"No module named 'timm'\", name='timm')"
    (tmp_path / "timm.py").write_text(missing)
    done = run("--image_path", CAT, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        "vit_explain: No module named 'timm': "
        "install what is needed with pip install -r requirements.txt\n"
    )


@pytest.mark.slow
def test_no_network_is_used(tmp_path):
    """With sockets forbidden, the bundled model and a checkpoint still work."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('network used')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
    )
    out = explain(*BUNDLED, "--image_path", CAT, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert "Wrote" in out


def save_unusual(kind, path):
    image = Image.open(CAT)
    if kind == "cmyk":
        image.convert("CMYK").save(path.with_suffix(".jpg"))
    elif kind == "16-bit":
        Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257).save(path)
    elif kind == "palette":
        image.convert("P").save(path)
    elif kind == "transparent":
        image.putalpha(128)
        image.save(path)
    elif kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        image.save(path.with_suffix(".jpg"), exif=exif)
    elif kind == "animated":
        image.save(path.with_suffix(".gif"), save_all=True, append_images=[image.rotate(90)])
    elif kind == "1x1":
        image.resize((1, 1)).save(path)
    elif kind == "1x3000":
        image.resize((1, 3000)).save(path)
    elif kind == "12000x9000":
        image.resize((12000, 9000)).save(path.with_suffix(".jpg"))
    return next(path.parent.glob("image.*"))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("cmyk", (451, 300)),
        ("16-bit", (451, 300)),
        ("palette", (451, 300)),
        ("transparent", (451, 300)),
        ("exif", (300, 451)),
        ("animated", (451, 300)),
        ("1x1", (1, 1)),
        ("1x3000", (1, 3000)),
        pytest.param("12000x9000", (12000, 9000), marks=pytest.mark.slow),
    ],
)
def test_unusual_images(tmp_path, monkeypatch, kind, size):
    path = save_unusual(kind, tmp_path / "image.png")
    done = run(*BUNDLED, "--image_path", path, "--category", "top", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(tmp_path / json.loads(done.stdout)["files"]["overlay"]) as overlay:
        assert overlay.size == size


@pytest.mark.parametrize(
    "name",
    [
        "with space.jpg",
        pytest.param("ünïcödé 猫.jpg", marks=pytest.mark.slow),
        "a;b$(c)'d.jpg",
        "-dash.jpg",
    ],
)
def test_odd_file_names(tmp_path, name):
    (tmp_path / name).write_bytes(CAT.read_bytes())
    options = (*BUNDLED, f"--image_path={name}")
    if name.isascii():
        done = run_here(*options, cwd=tmp_path, encoding="ascii")
    else:  # as the system hands it over
        done = run_apart(*options, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "Wrote" in done.stdout
    assert f"{name[:-4]}_input.png" in files_in(tmp_path / "output")


WRONG = {
    "missing image": (["--image_path", "nowhere.png"], "no image at nowhere.png"),
    "text called .png": (["--image_path", "text.png"], "text.png is not an image"),
    "truncated JPEG": (["--image_path", "cut.jpg"], "cut.jpg can't be read, it may be damaged"),
    "empty folder": (["--image_path", "empty"], "no image found in empty (--recursive"),
    "empty glob": (["--image_path", "*.tiff"], "no image found in *.tiff"),
    "missing list": (["--image_path", "@list.txt"], "the list list.txt can't be read"),
    "output among images": (
        ["--image_path", ".", "--output_dir", "."],
        "name another --output_dir",
    ),
    "no batch": (["--batch_size", "0"], "'0' is not a whole number from 1 on"),
    "sweep of nothing": (["--sweep", "colour=red"], "--sweep takes PARAMETER=VALUE,VALUE with one"),
    "sweep value": (["--sweep", "discard_ratio=0,1"], "--sweep discard_ratio must be at least 0"),
    "sweep block": (["--sweep", "start_block=0,4"], "start_block must be from 0 to 3, not 4"),
    "sweep of many": (
        ["--sweep", "head_fusion=max", "--report"],
        "--sweep can't be combined with --report",
    ),
    "too many categories": (["--top_k", "1001"], "the model has 1000 categories, not 1001"),
    "bomb": (["--image_path", "bomb.png"], "too large: more than 178 million pixels"),
    "index too large": (["--category_index", "1000"], "from 0 to 999"),
    "negative index": (["--category_index", "-1"], "from 0 to 999"),
    "index is no number": (["--category_index", "cat"], "invalid int value: 'cat'"),
    "unknown name": (["--category", "tigercat"], "nearest: 282 tiger cat"),
    "ambiguous name": (["--category", "crane"], "134 crane; 517 crane"),
    "both categories": (["--category", "tabby", "--category_index", "1"], "not allowed with"),
    "discard 1": (["--discard_ratio", "1"], "discard_ratio must be at least 0 and below 1"),
    "discard nan": (["--discard_ratio", "nan"], "discard_ratio"),
    "discard text": (["--discard_ratio", "much"], "invalid float value: 'much'"),
    "fusion": (["--head_fusion", "median"], "invalid choice: 'median'"),
    "start block": (["--start_block", "4"], "start_block must be from 0 to 3"),
    "alpha": (["--alpha", "2"], "alpha must be from 0 to 1"),
    "colormap": (["--colormap", "rainbows"], "colormap must be one of autumn"),
    "size": (["--size", "huge"], "invalid choice: 'huge'"),
    "size 0": (["--size", "0"], "a number of pixels from 1 to 65500"),
    "negative size": (["--size", "-3"], "a number of pixels from 1 to 65500"),
    "size too large": (["--size", "9" * 5000], "a number of pixels from 1 to 65500"),
    "format": (["--format", "gif"], "invalid choice: 'gif'"),
    "device": (["--device", "tpu"], "device must be auto, cpu, cuda, cuda:N or mps"),
    "unknown option": (["--head_fusions", "max"], "unrecognized arguments: --head_fusions max"),
    "unknown model": (["--model", "deit_tinny"], "no model called deit_tinny"),
    "CNN": (["--model", "resnet18"], "resnet18 (ResNet) can't be explained"),
    "no network": (["--model", "vit_base_patch16_224"], "--model bundled"),
    "wrong checkpoint": (["--checkpoint", "text.png"], "checkpoint text.png can't be read"),
    "missing checkpoint": (["--checkpoint", "none.pth"], "no checkpoint at none.pth"),
    "foreign checkpoint": (["--checkpoint", "tiny.safetensors"], "does not fit"),
    "class names": (["--class_names", "text.png"], "holds 1 names, the model has 1000 classes"),
    "output is a file": (["--output_dir", "text.png"], "text.png: File exists"),
    "output below a file": (["--output_dir", "text.png/a"], "Not a directory"),
    "published crop": (["--as_published", "--crop"], "leave out --crop"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_requests(tmp_path, wrong):
    """One clear line, exit code 2, nothing written."""
    (tmp_path / "text.png").write_text("no image\n")
    (tmp_path / "empty").mkdir()
    data = CAT.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    if wrong == "bomb":
        Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")
    if wrong == "foreign checkpoint":
        save_file({"head.weight": torch.zeros(1000, 7)}, tmp_path / "tiny.safetensors")
    before = files_in(tmp_path)
    arguments, message = WRONG[wrong]
    defaults = ["--image_path", str(CAT), "--model", "bundled", "--device", "cpu"]
    defaults += ["--output_dir", "out"]
    for option in arguments[::2]:
        if option in defaults:
            del defaults[defaults.index(option) : defaults.index(option) + 2]
    done = run(*defaults, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("vit_explain: ")
    assert message in done.stderr
    assert [name for name in files_in(tmp_path) if name != "out"] == before
    assert not (tmp_path / "out").exists() or not files_in(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_interrupted_half_way(tmp_path):
    """Ctrl-C while the image is being read: one line, nothing half written."""
    os.mkfifo(tmp_path / "slow.jpg")
    process = subprocess.Popen(
        [*COMMAND, *BUNDLED, "--image_path", "slow.jpg"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background has it ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with (tmp_path / "slow.jpg").open("wb"):  # returns when the command opens it too
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert (out, err) == ("", "vit_explain: interrupted\n")
    assert files_in(tmp_path) == ["slow.jpg"]


@pytest.mark.slow
def test_batch_script(tmp_path):
    """The script goes on after a broken image, and says so."""
    images = tmp_path / "my images"
    images.mkdir()
    (images / "a cat.JPG").write_bytes(CAT.read_bytes())
    (images / "broken.png").write_text("no image")
    (images / "notes.txt").write_text("not meant")
    script = ROOT / "examples" / "explain_folder.sh"
    done = subprocess.run(
        [script, images, tmp_path / "maps", "--model", "bundled"],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "broken.png is not an image" in done.stderr
    assert "a cat.JPG_attention_rollout_0.900_max.png" in files_in(tmp_path / "maps")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png"):
        Image.open(CAT).resize((40, 30)).save(tmp_path / "in" / name)
    return tmp_path


def test_folder(folder):
    command = [*BUNDLED, "--image_path", "in", "--recursive"]
    out = explain(*command, cwd=folder)
    assert "2 images: 2 explained\nWrote output/results.jsonl" in out
    assert "attention rollout, the same for every category (heads fused by max" in out
    names = {str(path.relative_to(folder / "output")) for path in folder.rglob("output/**/*.png")}
    ending = "a.png_attention_rollout_0.900_max.png"
    assert names == {ending, f"sub/{ending}"}
    assert "2 images: 0 explained, 2 before" in explain(*command, cwd=folder)
    (folder / "in" / "b.png").write_text("no image")
    done = run(*command, "--json", cwd=folder)
    assert done.returncode == 3
    assert done.stderr.endswith("b.png is not an image, or of a format Pillow can't read\n")
    report = json.loads(done.stdout)
    assert (report["pictures"], report["explained_before"], report["failed"]) == (3, 2, 1)
    assert report["files"]["errors"] == "output/errors.csv"


def test_sweep(tmp_path):
    common = [*BUNDLED, "--image_path", CAT, "--category", "top", "--sweep"]
    out = explain(*common, "discard_ratio=0,0.9", cwd=tmp_path)
    names = ["cat_sweep_discard_ratio.gif", "cat_sweep_discard_ratio.png"]
    assert files_in(tmp_path / "output") == names
    assert "Drew 2 maps" in out
    with Image.open(tmp_path / "output" / names[0]) as animation:
        assert animation.n_frames == 2
    explain(*common, "head_fusion=mean,max", "start_block=0,1", cwd=tmp_path)
    assert "cat_sweep_head_fusion_start_block.png" in files_in(tmp_path / "output")


def test_report_and_contact_sheet(folder):
    command = [*BUNDLED, "--image_path", "in", "--recursive", "--report", "--contact_sheet", "pdf"]
    out = explain(*command, cwd=folder)
    for name in ("report.html", "contact_sheet.pdf"):
        assert f"Wrote output/{name}" in out
    assert (folder / "output" / "contact_sheet.pdf").read_bytes().startswith(b"%PDF")
    page = (folder / "output" / "report.html").read_text(encoding="utf-8")
    assert page.count('"name":"sub/a.png"') == page.count('"name":"a.png"') == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_progress_is_for_terminals(folder):
    import pty
    import termios

    def told(*options):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        subprocess.run(
            [*COMMAND, *BUNDLED, "--image_path", "in/*.png", "in/none.png", *options],
            cwd=folder,
            stderr=theirs,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        os.close(theirs)
        return os.read(ours, 100_000).decode()

    seen = told()
    assert re.search(r"2/2 .*image.*failed=1", seen)
    assert "vit_explain: no image at in/none.png: no such file" in seen
    assert told("--quiet", "--alpha", "0.3").count("\n") == 2  # that it starts afresh, what failed
