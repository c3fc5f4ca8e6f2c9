import numpy as np
import pytest
import torch
from torch import nn

from finetune.measure.rates import BATCH, HIGHEST, rate_of_rise


@pytest.fixture
def separable(small_network):
    """The factory of a network, 64 images of 3 classes that differ in colour, and their labels."""
    labels = torch.arange(4 * BATCH) % 3
    images = torch.randn(len(labels), 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for colour in range(3):
        images[labels == colour, colour] += 1.0

    def make(name="test_resnet"):
        return small_network(name), images, labels

    return make


def test_training_at_half_the_rate_of_the_rise_learns_and_at_ten_times_it_does_not(separable):
    rise, _ = rate_of_rise(*separable(), num_classes=3)

    def last_loss(rate):
        network, images, labels = separable()
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
        losses = []
        for step in range(24):
            part = slice(step % 4 * BATCH, (step % 4 + 1) * BATCH)
            loss = nn.functional.cross_entropy(network(images[part]), labels[part])
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return np.mean(losses[-4:])

    assert rise < HIGHEST
    assert last_loss(rise / 2) < np.log(3)
    assert not last_loss(10 * rise) < np.log(3)


def test_a_network_whose_loss_is_not_a_number_stops_the_ramp(separable):
    network, images, labels = separable()
    with torch.no_grad():
        network.fc.weight.fill_(float("nan"))
    _, steps = rate_of_rise(network, images, labels, num_classes=3)
    assert steps == 1


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_frozen_statistics_stay_frozen(small_network, name):
    network = small_network(name)
    before = {key: value.clone() for key, value in network.named_buffers()}
    images = torch.randn(2 * BATCH, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    rate_of_rise(network, images, torch.arange(2 * BATCH) % 3, num_classes=3)
    assert all(torch.equal(value, before[key]) for key, value in network.named_buffers())
