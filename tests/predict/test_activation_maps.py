"""Class activation maps of networks of several families."""

import numpy as np
import pytest
import timm
import torch

from finetune.predict.activation_maps import class_activation_maps


def images(count=2, side=64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_map_of_a_linear_head_on_mean_features_is_the_sum_of_its_weighted_features(small_network):
    network = small_network("test_resnet")
    inputs, classes = images(), np.array([2, 0])
    found = class_activation_maps(network, inputs, classes)
    with torch.no_grad():
        features = network.forward_features(inputs)
        weighted = torch.einsum("nchw,nc->nhw", features, network.get_classifier().weight[classes]).clamp(min=0)
    expected = weighted / weighted.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_vit", "test_vit2", "test_mambaout"])
def test_every_family_has_a_map_of_places(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3).eval().requires_grad_(False)
    found = class_activation_maps(network, images(2, 160), np.array([0, 1]))
    assert found.shape[0] == 2
    assert found.shape[1] == found.shape[2] >= 5
    assert found.min() >= 0
    assert found.max() == pytest.approx(1)
    assert found.std() > 0


def test_maps_of_many_images_are_those_of_each_image_alone(small_network):
    network, inputs = small_network(), images(18)
    classes = np.arange(18) % 3
    together = class_activation_maps(network, inputs, classes)
    alone = class_activation_maps(network, inputs[17:], classes[17:])
    np.testing.assert_allclose(together[17:], alone, atol=1e-4)


def test_a_network_without_places_has_no_map(small_network):
    class Pooled(torch.nn.Module):
        num_prefix_tokens = 0

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward_features(self, inputs):
            return self.network.forward_head(self.network.forward_features(inputs), pre_logits=True)

        def forward_head(self, features):
            return self.network.get_classifier()(features)

    assert class_activation_maps(Pooled(small_network()), images(), np.array([0, 1])) is None
