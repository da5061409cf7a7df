"""What single tokens look at: each map by another way, and pixels by their patches."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

from helpers import ROOT, make_vit
from vit_explain import main
from vit_rollout import VITAttentionRollout
from vitexplain import query
from vitexplain.attention.tokens import UnsupportedModel, prefix_names, token_layout
from vitexplain.errors import RequestError
from vitexplain.images.region import Region
from vitexplain.queries import token_maps, token_named

BOTH = str(ROOT / "examples" / "both.png")


@pytest.fixture
def image():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def by_hand(model, image):
    """Each block's attention (H, N, N), and the final tokens (N, C), computed in the open."""
    x = model._pos_embed(model.patch_embed(image))
    matrices = []
    for block in model.blocks:
        attn, normed = block.attn, block.norm1(x)
        query, key, value = (
            attn.qkv(normed).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        matrices.append(weights[0])
        x = x + attn.proj((weights @ value).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    norm = model.fc_norm if isinstance(model.norm, torch.nn.Identity) else model.norm
    return matrices, norm(x)[0]


MODELS = {
    "class token": {},
    "registers": {"reg_tokens": 2},
    "no class token": {"class_token": False, "global_pool": "avg"},
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_maps_are_rows_of_matrices_computed_in_the_open(changes, image):
    model = make_vit(**changes)
    matrices, final = by_hand(model, image)
    prefix = model.num_prefix_tokens
    tokens = [0, prefix + 5, prefix + 15]
    found = token_maps(model, image, tokens, block=1, head=2, discard_ratio=0)
    whole = torch.eye(len(final))
    for matrix in matrices:
        mixed = matrix.mean(dim=0) + torch.eye(len(final))
        whole = mixed / mixed.sum(dim=1, keepdim=True) @ whole
    cosines = F.normalize(final, dim=1) @ F.normalize(final, dim=1).T
    for each in found:
        for name, expected in (
            ("attention", matrices[1][2][each.token]),
            ("rollout", whole[each.token]),
            ("cosine", cosines[each.token]),
        ):
            wanted = expected[prefix:].reshape(4, 4)
            np.testing.assert_allclose(getattr(each, name), wanted, atol=2e-5, err_msg=name)
    assert [each.patch for each in found[1:]] == [(1, 1), (3, 3)]
    assert found[0].patch == ((0, 0) if prefix == 0 else None)


def test_the_class_tokens_row_is_attention_rollout(image):
    """With discarding, too: the same product from the same row."""
    model = make_vit()
    (found,) = token_maps(model, image, [0], discard_ratio=0.7, start_block=1)
    rollout = VITAttentionRollout(model, discard_ratio=0.7, start_block=1).explain(image)
    np.testing.assert_allclose(found.rollout, rollout.scores[0], atol=1e-6)


def test_heads_fused_and_the_last_block(image):
    model = make_vit()
    with torch.no_grad():
        matrices, _ = by_hand(model, image)
    (found,) = token_maps(model, image, [3], head_fusion="max")
    expected = matrices[-1].amax(dim=0)[3, 1:].reshape(4, 4)
    np.testing.assert_allclose(found.attention, expected, atol=1e-6)


def test_the_model_is_as_it_was(image):
    model = make_vit().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    token_maps(model, image, [1])
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_pixel_is_in_its_patch():
    model, region = make_vit(reg_tokens=2), Region(100, 0, 300, 100)
    layout = token_layout(model, 32, 32)
    for name, token, patch in (
        ("100,0", 3, (100, 0, 150, 25)),
        ("299.9,99", 18, (250, 75, 300, 100)),
        ("151, 30", 8, (150, 25, 200, 50)),
    ):
        assert token_named(name, model, layout, region) == (token, Region(*patch))
    assert prefix_names(model, layout) == ("class", "register 1", "register 2")
    assert token_named("register:2", model, layout, region) == (2, None)
    assert token_named("class", model, layout, region) == (0, None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("99,50", "did not see pixel 99,50: its patches are from 100,0 to 300,100"),
        ("300,50", "did not see pixel"),
        ("nan,1", "a pixel is two numbers"),
        ("1", "takes X,Y in pixels, or class, not '1'"),
        ("register:1", "takes X,Y in pixels, or class, not 'register:1'"),
        ("1,2,3", "takes X,Y in pixels"),
    ],
)
def test_no_such_token(name, reason):
    model = make_vit()
    with pytest.raises(RequestError, match=reason):
        token_named(name, model, token_layout(model, 32, 32), Region(100, 0, 300, 100))


def test_what_can_not_be_asked(image):
    model = make_vit()
    for options, reason in (
        ({"block": 3}, "block must be from 0 to 2, not 3"),
        ({"head": 3}, "head must be from 0 to 2, not 3"),
        ({"discard_ratio": 1}, "discard_ratio"),
    ):
        with pytest.raises(RequestError, match=reason):
            token_maps(model, image, [0], **options)
    with pytest.raises(RequestError, match="token must be from 0 to 16, not 17"):
        token_maps(model, image, [17])


@pytest.fixture(scope="module")
def swin():
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, num_classes=5)
    return model.eval(), torch.randn(1, 3, 112, 112)


def test_a_patch_of_swin_attends_to_its_window(swin):
    """In blocks without a shift, windows are the squares of the grid."""
    model, image = swin
    row, column = 11, 25  # of the first grid, 28 x 28
    (found,) = token_maps(model, image, [row * 28 + column])
    shapes = [each.shape for each in found.blocks]
    assert shapes == [(28, 28)] * 2 + [(14, 14)] * 2 + [(7, 7)] * 6 + [(4, 4)] * 2
    for number, halved, window in ((0, 0, 7), (2, 1, 7), (4, 2, 7), (10, 3, 4)):
        seen = found.blocks[number] > 0
        rows, columns = (np.arange(side) // window for side in seen.shape)
        here = (row >> halved) // window, (column >> halved) // window
        np.testing.assert_array_equal(seen, np.outer(rows == here[0], columns == here[1]))
        assert found.blocks[number].sum() == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_the_mean_of_swins_last_tokens_is_attention_rollout(swin):
    model, image = swin
    tokens = [8 * row * 28 + 8 * column for row in range(4) for column in range(4)]
    tokens = [min(token, 28 * 28 - 1) for token in tokens]
    found = token_maps(model, image, tokens, head_fusion="mean", discard_ratio=0)
    expected = VITAttentionRollout(model, discard_ratio=0).explain(image).scores[0]
    mean = np.mean([each.rollout for each in found], axis=0)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    final = F.normalize(model.forward_features(image)[0], dim=2)  # (4, 4, C)
    cosines = torch.einsum("hwc,c->hw", final, final[1, 2])
    np.testing.assert_allclose(found[6].cosine, cosines, atol=1e-5)


def test_a_model_of_parallel_branches_is_refused(image):
    block = timm.models.vision_transformer.ParallelThingsBlock
    model = make_vit(block_fn=block)
    with pytest.raises(UnsupportedModel, match="several branches"):
        token_maps(model, image, [0])


@pytest.mark.slow
def test_a_patch_looks_at_its_own_animal(tmp_path, capsys):
    """On both.png, a dog on the left and a cat on the right."""
    code = main(["--image_path", BOTH, "--model", "bundled", "--query", "200,150", "650,250",
                 "--save_mask", "--output_dir", str(tmp_path), "--json"])  # fmt: skip
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert [each["token"] for each in report["queries"]] == [60, 109]
    maps = np.load(report["files"]["masks"])
    assert {*maps} == {"attention", "rollout", "cosine", *(f"block_{n}" for n in range(4))}
    np.testing.assert_array_equal(maps["attention"], maps["block_3"])
    asked = zip((slice(0, 7), slice(7, 14)), maps["attention"], maps["cosine"], strict=True)
    for side, attention, cosine in asked:
        assert attention[:, side].sum() > 0.6 * attention.sum()
        nearest = np.argsort(-cosine, axis=None)[:30] % 14  # columns
        assert np.isin(nearest, np.r_[side]).sum() >= 28
    with Image.open(report["files"]["sheet"]) as sheet:
        assert sheet.width > 4 * 280
    with Image.open(report["files"]["blocks"]) as strip:
        assert 4 * 180 < strip.width < 4 * 280
    found = query(BOTH, (200, 150), "650,250", model="bundled", discard_ratio=0.9)
    for number, each in enumerate(found):
        np.testing.assert_allclose(each.rollout, maps["rollout"][number], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "5000,3"], "did not see pixel 5000,3"),
        (["--query", "left"], "--query takes X,Y in pixels, or class, not 'left'"),
        (["--query", "1,1", "--category", "top"], "--query can't be combined with --category"),
        (["--query", "1,1", "--head", "99"], "head must be from 0 to 3, not 99"),
        (["--query", "1,1", "--block", "99"], "block must be from 0 to"),
    ],
)
def test_wrong_requests(arguments, message, tmp_path, capsys):
    out = ["--output_dir", str(tmp_path / "out")]
    assert main(["--image_path", BOTH, "--model", "bundled", *arguments, *out]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("out/*.png"))


def test_a_folder_has_sheets_for_each_image(tmp_path, capsys):
    """In the small image, the second pixel is beside it: that one fails, the other is drawn."""
    folder = tmp_path / "in"
    folder.mkdir()
    with Image.open(BOTH) as image:
        image.save(folder / "large.png")
        image.resize((100, 60)).save(folder / "small.png")
    code = main(["--image_path", str(folder), "--model", "bundled", "--query", "class", "650,250",
                 "--output_dir", str(tmp_path / "out"), "--json"])  # fmt: skip
    assert code == 3
    captured = capsys.readouterr()
    assert "small.png: the model did not see pixel 650,250" in captured.err
    report = json.loads(captured.out)
    assert (report["pictures"], report["failed"]) == (2, 1)
    assert [each["image"] for each in report["queries"]] == ["large.png"] * 2
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["large.png_query.png", "large.png_query_blocks.png"]
