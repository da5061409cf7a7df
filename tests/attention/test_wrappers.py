"""Models within what people put around them."""

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helpers import make_vit
from vitexplain.attention.tokens import UnsupportedModel, check_supported
from vitexplain.methods.registry import METHODS


class Around(nn.Module):
    """A module of one's own, as training scripts have it."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, x):
        return self.vit(x)


class Classified(nn.Module):
    """A ViT without a head, and a classifier beside it."""

    def __init__(self, vit, classes=4):
        super().__init__()
        self.backbone = nn.ModuleList([vit])
        torch.manual_seed(1)
        self.classifier = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, classes))

    def forward(self, x):
        return self.classifier(self.backbone[0](x))


class Normalised(Around):
    def forward(self, x):
        return self.vit((x - 0.5) / 0.5)


class TwoViTs(Around):
    def __init__(self, vit):
        super().__init__(vit)
        self.other = make_vit()

    def forward(self, x):
        return self.vit(x) + self.other(x)


class WithMore(Around):
    def forward(self, x, more):
        return self.vit(x) + more


class Pair(Around):
    def forward(self, x):
        return self.vit(x), x


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        AveragedModel,
        ModelEmaV3,
        Around,
        lambda vit: nn.DataParallel(Around(vit)),
        lambda vit: Around(Around(vit)),
    ],
)
def test_the_vit_is_explained(wrap, images):
    vit = make_vit()
    for name in ("attention_rollout", "grad_rollout", "gradcam"):
        expected = METHODS[name].make(vit).batch(images)
        np.testing.assert_allclose(METHODS[name].make(wrap(vit)).batch(images), expected, atol=1e-6)


def test_a_compiled_model_is_explained_as_it_was(images):
    vit = make_vit()
    expected = METHODS["gradcam"].make(vit).batch(images)
    np.testing.assert_array_equal(
        METHODS["gradcam"].make(torch.compile(vit)).batch(images), expected
    )
    vit.compile()
    np.testing.assert_array_equal(METHODS["gradcam"].make(vit).batch(images), expected)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_classifier_beside_the_vit_is_explained(name, images):
    """As the same layers in the place of the ViT's own head."""
    vit = make_vit(num_classes=0)
    model = Classified(vit)
    whole = make_vit(num_classes=0)
    whole.head, whole.num_classes = model.classifier, 4
    chosen = ([3, 1],) if METHODS[name].of_category else ()
    found = METHODS[name].make(model).explain(images, *chosen)
    expected = METHODS[name].make(whole).explain(images, *chosen)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(images))
    np.testing.assert_allclose(found.masks, expected.masks, atol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (Normalised, r"changes images before its ViT sees them: pass model\.vit"),
        (TwoViTs, r"several ViTs, pass one of them: model\.vit, model\.other"),
        (WithMore, r"pass model\.vit"),
        (Pair, r"pass model\.vit"),
        (
            lambda vit: nn.Sequential(nn.Identity(), vit, nn.Softmax(0).eval()).append(make_vit()),
            r"several ViTs, pass one of them: model\[1\], model\[3\]",
        ),
        (lambda _: nn.Linear(3, 4), "Linear can't be explained: its class is not timm's"),
    ],
)
def test_others_are_refused_by_what_is_true(wrap, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        check_supported(wrap(make_vit()))
