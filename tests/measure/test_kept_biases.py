"""Networks that keep attention biases from pass to pass in evaluation mode, such as TinyViT."""

import copy

import timm
import torch

from finetune.measure.rates import BATCH, rate_of_rise
from finetune.network.backbone import profile_stages


def small_tiny_vit():
    torch.manual_seed(0)
    return timm.create_model(
        "tiny_vit_5m_224", num_classes=2, embed_dims=(16, 32, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)
    )  # fmt: skip


def test_a_range_test_of_several_steps_follows_the_trained_biases():
    network = small_tiny_vit()
    biases = [p for name, p in network.named_parameters() if "attention_biases" in name]
    before = [parameter.detach().clone() for parameter in biases]
    _, steps = rate_of_rise(network, torch.randn(2 * BATCH, 3, 64, 64), torch.arange(2 * BATCH) % 2, 2)
    assert steps > 2
    assert all(not torch.equal(old, new) for old, new in zip(before, biases, strict=True))


def test_a_network_can_be_copied_after_its_stages_are_profiled():
    network = small_tiny_vit()
    profile_stages(network, 64)
    copy.deepcopy(network)
