"""Predictions after each block, against the model cut short by hand."""

import numpy as np
import pytest
import timm
import torch

from helpers import ROOT, make_vit
from vitexplain import explain
from vitexplain.errors import RequestError
from vitexplain.explainer import Block, Category, answer_stays
from vitexplain.lens import predictions_by_block

LAYOUTS = {
    "class token": {},
    "average": {"class_token": False, "global_pool": "avg", "fc_norm": True},
    "registers": {"reg_tokens": 4},
    "attention pool": {"class_token": False, "global_pool": "map"},
}


@pytest.fixture(params=LAYOUTS)
def model(request):
    return make_vit(**LAYOUTS[request.param])


@pytest.fixture
def image():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def cut_short(model, image, blocks):
    """The tokens after some of the blocks, by the model's own parts."""
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))
    for block in model.blocks[:blocks]:
        tokens = block(tokens)
    return tokens


@torch.no_grad()
def test_each_block_is_the_model_without_the_later_ones(model, image):
    found = predictions_by_block(model, image)
    assert [each.block for each in found] == [0, 1, 2]
    for each in found:
        tokens = model.norm(cut_short(model, image, each.block + 1))
        shares = model.forward_head(tokens).softmax(dim=1)[0]
        expected = shares.topk(3)
        assert [index for index, _ in each.top] == expected.indices.tolist()
        assert [share for _, share in each.top] == pytest.approx(expected.values.tolist(), abs=1e-5)
    whole = model(image).softmax(dim=1)[0]
    assert found[-1].top[0][1] == pytest.approx(float(whole.max()), abs=1e-5)


@torch.no_grad()
def test_a_patchs_vote_is_the_heads_answer_to_it_alone(model, image):
    (*_, last) = predictions_by_block(model, image)
    tokens = cut_short(model, image, 3)
    for patch in (0, 7, 15):
        token = tokens[:, model.num_prefix_tokens + patch]
        everywhere = token[:, None].expand(-1, tokens.shape[1], -1)
        shares = model.forward_head(model.norm(everywhere)).softmax(dim=1)[0]
        assert last.votes.flat[patch] == int(shares.argmax())
        assert last.shares.flat[patch] == pytest.approx(float(shares.max()), abs=1e-5)


@torch.no_grad()
def test_swin_answers_from_its_last_stage_on():
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, num_classes=5).eval()
    image = torch.randn(1, 3, 112, 112)
    found = predictions_by_block(model, image)
    assert [each.block for each in found] == [10, 11]
    assert found[-1].votes.shape == (4, 4)
    shares = model(image).softmax(dim=1)[0].topk(3)
    assert [index for index, _ in found[-1].top] == shares.indices.tolist()
    seen = []
    model.layers[-1].blocks[0].register_forward_hook(lambda _m, _i, tokens: seen.append(tokens))
    model(image)
    expected = model.forward_head(model.norm(seen[0])).softmax(dim=1)[0].max()
    assert found[0].top[0][1] == pytest.approx(float(expected), abs=1e-5)


def answers(*categories):
    none = np.zeros((1, 1), int)
    return [
        Block(block, (Category(category, "", 0.5),), none, none, {})
        for block, category in enumerate(categories)
    ]


@pytest.mark.parametrize(
    ("categories", "block"), [((3, 3, 3), 0), ((3, 1, 3), 2), ((1, 3, 3), 1), ((3,), 0)]
)
def test_the_block_from_which_the_answer_stays(categories, block):
    assert answer_stays(answers(*categories)) == block


def test_the_call_has_the_blocks_with_names():
    found = explain(ROOT / "examples" / "panda.jpg", "top", model="bundled")
    assert len(found.blocks) == 4
    for each, expected in zip(found.blocks[-1].top, found.top, strict=False):
        assert (each.index, each.name) == (expected.index, expected.name)
        assert each.probability == pytest.approx(expected.probability, abs=1e-6)
    assert found.blocks[-1].names[int(found.blocks[-1].votes[7, 7])] == "giant panda"
    report = found.blocks[-1].as_json()
    assert sum(vote["patches"] for vote in report["votes"]) == 14 * 14
    assert report["votes"][0]["name"] == "giant panda"


def test_the_model_is_left_as_it_was(model, image):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(image)
        predictions_by_block(model.train(), image)
        assert model.training
        torch.testing.assert_close(model.eval()(image), expected, rtol=0, atol=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_categories_no_block_predicts(image):
    with pytest.raises(RequestError, match="no block predicts one"):
        predictions_by_block(make_vit(num_classes=0), image)
