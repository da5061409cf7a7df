import numpy as np
import pytest
import timm
import torch

from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.training.cnn_gradcam import CnnGradCam
from vitexplain.training.localisation import methods_for


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_equals_class_activation_map_where_the_head_is_pool_and_linear(name):
    """There the gradient is the classifier's row over h*w at every place (Zhou et al. 2016)."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval().requires_grad_(False)
    images = torch.randn(3, 3, 96, 128)
    with torch.no_grad():
        features = model.forward_features(images)
        categories = model(images).argmax(dim=1).tolist()  # something speaks for these
    masks = CnnGradCam(model).batch(images, categories)
    rows = model.get_classifier().weight[categories]
    for mask, feature, row in zip(masks, features, rows, strict=True):
        expected = np.maximum(np.einsum("c,chw->hw", row.numpy(), feature.numpy()), 0)
        np.testing.assert_allclose(mask, expected / expected.max(), atol=1e-5)


def test_nothing_in_favour_is_an_empty_map():
    model = timm.create_model("test_resnet", num_classes=2).eval()
    with torch.no_grad():
        model.get_classifier().weight.fill_(-1)  # features are >= 0
    assert not CnnGradCam(model).batch(torch.randn(1, 3, 64, 64), [1]).any()


def test_each_kind_of_model_has_its_maps():
    def maps(name):
        return list(methods_for(timm.create_model(name).eval(), 160, 160))

    assert maps("test_vit") == ["rollout", "grad_rollout"]
    assert maps("test_resnet") == ["gradcam"]
    assert maps("test_mambaout") == []  # its features are (B, h, w, C)


def test_features_that_are_no_map_are_refused():
    model = timm.create_model("test_vit").eval()
    with pytest.raises(UnsupportedModel, match="needs a CNN"):
        CnnGradCam(model).batch(torch.randn(1, 3, 160, 160), [0])
