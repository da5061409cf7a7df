"""The last grid of features: where it is in models of all kinds, and which place is which patch."""

from contextlib import ExitStack

import pytest
import timm
import torch
from timm.models import MlpMixer
from torch import nn

from vitexplain.attention.last_grid import FEATURES, LastGrid, last_grid, watch
from vitexplain.attention.shadow import shadow_of

SMALL = {"depth": 2, "embed_dim": 48}
# models whose tokens mix little with random weights, so that a patch shows most at its own place
KINDS = [
    ("test_resnet", {}, LastGrid(FEATURES, (5, 5), False)),
    ("test_mambaout", {}, LastGrid(FEATURES, (5, 5), True)),
    ("gmlp_ti16_224", {}, LastGrid(FEATURES, (14, 14), True)),
    ("hiera_tiny_224", {"embed_dim": 24}, LastGrid(FEATURES, (7, 7), True)),
    ("cait_xxs24_224", SMALL, LastGrid("blocks_token_only.1.norm1", (14, 14), True, 1)),
    ("pit_ti_224", {}, LastGrid("transformers.2.blocks.3.norm1", (7, 7), True, 1)),
    ("test_vit", {"global_pool": "max"}, LastGrid("blocks.5.norm1", (10, 10), True, 1)),
]


@pytest.mark.parametrize(("name", "changes", "expected"), KINDS, ids=[kind[0] for kind in KINDS])
def test_a_patch_changes_the_features_of_its_own_place_most(name, changes, expected):
    torch.manual_seed(0)
    model = timm.create_model(name, **changes).eval()
    size = model.pretrained_cfg["input_size"]
    grid = last_grid(model, *size[1:])
    assert grid == expected
    image = 0.1 * torch.randn(1, *size)
    rows, columns = grid.shape
    height, width = size[1] // rows, size[2] // columns
    before = features(model, grid, image)
    for patch in {0, columns - 1, rows * columns // 2 + 1, rows * columns - 1}:
        row, column = divmod(patch, columns)
        changed = image.clone()
        part = changed.unfold(2, height, height).unfold(3, width, width)[0, :, row, column]
        part += 0.3 * torch.randn(3, height, width)
        size = (features(model, grid, changed) - before).norm(dim=2)[0]
        assert float(size[patch]) > 0.5 * float(size.max())  # neighbours see it, too


@torch.no_grad()
def features(model, grid, image):
    """(1, h*w, C) at the grid's place."""
    seen, shadow = [], shadow_of(model)
    with ExitStack() as undo:
        watch(shadow, grid.place, seen.append, undo)
        shadow(image)
    return grid.patches(seen[-1])


def test_an_oblong_image_has_an_oblong_grid():
    model = MlpMixer(img_size=(96, 160), patch_size=32, num_blocks=1, embed_dim=48).eval()
    assert last_grid(model, 96, 160).shape == (3, 5)


def test_a_head_of_zeros_reads_no_place_and_has_the_usual_grid():
    model = timm.create_model("test_resnet").eval()
    nn.init.zeros_(model.fc.weight)
    assert last_grid(model, 96, 96) == LastGrid(FEATURES, (3, 3), False)


def test_without_a_grid_there_is_none():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images):
            return self.head(images.mean(dim=(2, 3)))

    assert last_grid(Plain(), 32, 32) is None
