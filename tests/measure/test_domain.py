import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import nn

from finetune.measure.domain import FULL_CLASS, DomainProbe, combine_moments, measure_domain_parts

CHANNELS = 8


@pytest.fixture
def network():
    """Three standardising layers, whose inputs have mean 0 and deviation 1 where the images have, and a head."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(CHANNELS, affine=False, eps=0.0) for _ in range(3)]
    return nn.Sequential(*norms, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5)).eval()


def pictures(count=40, deviation=1.0, mean=0.0, seed=0):
    noise = torch.randn(count, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(seed))
    return mean + deviation * noise


def measured(network, images, labels=None):
    return measure_domain_parts(network, [(images, torch.zeros(len(images)) if labels is None else labels)])


def test_images_like_the_pretraining_images_have_log_std_ratio_0(network):
    parts = measured(network, pictures())
    assert parts["late_vigour"] == pytest.approx(0.0, abs=0.01)
    assert parts["middle_vigour"] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("deviation", [0.5, 2.0])
def test_the_log_std_ratio_is_the_logarithm_of_the_ratio_of_deviations(network, deviation):
    parts = measured(network, pictures(deviation=deviation))
    expected = float(torch.tensor(deviation).log())
    assert parts["late_vigour"] == pytest.approx(expected, abs=0.01)
    assert parts["middle_vigour"] == pytest.approx(expected, abs=0.01)


def test_a_shifted_mean_does_not_change_the_log_std_ratio(network):
    assert measured(network, pictures(mean=3.0))["late_vigour"] == pytest.approx(0.0, abs=0.01)


def test_the_running_statistics_are_what_inputs_are_compared_with(network):
    for norm in network[:3]:
        norm.running_mean.fill_(2.0)
    network[0].running_var.fill_(9.0)
    network[1].running_mean.fill_(0.0)
    network[2].running_mean.fill_(0.0)
    parts = measured(network, pictures(deviation=3.0, mean=2.0))
    assert parts["middle_vigour"] == pytest.approx(0.0, abs=0.01)


def test_late_layers_count_as_late_and_middle_ones_as_middle(network):
    network[1].running_var.fill_(4.0)
    parts = measured(network, pictures())
    half = float(torch.tensor(0.5).log())
    assert parts["middle_vigour"] == pytest.approx(half, abs=0.01)
    assert parts["late_vigour"] == pytest.approx(half, abs=0.01)  # what the middle layer halved stays halved
    network[2].running_var.fill_(0.25)
    assert measured(network, pictures())["late_vigour"] == pytest.approx(0.0, abs=0.01)


def test_channels_that_are_off_give_a_finite_log_std_ratio(network):
    parts = measured(network, torch.zeros(4, CHANNELS, 8, 8))
    assert parts["late_vigour"] == pytest.approx(float(torch.tensor(0.01).log()))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(network, training):
    network.train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measured(network, pictures(deviation=3.0))
    assert network.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_network_that_fails_keeps_no_hooks_and_its_mode(network):
    network.train()
    with pytest.raises(RuntimeError):
        measured(network, torch.zeros(2, CHANNELS + 1, 8, 8))
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_the_sums_of_two_groups_of_images_add_up(network):
    images = pictures(30)
    whole, halves = DomainProbe(network), DomainProbe(network)
    whole.add(images, torch.zeros(30))
    halves.add(images, torch.arange(30) % 2)
    added = halves.groups[0] + halves.groups[1]
    assert added.count == whole.groups[0].count == 30
    assert torch.allclose(added.channels, whole.groups[0].channels)
    assert torch.allclose(added.head, whole.groups[0].head)


def test_how_images_are_batched_does_not_matter(network):
    images, labels = pictures(24), torch.arange(24) % 3
    small = [(images[start : start + 5], labels[start : start + 5]) for start in range(0, 24, 5)]
    assert measure_domain_parts(network, small) == pytest.approx(measured(network, images, labels), abs=1e-5)


def test_large_classes_weigh_no_more_than_others(network):
    quiet, loud = pictures(40, deviation=0.5), pictures(10, deviation=1.5, seed=1)
    probe = DomainProbe(network)
    probe.add(quiet, torch.zeros(40))
    probe.add(loud, torch.ones(10))
    balanced = probe.parts([probe.groups[0], probe.groups[1]])
    even = measured(network, torch.cat([quiet[:10], loud]))
    assert balanced["late_vigour"] == pytest.approx(even["late_vigour"], abs=0.02)


def test_classes_below_the_full_size_weigh_by_their_images(network):
    quiet, loud = pictures(FULL_CLASS, deviation=0.5), pictures(2, deviation=1.5, seed=1)
    labels = torch.tensor([0] * FULL_CLASS + [1] * 2)
    apart = measured(network, torch.cat([quiet, loud]), labels)
    together = measured(network, torch.cat([quiet, loud])[: FULL_CLASS + 2])
    assert apart["late_vigour"] == pytest.approx(together["late_vigour"], abs=1e-5)


def test_the_energy_is_the_mean_of_the_logits_logsumexp(network):
    images = pictures(6)
    with torch.no_grad():
        expected = network(images).logsumexp(1).mean()
    assert measured(network, images)["energy"] == pytest.approx(float(expected), abs=1e-5)


def test_logits_that_stand_out_are_skewed():
    network = nn.Sequential(nn.Flatten(), nn.Identity())
    standing_out = torch.tensor([[9.0, 0.0, 0.0, 0.0, 0.0, 0.0]])[:, :, None, None]
    symmetric = torch.tensor([[-2.0, -1.0, 0.0, 0.0, 1.0, 2.0]])[:, :, None, None]
    assert measured(network, standing_out)["logit_skewness"] == pytest.approx(1.789, abs=1e-3)
    assert measured(network, symmetric)["logit_skewness"] == pytest.approx(0.0, abs=1e-6)


def test_a_network_without_batch_norm_has_no_log_std_ratio():
    network = timm.create_model("test_vit")
    parts = measured(network, torch.zeros(2, 3, 160, 160))
    assert sorted(parts) == ["energy", "logit_skewness"]


def test_a_network_without_its_head_has_no_energy():
    network = timm.create_model("test_resnet", num_classes=0)
    assert sorted(measured(network, torch.zeros(2, 3, 64, 64))) == ["late_vigour", "middle_vigour"]


def test_two_batch_norm_layers_are_too_few_for_a_log_std_ratio():
    assert combine_moments([], []) == {}
    network = nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert sorted(measured(network, pictures(4))) == ["energy", "logit_skewness"]


@pytest.mark.parametrize("count", [3, 7])
def test_only_layers_from_the_second_third_on_are_watched(count):
    network = nn.Sequential(*(nn.BatchNorm2d(CHANNELS) for _ in range(count))).eval()
    probe = DomainProbe(network)
    with probe.watching():
        watched = [bool(layer._forward_pre_hooks) for layer in network]
    assert watched == [False] * (count // 3) + [True] * (count - count // 3)
    assert probe.layer_sizes == [0] * (count // 3) + [CHANNELS] * (count - count // 3)


def test_several_threads_measure_at_once_what_one_measures(network):
    images, labels = pictures(60), torch.arange(60) % 3
    batches = list(zip(images.split(6), labels.split(6), strict=True))
    alone, together = DomainProbe(network), DomainProbe(network)
    for batch in batches:
        alone.add(*batch)
    both = threading.Barrier(2, timeout=10)

    def meet(*_):
        both.wait()

    network[1].register_forward_hook(meet)  # in the middle of a pass both threads wait for each other
    with together.watching(), ThreadPoolExecutor(2) as threads:
        for moments, (_, groups) in zip(
            threads.map(together.measure, [images for images, _ in batches]), batches, strict=True
        ):
            together.collect(moments, groups)
    assert together.parts(list(together.groups.values())) == alone.parts(list(alone.groups.values()))


def test_every_image_has_moments_of_its_own(network):
    probe, images = DomainProbe(network), pictures(5)
    with probe.watching():
        channels, head = probe.measure(images)
        one, its_head = probe.measure(images[2:3])
    assert (channels.shape, head.shape) == ((5, 2, 2 * CHANNELS), (5, 2))
    torch.testing.assert_close(one[0], channels[2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(its_head[0], head[2], rtol=1e-6, atol=1e-6)
