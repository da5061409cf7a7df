import pytest
import torch

from helpers import make_vit, run_here
from vitexplain.errors import RequestError
from vitexplain.precision import compute_in, precision_of

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


def test_what_is_fast_and_right_on_each_device():
    assert precision_of("auto", CUDA) == "tf32"
    assert precision_of("auto", CPU) == precision_of("auto", MPS) == "fp32"
    assert precision_of("fp16", MPS) == precision_of("fp16", CUDA) == "fp16"
    with pytest.raises(RequestError, match="on cpu use --precision fp32"):
        precision_of("tf32", CPU)
    with pytest.raises(RequestError, match="fp16 is for GPUs"):
        precision_of("fp16", CPU)
    with pytest.raises(RequestError, match="must be one of auto, fp32, tf32, fp16, not 'bf16'"):
        precision_of("bf16", CUDA)


@pytest.fixture
def as_before():
    told = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [each.fp32_precision for each in told]
    yield
    for each, value in zip(told, before, strict=True):
        each.fp32_precision = value


@pytest.mark.parametrize(("precision", "expected"), [("tf32", "tf32"), ("fp32", "ieee")])
def test_products_and_convolutions_are_told(as_before, precision, expected):
    model = make_vit()
    compute_in(precision, model, CUDA)
    assert torch.backends.cuda.matmul.fp32_precision == expected
    assert torch.backends.cudnn.conv.fp32_precision == expected
    assert next(model.parameters()).dtype == torch.float32
    compute_in("fp16", model, MPS)
    assert next(model.parameters()).dtype == torch.float16


def test_a_precision_that_is_not_there_is_refused_in_one_line(tmp_path, examples):
    done = run_here("--image_path", examples / "both.png", "--model", "bundled", "--precision",
                    "tf32", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "vit_explain: tf32 is a precision of CUDA: on cpu use --precision fp32\n"
    )


def test_models_in_bfloat16_are_warned_of(bundled, examples):
    import copy

    from vitexplain import explain

    model = copy.deepcopy(bundled.model).bfloat16()
    with pytest.warns(UserWarning, match="the model is in bfloat16, whose maps differ"):
        explain(examples / "both.png", model=model)
