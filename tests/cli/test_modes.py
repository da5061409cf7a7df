"""The table of modes: which one is chosen, and that nothing is combined in silence."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT
from vitexplain.cli.modes import MODES, chosen_mode, work_of
from vitexplain.cli.options import parser
from vitexplain.cli.sweep_option import parse_sweep
from vitexplain.errors import RequestError

# how each mode, and each option that a mode excludes, is asked for
ASKED = {
    "--features": ["--features"],
    "--query": ["--query", "1,1"],
    "--explore": ["--explore"],
    "--anatomy": ["--anatomy"],
    "--evaluate": ["--evaluate"],
    "--sweep": ["--sweep", "discard_ratio=0,0.5"],
    "--compare": ["--compare"],
    "--engine ray": ["--engine", "ray"],
    "--truth": ["--truth", "folders"],
    "several images": ["--top_k", "2"],
    "one image": [],
}
GIVEN = {
    "query": ["--query", "1,1"],
    "class_embeddings": ["--class_embeddings", "a.npy"],
    "text": ["--text", "a cat", "a dog"],
    "anatomy": ["--anatomy"],
    "explore": ["--explore"],
    "method": ["--method", "legrad"],
    "evaluate": ["--evaluate"],
    "sweep": ["--sweep", "discard_ratio=0,0.5"],
    "compare": ["--compare"],
    "report": ["--report"],
    "contact_sheet": ["--contact_sheet"],
    "category": ["--category", "top"],
    "top_k": ["--top_k", "2"],
    "against": ["--against", "auto"],
    "other_method": ["--method", "legrad"],
    "several_methods": ["--method", "legrad", "gradcam"],
    "as_published": ["--as_published"],
    "truth": ["--truth", "folders"],
    "similar_to": ["--similar_to", "a.png"],
}


def options_of(*arguments):
    options = vars(parser().parse_args(arguments))
    options["sweep"] = parse_sweep(options["sweep"]) if options["sweep"] else None
    return options


@pytest.mark.parametrize("given", [None, "active"])
def test_threads_of_every_command_wait_without_spinning(monkeypatch, given):
    """Unless the environment says otherwise; torch reads it when it is loaded."""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    work_of(next(mode for mode in MODES if mode.flag == "one image"), print)
    assert os.environ["OMP_WAIT_POLICY"] == (given or "passive")


def test_shares_of_gpus_are_of_the_ray_engine(capsys):
    with pytest.raises(RequestError, match="--gpus_per_worker is for --engine ray"):
        chosen_mode(options_of("--gpus_per_worker", "0.5"), one_image=True)
    options = options_of("--gpus_per_worker", "0.5", "--engine", "ray")
    assert chosen_mode(options, one_image=True).flag == "--engine ray"
    for wrong in ("0", "2", "nan", "half"):
        with pytest.raises(SystemExit):
            options_of("--gpus_per_worker", wrong)
        assert f"'{wrong}' is no share of a GPU, from 0.01 to 1" in capsys.readouterr().err


def test_masks_are_for_evaluate():
    """Whose category of each image they say themselves."""
    for arguments in ([], ["--compare"], ["--features"], ["--image_path", "a.png", "b.png"]):
        with pytest.raises(RequestError, match="--masks is for --evaluate: add that"):
            chosen_mode(options_of("--masks", "m.zip", *arguments), one_image=True)
    given = ["--evaluate", "--masks", "m.zip"]
    assert chosen_mode(options_of(*given), one_image=False).flag == "--evaluate"
    with pytest.raises(RequestError, match="leave out --category and --against"):
        chosen_mode(options_of(*given, "--category_index", "0", "--against", "1"), one_image=True)


def test_category_0_is_one_too():
    options = options_of("--anatomy", "--category_index", "0")
    with pytest.raises(RequestError, match="--anatomy can't be combined with --category"):
        chosen_mode(options, one_image=True)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.flag)
def test_each_mode_is_chosen_by_its_flag(mode):
    assert chosen_mode(options_of(*ASKED[mode.flag]), one_image=True) is mode
    work, as_text = work_of(mode, print) if mode.flag != "--engine ray" else (print, mode.text)
    assert callable(work) and as_text is mode.text


@pytest.mark.parametrize(
    ("mode", "option"),
    [(mode, option) for mode in MODES for option in mode.excludes],
    ids=lambda value: getattr(value, "flag", value),
)
def test_what_excludes_each_other_is_refused(mode, option):
    with pytest.raises(RequestError) as error:
        chosen_mode(options_of(*ASKED[mode.flag], *GIVEN[option]), one_image=True)
    text = str(error.value)
    assert text.startswith(f"{mode.flag} can't be combined with ") and text.count("\n") == 0
    named = GIVEN[option][0] if option != "several_methods" else "several methods"
    assert named in text


@pytest.mark.parametrize("flag", ["--explore", "--anatomy", "--sweep"])
def test_some_modes_are_for_one_image(flag):
    with pytest.raises(RequestError, match=f"{flag} is for one image: name one"):
        chosen_mode(options_of(*ASKED[flag]), one_image=False)


def test_many_images_compared_are_a_folder():
    options = options_of("--compare")
    assert chosen_mode(options, one_image=False).flag == "several images"
    report = options_of("--report")
    assert chosen_mode(report, one_image=True).flag == "several images"


def test_the_classic_method_may_be_named_with_an_anatomy():
    options = options_of("--anatomy", "--method", "rollout")
    assert chosen_mode(options, one_image=True).flag == "--anatomy"


def test_a_wrong_combination_does_not_wait_for_torch():
    code = (
        "import sys; from vitexplain.cli.main import main; "
        "code = main(['--evaluate', '--report']); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 False\n"
    assert done.stderr.count("\n") == 1
