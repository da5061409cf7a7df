"""Folders explained by other tools, in the loops that their READMEs and examples show.

`python -m benchmarks.peer_folders NAME FOLDER OUTPUT WEIGHTS` loads the model once, writes an
overlay for each image, and prints how many there were, as JSON. Reading, resizing and drawing are
what each tool's own example does; benchmarks.peers times them against the command.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from benchmarks.older_script import OlderGradRollout, OlderRollout, overlay

MODEL = "deit_tiny_patch16_224"
SIDE = 224
HALF = (0.5, 0.5, 0.5)
CATEGORY = 243  # which one does not change the work

TRANSFORM = Compose([Resize((SIDE, SIDE)), ToTensor(), Normalize(HALF, HALF)])


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    paths = sorted(options.folder.iterdir())
    options.output.mkdir()
    LOOPS[options.name](network(options.weights), paths, options.output)
    print(json.dumps({"explained": len(list(options.output.iterdir()))}))
    return 0


def network(weights: str | Path | None) -> nn.Module:
    """The model as timm makes it, in evaluation mode; without a file of weights they are random."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL)
    if weights:
        state = load_file(weights)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval()


def older_rollout(model: nn.Module, paths: Sequence[Path], output: Path) -> None:
    explain = OlderRollout(model, "max")
    _older(explain, paths, output)


def older_grad_rollout(model: nn.Module, paths: Sequence[Path], output: Path) -> None:
    explain = OlderGradRollout(model)
    _older(lambda image: explain(image, CATEGORY), paths, output)


def _older(explain: Callable[[Tensor], np.ndarray], paths: Sequence[Path], output: Path) -> None:
    for path in paths:
        image = Image.open(path).convert("RGB").resize((SIDE, SIDE))
        mask = explain(TRANSFORM(image)[None])
        drawn = overlay(np.array(image)[:, :, ::-1], mask)
        cv2.imwrite(str(output / f"{path.stem}.png"), drawn)


def grad_cam(model: nn.Module, paths: Sequence[Path], output: Path) -> None:
    """pytorch-grad-cam's example for ViTs, of the most likely category."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import preprocess_image, show_cam_on_image

    layers = [model.blocks[-1].norm1]
    with GradCAM(model, layers, reshape_transform=patches_as_image) as cam:
        for path in paths:
            image = cv2.resize(cv2.imread(str(path))[:, :, ::-1], (SIDE, SIDE))
            image = np.float32(image) / 255
            mask = cam(preprocess_image(image, mean=HALF, std=HALF), None)[0]
            cv2.imwrite(str(output / f"{path.stem}.png"), show_cam_on_image(image, mask))


def torchcam(model: nn.Module, paths: Sequence[Path], output: Path) -> None:
    """torchcam's README, of the most likely category."""
    from torchcam.methods import GradCAM
    from torchcam.utils import overlay_mask
    from torchvision.transforms.functional import to_pil_image

    layer = model.blocks[-1].norm1
    with GradCAM(model, layer, reshape_transform=patches_as_image) as cam:
        for path in paths:
            image = Image.open(path).convert("RGB")
            logits = model(TRANSFORM(image)[None])
            (mask,) = cam(logits.squeeze(0).argmax().item(), logits)
            drawn = overlay_mask(image, to_pil_image(mask.squeeze(0), mode="F"), alpha=0.5)
            drawn.save(output / f"{path.stem}.png")


def patches_as_image(tokens: Tensor) -> Tensor:
    """(B, 1 + h*w, C) -> (B, C, h, w), for a square grid: what both ask to be told of a ViT."""
    side = int((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)


LOOPS = {
    "older_rollout": older_rollout,
    "older_grad_rollout": older_grad_rollout,
    "grad_cam": grad_cam,
    "torchcam": torchcam,
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("name", choices=LOOPS)
    add("folder", type=Path, help="of images alone")
    add("output", type=Path, help="a new folder for the overlays")
    add("weights", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
