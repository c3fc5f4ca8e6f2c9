import pytest
import timm
import torch
from torch import nn

from finetune.network.cpu import FoldedNorms, ThreadTeam

NETWORKS = {"test_efficientnet": 1.0, "test_resnet": 1.0, "test_byobnet": 0.5}
"""With the least share of their batch norms that stand above a convolution of their own."""


def with_random_norms(module, seed=0):
    """Norms of new networks do nothing; these do."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            size = norm.num_features
            norm.running_mean.copy_(0.1 * torch.randn(size, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(size, generator=generator))
            if norm.affine:
                with torch.no_grad():
                    norm.weight.copy_(0.5 + torch.rand(size, generator=generator))
                    norm.bias.copy_(0.1 * torch.randn(size, generator=generator))
    return module.eval()


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return with_random_norms(timm.create_model(request.param, num_classes=5))


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients(module, images):
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.autograd.grad(module(images).square().mean(), trained, materialize_grads=True)


def test_the_output_is_the_same(network, images):
    folded = FoldedNorms(lambda: network(images[:1]))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(folded) >= NETWORKS[network.pretrained_cfg["architecture"]] * len(norms) > 0
    for context in (torch.inference_mode(), torch.enable_grad()):
        with context:
            plain = network(images)
            with folded:
                torch.testing.assert_close(network(images), plain, rtol=1e-4, atol=1e-5)


def test_the_gradients_of_all_parameters_are_the_same(network, images):
    plain = gradients(network, images)
    with FoldedNorms(lambda: network(images[:1])):
        own = gradients(network, images)
    for one, other in zip(own, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_folded_norms_are_not_computed(images):
    module = with_random_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with FoldedNorms(lambda: module(images)):
        assert module(images).grad_fn.name() == "ConvolutionBackward0"


def test_weights_that_are_trained_are_folded_again_in_every_pass(images):
    module = with_random_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with FoldedNorms(lambda: module(images)):
        module(images)
        with torch.no_grad():
            module[0].weight.mul_(2.0)
            module[1].weight.mul_(3.0)
        now = module(images)
    torch.testing.assert_close(now, module(images))


def test_norms_above_a_frozen_convolution_are_left_alone_where_they_are_trained(images):
    module = with_random_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    module[0].requires_grad_(False)
    with FoldedNorms(lambda: module(images)):
        output = module(images)
    assert output.grad_fn.name() == "NativeBatchNormBackward0"


def test_norms_that_learn_statistics_are_left_alone_and_not_moved(images):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = module[1].running_mean.clone()
    with torch.no_grad():
        module(images)
    moved = module[1].running_mean.clone()
    assert not torch.equal(before, moved)
    module.eval()
    folded = FoldedNorms(lambda: module(images))
    assert torch.equal(module[1].running_mean, moved)
    module.train()
    with folded, pytest.raises(RuntimeError, match="statistics"):
        module(images)


class Branching(nn.Module):
    """A convolution whose output goes two ways."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        output = self.conv(images)
        return self.norm(output) + output


class Sharing(nn.Module):
    """A convolution that is used twice, under two norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images):
        return self.first(self.conv(images)) + self.second(self.conv(images))


@pytest.mark.parametrize("make", [Branching, Sharing])
def test_convolutions_that_serve_more_than_one_norm_are_left_alone(make, images):
    module = with_random_norms(make())
    folded = FoldedNorms(lambda: module(images))
    plain = module(images)
    with folded:
        assert len(folded) == 0
        assert torch.equal(module(images), plain)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_biases_and_norms_without_parameters_are_folded(affine, bias, images):
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias)
    module = with_random_norms(nn.Sequential(conv, nn.BatchNorm2d(4, affine=affine)))
    plain = module(images)
    with FoldedNorms(lambda: module(images)) as folded:
        assert len(folded) == 1
        torch.testing.assert_close(module(images), plain)


def test_under_autocast_frozen_weights_are_folded_in_its_precision(network, images):
    folded = FoldedNorms(lambda: network(images[:1]))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        plain = network(images)
        with folded:
            own = network(images)
    assert own.dtype == plain.dtype
    torch.testing.assert_close(own, plain, rtol=0.05, atol=0.02)


def test_several_threads_can_compute_at_once(network, images):
    folded = FoldedNorms(lambda: network(images[:1]))

    def send(batch):
        with torch.inference_mode(), folded:
            return network(batch)

    with torch.inference_mode():
        plain = network(images)
    with ThreadTeam(2, 1) as team:
        for output in team.map(send, [images] * 6):
            torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2])
def test_weights_that_are_folded_once_give_the_gradients_of_all_passes(network, images, dtype, count):
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    folded = FoldedNorms(lambda: network(images[:1]))

    def one_pass(leaves, part):
        with folded, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return torch.autograd.grad(network(part).float().square().sum(), leaves, materialize_grads=True)

    expected = [one_pass(trained, part) for part in images.split(1)]
    computing = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with ThreadTeam(count, 1) as team, computing, folded.once(trained, team) as weights:
        for found in team.map(lambda part: one_pass(weights.leaves, part), images.split(1)):
            weights.add(found)
        gradients = weights.gradients()
    for parameter, own, *parts in zip(trained, gradients, *expected, strict=True):
        assert own.dtype == parameter.dtype
        exact = torch.stack(parts).sum(0)
        assert (own - exact).norm() <= (1e-3 if dtype == torch.float32 else 0.05) * exact.norm() + 1e-4


def test_weights_are_folded_once_for_several_passes_and_again_after_them(images):
    module = with_random_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    folded = FoldedNorms(lambda: module(images))
    before = module(images)
    with ThreadTeam(1, 1) as team, folded:
        with folded.once(list(module.parameters()), team):
            with torch.no_grad():
                module[0].weight.mul_(2.0)
            torch.testing.assert_close(module(images), before)
        after = module(images)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, module(images))


def test_what_is_not_folded_is_differentiated_by_itself(images):
    module = with_random_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)))
    module[0].weight.requires_grad_(False)  # a trained norm above a frozen convolution is left alone
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    folded = FoldedNorms(lambda: module(images))
    with ThreadTeam(1, 1) as team, folded, folded.once(trained, team) as weights:
        assert {id(leaf) for leaf in weights.leaves} == {id(parameter) for parameter in trained}


def test_gradients_that_are_one_tensor_are_added_up_apart():
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    with ThreadTeam(1, 1) as team, FoldedNorms(lambda: None).once([one, other], team) as weights:
        for factor in (1.0, 10.0):
            weights.add(torch.autograd.grad(((one + other) * factor).square().sum(), weights.leaves))
        assert [gradient.tolist() for gradient in weights.gradients()] == [[4.0 + 400.0] * 3] * 2
