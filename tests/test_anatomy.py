"""The anatomy of an image, against forward passes by hand, loops and the slow product."""

import dataclasses
import json
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import ParallelThingsBlock

import reference
from helpers import LAYOUTS, ROOT, expected_readout, make_vit
from vit_explain import main
from vit_rollout import VITAttentionRollout
from vitexplain.anatomy import BlockAnatomy, Positions, anatomy, sample
from vitexplain.attention.capture import capture_attention
from vitexplain.attention.tokens import UnsupportedModel, blocks_of, token_layout
from vitexplain.attention.windows import windows_of
from vitexplain.drawing.anatomy import MAP, draw_anatomy
from vitexplain.drawing.heatmap import colored
from vitexplain.drawing.panels import WIDTH
from windowed import make

GREY = Image.new("RGB", (32, 32), (128, 128, 128))


def by_hand(model, image):
    """(attention of each block (H, N, N), tokens after each block (N, C)), double precision."""
    with torch.no_grad():
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(image)))
        attentions, outputs = [], []
        for block in model.blocks:
            out, attention = reference.attend(block.attn, block.norm1(tokens))
            tokens = tokens + block.ls1(out)
            tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
            attentions.append(attention[0].double().numpy())
            outputs.append(tokens[0].double().numpy())
    return attentions, outputs


def read_by(read, attention):
    """What rows that are read with weights `read` attend to, in every head: (H, N)."""
    heads, n, _ = attention.shape
    seen = np.zeros((heads, n))
    for h in range(heads):
        for j in range(n):
            seen[h, j] = sum(read[i] * attention[h, i, j] for i in range(n))
    return seen


def cosine(a, b):
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_norms_and_growth(layout, images):
    changes, prefix, words = LAYOUTS[layout]
    model = make_vit(**changes)
    image = images[:1]
    found = anatomy(model, image, "mean", 0.5)
    attentions, outputs = by_hand(model, image)
    read = expected_readout(layout, prefix)
    fused = [reference.fuse(attention, "mean") for attention in attentions]
    assert found.layout.readout == words
    assert len(found.blocks) == len(found.growth) == 3
    assert len(found.prefix_names) == prefix
    for number, (block, attention, tokens) in enumerate(
        zip(found.blocks, attentions, outputs, strict=True)
    ):
        seen = read_by(read, attention)[:, prefix:].reshape(3, 4, 4)
        np.testing.assert_allclose(block.attention, seen, atol=1e-5)
        norms = [math.sqrt(sum(x * x for x in token)) for token in tokens]
        np.testing.assert_allclose(block.prefix_norms, norms[:prefix], rtol=1e-4)
        np.testing.assert_allclose(block.norms.flatten(), norms[prefix:], rtol=1e-4)
        slow = reference.rollout(fused[: number + 1], 0.5, prefix, (4, 4), read)
        np.testing.assert_allclose(found.growth[number], slow, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_far_heads_attend(layout, images):
    """Against loops over the pairs of patches, 8 pixels wide, in a grid of 4x4."""
    changes, prefix, _ = LAYOUTS[layout]
    model = make_vit(**changes)
    found = anatomy(model, images[:1])
    attentions, _ = by_hand(model, images[:1])
    for block, attention in zip(found.blocks, attentions, strict=True):
        for head, matrix in enumerate(attention):
            total = 0.0
            for i in range(16):
                row = matrix[prefix + i, prefix:]
                far = [8 * math.hypot(i // 4 - j // 4, i % 4 - j % 4) for j in range(16)]
                total += sum(w * d for w, d in zip(row, far, strict=True)) / row.sum()
            assert block.distances[head] == pytest.approx(total / 16, rel=1e-4)


def test_heads_that_look_evenly_look_as_far_as_patches_are_apart():
    """Swin with queries of 0: within windows of 4x4 patches, each 4 and then 8 pixels wide."""
    model = make("swin_tiny_patch4_window7_224", 32, 32, 4)
    with torch.no_grad():
        for block in blocks_of(model):
            block.attn.qkv.weight.zero_()
            block.attn.qkv.bias.zero_()
            block.attn.relative_position_bias_table.zero_()
    found = anatomy(model, torch.randn(1, 3, 32, 32))
    mean = np.mean(
        [math.hypot(a // 4 - b // 4, a % 4 - b % 4) for a in range(16) for b in range(16)]
    )
    # the second block of the first stage is shifted: its windows at the border are cut into parts
    np.testing.assert_allclose(found.blocks[0].distances, 4 * mean, rtol=1e-5)
    np.testing.assert_allclose(found.blocks[2].distances, 8 * mean, rtol=1e-5)
    assert (found.blocks[1].distances < 4 * mean).all()


def test_filters_are_the_principal_components(images):
    """Each is an eigenvector of the filters' covariance, by descending eigenvalue."""
    model = make_vit()
    found = anatomy(model, images[:1]).filters
    weights = model.patch_embed.proj.weight.detach().double().flatten(1).numpy()
    values, vectors = np.linalg.eigh(np.cov(weights.T))
    assert found.shape == (23 + 1, 8, 8, 3)
    for place in range(10):
        component = vectors[:, -1 - place].reshape(3, 8, 8).transpose(1, 2, 0)
        flat = found[place] - found[place].mean()
        component = component - component.mean()
        cosine = (flat * component).sum() / np.linalg.norm(flat) / np.linalg.norm(component)
        assert abs(cosine) > 1 - 1e-6
        assert (found[place].min(), found[place].max()) == (0, 1)
    assert (np.diff(values[-10:]) > 0).all()


def test_convolutions_have_no_patch_filters(bundled):
    x = torch.zeros(1, 3, 224, 224)
    assert anatomy(bundled.model, x).filters is None


def test_names_of_prefix_tokens():
    def names(layout):
        return anatomy(make_vit(**LAYOUTS[layout][0]), torch.zeros(1, 3, 32, 32)).prefix_names

    assert names("class token") == ("class",)
    assert names("distilled") == ("class", "distillation")
    assert names("4 registers") == ("class", *(f"register {n}" for n in (1, 2, 3, 4)))
    assert names("register only") == ("register 1",)
    assert names("no prefix, average") == ()


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_grown_it_is_the_rollout(images, fusion, start):
    model = make_vit(reg_tokens=2)
    image = images[:1]
    found = anatomy(model, image, fusion, 0.3, start)
    mask = VITAttentionRollout(model, head_fusion=fusion, discard_ratio=0.3, start_block=start)
    np.testing.assert_allclose(found.rollout, mask(image), atol=1e-5)
    assert len(found.growth) == 3 - start
    assert len(found.blocks) == 3  # all are shown, whatever rollout leaves out


def test_attention_pooling():
    """What the patches attend to, weighted by what the pool reads of them; and the pool's heads."""
    torch.manual_seed(0)
    small = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    model = timm.create_model("vit_base_patch16_siglip_224", **small).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    image = torch.randn(1, 3, 64, 64)
    found = anatomy(model, image, "max", 0.4)
    mask = VITAttentionRollout(model, head_fusion="max", discard_ratio=0.4)(image)
    np.testing.assert_allclose(found.rollout, mask, atol=1e-5)
    recorded = [a[0].detach().double().numpy() for a in reference.softmaxes(model, image, [0])[0]]
    pool = recorded.pop()[:, 0]
    np.testing.assert_allclose(found.pool, pool.reshape(-1, 4, 4), atol=1e-5)
    for block, attention in zip(found.blocks, recorded, strict=True):
        seen = read_by(pool.max(axis=0), attention).reshape(-1, 4, 4)
        np.testing.assert_allclose(block.attention, seen, atol=1e-5)


def test_heads_of_parallel_branches_follow_one_another(images):
    model = make_vit(block_fn=ParallelThingsBlock, depth=2)
    found = anatomy(model, images[:1])
    recorded = reference.softmaxes(model, images[:1], [0])[0]
    rows = [attention[0, :, 0, 1:].detach().numpy() for attention in recorded]
    assert len(rows) == 4
    for number, block in enumerate(found.blocks):
        both = np.concatenate(rows[2 * number : 2 * number + 2]).reshape(6, 4, 4)
        np.testing.assert_allclose(block.attention, both, atol=1e-5)


def small_swin(height, width, window):
    torch.manual_seed(0)
    small = {"embed_dim": 12, "depths": (2, 1), "num_heads": (2, 3), "num_classes": 5}
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=(height, width), window_size=window, **small
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "patch_embed" not in name:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("size", [(64, 64, 4), (60, 44, 4)], ids=["whole windows", "padded"])
def test_windows(size):
    """Each block on a grid of its own; the heads as in the matrix over all its tokens."""
    height, width, window = size
    model = small_swin(height, width, window)
    image = torch.randn(1, 3, height, width)
    found = anatomy(model, image, "mean", 0.0)
    layout = token_layout(model, height, width)
    with torch.no_grad(), capture_attention(model, layout) as captured:
        model(image)
    whole = []
    for block, grid, (attention,), shown in zip(
        blocks_of(model), captured.grids, captured.blocks(), found.blocks, strict=True
    ):
        heads = [windows_of(block, *grid).spread(head)[0] for head in attention.unbind(1)]
        whole.append(torch.stack(heads).double().numpy())
        np.testing.assert_allclose(
            shown.attention, whole[-1].mean(axis=1).reshape(-1, *grid), atol=1e-6
        )
        assert shown.norms.shape == grid
    # the last block's tokens are 2x2 patches each, the rollout before them is the mean of rows
    tokens = layout.tokens
    product, alone = np.eye(tokens), np.ones(tokens)
    for number in range(2):
        step = whole[number].mean(axis=0) + np.eye(tokens)
        product = step / step.sum(axis=1, keepdims=True) @ product
        alone = alone / step.sum(axis=1)
        seen = (product - np.diag(alone)).mean(axis=0).reshape(layout.grid)
        np.testing.assert_allclose(found.growth[number], seen / seen.max(), atol=1e-5)
    mask = VITAttentionRollout(model, head_fusion="mean", discard_ratio=0)(image)
    np.testing.assert_allclose(found.rollout, mask, atol=1e-5)
    assert (found.positions, found.prefix_names) == (None, ())
    assert found.position_kind.startswith("relative positions")
    assert draw_anatomy(found, Image.new("RGB", (width, height)), "").width == WIDTH


def test_similarity_of_position_embeddings():
    model = make_vit(reg_tokens=1)
    found = anatomy(model, torch.zeros(1, 3, 32, 32)).positions
    each = model.pos_embed[0, 2:].detach().double().tolist()
    assert found.rows == found.columns == (0, 1, 2, 3)
    for (r, c, h, w), value in np.ndenumerate(found.similarity):
        assert value == pytest.approx(cosine(each[4 * r + c], each[4 * h + w]), abs=1e-5)


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_positions_are_those_of_this_input(no_embed_class):
    """Interpolated as the model does it, found out by patches that are 0; many are sampled."""
    model = make_vit(dynamic_img_size=True, no_embed_class=no_embed_class)
    found = anatomy(model, torch.zeros(1, 3, 48, 160)).positions
    assert found.rows == tuple(range(6))
    assert (found.columns[0], found.columns[-1], len(found.columns)) == (0, 19, 14)
    added = model._pos_embed(torch.zeros(1, 6, 20, 24))[0, 1:].view(6, 20, 24)
    added = added.detach().double().tolist()
    for r, c in ((0, 0), (2, 5), (5, 13)):
        here = added[found.rows[r]][found.columns[c]]
        expected = [[cosine(here, there) for there in row] for row in added]
        np.testing.assert_allclose(found.similarity[r, c], expected, atol=1e-5)


def test_how_models_without_an_embedding_know_places():
    kinds = {
        "vit_relpos_small_patch16_224": "relative",
        "vit_small_patch16_dinov3": "rotary",
        "beit_base_patch16_224": "relative",
    }
    small = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}
    for name, kind in kinds.items():
        found = anatomy(timm.create_model(name, **small), torch.randn(1, 3, 32, 32))
        assert found.positions is None
        assert kind in found.position_kind
    both = timm.create_model("vit_pe_spatial_tiny_patch16_512", **small)
    found = anatomy(both, torch.randn(1, 3, 32, 32))
    assert found.positions is not None
    assert "added to each patch, and rotary" in found.position_kind
    assert anatomy(make_vit(pos_embed="none"), torch.zeros(1, 3, 32, 32)).position_kind == "nothing"


def test_a_sample_is_even_and_has_both_ends():
    assert sample(5, 14) == (0, 1, 2, 3, 4)
    for count in range(15, 60):
        chosen = sample(count, 14)
        assert (chosen[0], chosen[-1], len(set(chosen))) == (0, count - 1, 14)
        steps = np.diff(chosen)
        assert steps.max() - steps.min() <= 1


def state_of(model):
    return [
        (
            module.training,
            getattr(module, "fused_attn", None),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            "forward" in vars(module),
        )
        for module in model.modules()
    ] + [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]


def test_the_model_is_left_as_it_was_found(images):
    model = make_vit().train()
    before = state_of(model)
    first = anatomy(model, images[:1])
    assert state_of(model) == before
    np.testing.assert_array_equal(anatomy(model, images[:1]).growth, first.growth)


def test_also_after_an_error(images, monkeypatch):
    model = make_vit()
    before = state_of(model)
    with monkeypatch.context() as patch:
        patch.setattr(model.blocks[2].mlp, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            anatomy(model, images[:1])
    assert state_of(model) == before
    with pytest.raises(ValueError, match="does not take 48x48"):
        anatomy(model, torch.zeros(1, 3, 48, 48))
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("median",), "head_fusion must be one of"),
        (("max", 1.0), "discard_ratio must be at least 0 and below 1"),
        (("max", 0.9, 3), "start_block must be from 0 to 2"),
    ],
)
def test_wrong_arguments(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        anatomy(make_vit(), images[:1], *arguments)


def test_what_has_no_anatomy(images):
    with pytest.raises(ValueError, match="3 images, not one"):
        anatomy(make_vit(), images)
    with pytest.raises(UnsupportedModel, match="its layers are not"):
        anatomy(timm.create_model("resnet10t"), images[:1])


# the figure


def dark(found):
    """The same anatomy with nothing in it."""
    blocks = [
        dataclasses.replace(
            block, attention=0 * block.attention, norms=0 * block.norms
        )
        for block in found.blocks
    ]  # fmt: skip
    return dataclasses.replace(found, blocks=tuple(blocks), growth=0 * found.growth)


def patch_lit(figure, colour, white=(255, 255, 255)):
    """(row, column) of the one patch that has the colour, counted in patches of its own size."""
    pixels = np.asarray(figure)
    rows, columns = np.nonzero((pixels == colour).all(axis=2))
    assert len(rows), "nothing has that colour"
    top, left = rows.min(), columns.min()
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert len(rows) == height * width, "more than one patch has it"
    edge_row, edge_column = rows[0], columns[0]
    while (pixels[edge_row - 1, left] != white).any():
        edge_row -= 1
    while (pixels[top, edge_column - 1] != white).any():
        edge_column -= 1
    return round((top - edge_row) / height), round((left - edge_column) / width)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bright_patch_is_where_it_should_be(layout, images):
    found = dark(anatomy(make_vit(**LAYOUTS[layout][0]), images[:1]))
    brightest = colored(np.full((1, 1), 255, np.uint8), MAP)[0, 0]
    for row, column in ((0, 3), (2, 1)):
        for field, place in (("norms", (row, column)), ("attention", (2, row, column))):
            marked = np.zeros_like(getattr(found.blocks[1], field))
            marked[place] = 1
            block = dataclasses.replace(found.blocks[1], **{field: marked})
            changed = dataclasses.replace(found, blocks=(found.blocks[0], block, found.blocks[2]))
            figure = draw_anatomy(changed, GREY, "title")
            assert figure.width == WIDTH
            assert patch_lit(figure, brightest) == (row, column)


def test_the_rollout_is_where_it_should_be(images):
    found = dark(anatomy(make_vit(), images[:1]))
    growth = found.growth.copy()
    growth[-1, 3, 2] = 1
    figure = draw_anatomy(dataclasses.replace(found, growth=growth), GREY, "", colormap="jet")
    red = colored(np.full((1, 1), 255, np.uint8), "jet")[0, 0]
    assert patch_lit(figure, red) == (3, 2)


@pytest.mark.parametrize(
    ("blocks", "heads", "grid"),
    [(40, 20, (4, 4)), (24, 16, (3, 9)), (1, 1, (9, 2)), (1, 1, (1, 1))],
)
def test_any_number_of_blocks_and_heads_is_drawn(images, blocks, heads, grid):
    found = anatomy(make_vit(), images[:1])
    noise = np.random.default_rng(0)
    block = BlockAnatomy(
        noise.random((heads, *grid)), noise.random(grid), noise.random(1), noise.random(heads)
    )
    layout = dataclasses.replace(found.layout, grid=grid)
    many = dataclasses.replace(
        found,
        layout=layout,
        positions=Positions((0,), (0,), noise.random((1, 1, *grid))),
        blocks=(block,) * blocks,
        pool=noise.random((heads, *grid)),
        growth=noise.random((blocks, *grid)),
    )
    figure = draw_anatomy(many, GREY.resize((grid[1] * 16, grid[0] * 16)), "many " * 50)
    assert figure.width == WIDTH
    margin = np.asarray(figure)[:, -40:]
    assert (margin == 255).all()  # nothing sticks out
    assert figure.height < 7000


# the command

COMMON = ["--model", "bundled", "--device", "cpu", "--anatomy"]


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = str(ROOT / "examples" / "cat.jpg")
    assert main([*COMMON, "--image_path", path, "--start_block", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["files"].values()) == ["output/cat_anatomy.png"]
    assert report["model"]["patch_grid"] == [14, 14]
    assert report["method"]["head_fusion"] == "max"
    assert [file.name for file in (tmp_path / "output").iterdir()] == ["cat_anatomy.png"]
    with Image.open(tmp_path / "output" / "cat_anatomy.png") as figure:
        assert figure.width == WIDTH
        assert figure.text["Model"] == "bundled"
    assert main([*COMMON, "--image_path", path]) == 0
    assert "Wrote output/cat_anatomy.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_path", str(ROOT / "examples")], "--anatomy is for one image: name one"),
        (["--report"], "--anatomy can't be combined with --report"),
        (["--category", "top"], "--anatomy can't be combined with --category"),
        (["--sweep", "head_fusion=max"], "--anatomy can't be combined with --sweep"),
        (["--start_block", "4"], "start_block must be from 0 to 3"),
        (["--colormap", "rainbows"], "colormap must be one of"),
    ],
)
def test_wrong_requests(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--image_path" not in arguments:
        arguments = [*arguments, "--image_path", str(ROOT / "examples" / "cat.jpg")]
    assert main([*COMMON, *arguments]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1
    assert message in streams.err
    assert not list(tmp_path.rglob("*.png"))
