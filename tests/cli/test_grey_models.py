"""A medical case by the command: 12 bits in a 16-bit file, a model of one channel, own labels."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image, TiffImagePlugin

from vit_explain import main
from vit_grad_rollout import VITAttentionGradRollout

LABELS = ["effusion", "nodule", "mass", "no finding"]
MEAN, STD = 0.4, 0.2
MAX_SAMPLE_VALUE = 281


@pytest.fixture
def case(tmp_path):
    """A model's weights as a training script leaves them, and an image of its input's size."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", in_chans=1, num_classes=4, img_size=64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    torch.save({"state_dict": {f"net.{k}": v for k, v in model.state_dict().items()}},
               tmp_path / "chest.pth")  # fmt: skip
    (tmp_path / "names.txt").write_text("\n".join(LABELS))
    rng = np.random.default_rng(3)
    pixels = np.kron(rng.integers(0, 4096, (8, 8)), np.ones((8, 8))).astype(np.uint16)
    return tmp_path, model, pixels


def explained(folder, image, *more):
    arguments = ["--image_path", str(image), "--model", "test_vit", "--img_size", "64",
                 "--checkpoint", str(folder / "chest.pth"), "--class_names",
                 str(folder / "names.txt"), "--labels", "independent", "--category", "nodule",
                 "--mean", str(MEAN), "--std", str(STD), "--save_mask", "--discard_ratio", "0.5",
                 "--output_dir", str(folder / "out"), "--json", *more]  # fmt: skip
    assert main(arguments) == 0
    (mask,) = (folder / "out").glob("*.npy")
    return np.load(mask)


def expected(model, grey):
    """From values 0 to 1 (64, 64): the map of "nodule", and each label's sigmoid."""
    tensor = torch.from_numpy((grey - MEAN) / STD).float()[None, None]
    found = VITAttentionGradRollout(model, head_fusion="mean", discard_ratio=0.5).explain(
        tensor, [LABELS.index("nodule")]
    )
    return found.masks[0], found.logits[0].sigmoid()


def test_what_the_file_says_of_its_white_is_followed(case, capsys):
    folder, model, pixels = case
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[MAX_SAMPLE_VALUE] = 4095
    Image.fromarray(pixels).save(folder / "x.tif", tiffinfo=tags)
    mask = explained(folder, folder / "x.tif")
    out, err = capsys.readouterr()
    assert "dark" not in err
    # the command opens images in 8 bits
    wanted, shares = expected(model, np.round(pixels / 4095 * 255) / 255)
    np.testing.assert_allclose(mask, wanted, atol=1e-4)
    report = json.loads(out)
    assert {each["name"]: each["probability"] for each in report["top"]} == pytest.approx(
        dict(zip(LABELS, shares.tolist(), strict=True)), abs=1e-4
    )
    assert report["method"]["category"]["name"] == "nodule"


def test_a_file_that_says_nothing_is_told_of_and_can_be_stretched(case, capsys):
    folder, model, pixels = case
    Image.fromarray(pixels).save(folder / "x.png")
    explained(folder, folder / "x.png")
    assert f"its brightest value is {pixels.max()} of 65535" in capsys.readouterr().err
    mask = explained(folder, folder / "x.png", "--stretch")
    assert "dark" not in capsys.readouterr().err
    low, high = np.percentile(pixels, (0.1, 99.9))
    wanted, _ = expected(model, np.round((pixels - low) / (high - low) * 255).clip(0, 255) / 255)
    np.testing.assert_allclose(mask, wanted, atol=1e-4)
