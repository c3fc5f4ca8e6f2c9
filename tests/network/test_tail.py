import copy

import pytest
import torch
from conftest import FAMILIES
from torch import nn

from finetune.network.backbone import find_stages
from finetune.network.tail import Tail, cut


def images(seed=0, count=3):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FAMILIES)
def test_prefix_and_tail_give_the_logits_of_the_whole_network_at_every_cut(small_network, name):
    network = small_network(name)
    expected = network(images())
    cuts = 0
    for trained in range(1, len(find_stages(network))):
        tail = cut(network, trained, 64)
        if tail is not None:
            cuts += 1
            torch.testing.assert_close(tail(tail.prefix(images())), expected, rtol=1e-4, atol=1e-5)
            tail.release()
    assert cuts >= 3


@pytest.mark.parametrize("name", FAMILIES)
def test_after_release_the_network_is_as_it_was(small_network, name):
    network = small_network(name)
    state, expected = copy.deepcopy(network.state_dict()), network(images())
    tail = cut(network, 1, 64)
    tail(tail.prefix(images(seed=1)))
    tail.release()
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    assert torch.equal(network(images()), expected)


def test_a_network_with_a_tail_still_computes_whole_images(small_network):
    network = small_network()
    expected = network(images())
    tail = cut(network, 2, 64)
    tail(tail.prefix(images(seed=1)))
    assert torch.equal(network(images()), expected)


def test_the_tail_gives_the_trained_stages_the_gradients_of_the_whole_network(small_network):
    network, labels = small_network("test_convnext"), torch.tensor([0, 1, 2])
    trained = [name for stage in find_stages(network)[-2:] for name in stage.parameters]
    parameters = dict(network.named_parameters())
    wanted = [parameters[name] for name in trained]
    whole = torch.autograd.grad(nn.functional.cross_entropy(network(images()), labels), wanted)
    tail = cut(network, 2, 64)
    activation = tail.prefix(images()).detach()
    through_tail = torch.autograd.grad(nn.functional.cross_entropy(tail(activation), labels), wanted)
    for own, expected in zip(through_tail, whole, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-5)


def test_the_prefix_computes_nothing_above_the_boundary(small_network):
    network = small_network("test_resnet")
    tail = cut(network, 1, 64)
    called = []
    network.layer4.register_forward_hook(lambda *_: called.append("layer4"))
    tail.prefix(images())
    assert called == []


def test_there_is_no_tail_above_a_stage_that_has_no_module_of_its_own(small_network):
    network = small_network("test_resnet")
    assert find_stages(network)[0].module is None
    assert cut(network, len(find_stages(network)) - 1, 64) is None


def test_there_is_no_tail_where_everything_or_nothing_is_trained(small_network):
    network = small_network()
    assert cut(network, len(find_stages(network)), 64) is None
    assert cut(network, 0, 64) is None


def test_there_is_no_tail_where_the_upper_part_needs_more_than_the_boundary(small_network):
    class Skipping(nn.Module):
        """A network whose last stage also sees the image."""

        def __init__(self):
            super().__init__()
            self.inner = small_network("test_resnet")

        def get_classifier(self):
            return self.inner.fc

        def group_matcher(self, coarse):
            groups = self.inner.group_matcher(coarse)
            return {"stem": r"^inner\." + groups["stem"].strip("^"), "blocks": r"^inner\.layer(\d+)"}

        def forward(self, inputs):
            return self.inner(inputs) + inputs.mean(dim=(2, 3))

    network = Skipping().eval()
    assert find_stages(network)[-2].module is not None
    assert cut(network, 1, 64) is None
    assert not any(module._forward_hooks for module in network.modules())


def test_activations_of_any_number_of_images_pass_a_tail(small_network):
    tail = cut(small_network(), 2, 64)
    assert isinstance(tail, Tail)
    assert tail(tail.prefix(images(count=5))).shape == (5, 3)
    assert tail(tail.prefix(images(count=1))).shape == (1, 3)
