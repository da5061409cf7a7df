import pytest
import timm
import torch
from torch import nn

from vitexplain.checkpoints.making import with_weights

SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
SWIN = {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2), "num_classes": 5}
FAMILIES = {
    "deit_tiny_distilled_patch16_224": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "vit_small_patch16_dinov3": SMALL | {"num_heads": 2},
    "vit_relpos_small_patch16_224": SMALL,
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "cait_xxs24_224": SMALL,
    "resnet18": {"num_classes": 5},
}


def everything(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


@pytest.mark.parametrize("name", FAMILIES)
def test_models_are_as_if_made_with_random_weights_first(name):
    expected = timm.create_model(name, **FAMILIES[name])
    weights = expected.state_dict()
    calls = []

    def make() -> nn.Module:
        calls.append(name)
        model = timm.create_model(name, **FAMILIES[name])
        model.load_state_dict(weights)
        return model

    before = torch.get_rng_state()
    made = with_weights(make, lambda model: model)
    assert torch.equal(torch.get_rng_state(), before)  # no random number was drawn
    assert len(calls) == 1
    found = everything(made)
    for key, value in everything(expected).items():
        assert torch.equal(found[key], value), key


def half_loaded() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3))
    model[0].load_state_dict({"weight": torch.ones(64, 64), "bias": torch.zeros(64)})
    return model


def test_what_no_weights_are_put_into_is_random_as_ever():
    torch.manual_seed(0)
    expected = half_loaded()
    torch.manual_seed(0)
    made = with_weights(half_loaded, lambda model: model)
    assert torch.equal(made[1].weight, expected[1].weight)
    assert 0 < made[1].weight.std().item() < 1


def test_a_part_that_is_not_overwritten_is_noticed():
    def make() -> nn.Module:
        model = nn.Linear(8, 8)
        with torch.no_grad():
            model.weight[:4].copy_(torch.ones(4, 8))
            model.bias.zero_()
        return model

    made = with_weights(make, lambda model: model)
    assert torch.equal(made.weight[:4], torch.ones(4, 8))
    assert 0 < made.weight[4:].std().item() < 1


def test_parts_that_are_filled_one_by_one_are_overwritten_together():
    calls = []

    def make() -> nn.Module:
        calls.append(0)
        model = nn.Linear(8, 8)
        with torch.no_grad():
            for start in (0, 4):
                nn.init.normal_(model.weight[start : start + 4])
        model.load_state_dict({"weight": torch.eye(8), "bias": torch.ones(8)})
        return model

    made = with_weights(make, lambda model: model)
    assert len(calls) == 1
    assert torch.equal(made.weight, torch.eye(8))
