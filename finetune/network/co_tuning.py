"""The pretrained classifier beside the new head, while a network is fine-tuned (You et al. 2020, Co-Tuning)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class CoTunedHead(nn.Linear):
    """A new head with the pretrained one beside it: (n, num_classes) in evaluation mode, (n, num_classes +
    source_classes) in training mode, the new head's logits first."""

    def __init__(self, head: nn.Linear, source: nn.Linear) -> None:
        """Take over the weights of both."""
        super().__init__(head.in_features, head.out_features)
        self.load_state_dict(head.state_dict())
        self.source = copy.deepcopy(source)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of features (n, width)."""
        own = super().forward(features)
        return torch.cat([own, self.source(features)], dim=-1) if self.training else own


def put_beside(network: nn.Module, name: str, source: nn.Linear) -> None:
    """Put the pretrained classifier beside the head of this name."""
    head = network.get_submodule(name)
    if not isinstance(head, nn.Linear):
        raise TypeError(f"a head is a linear layer, not {type(head).__name__}")
    _replace(network, name, CoTunedHead(head, source))


def without_source(network: nn.Module, name: str) -> nn.Module:
    """Return the network with the head of this name alone: itself, or a copy where the pretrained classifier is beside
    it."""
    head = network.get_submodule(name)
    if not isinstance(head, CoTunedHead):
        return network
    alone = nn.Linear(head.in_features, head.out_features)
    alone.load_state_dict({part: head.state_dict()[part] for part in alone.state_dict()})
    copied = copy.deepcopy(network)
    _replace(copied, name, alone.to(head.weight.device))
    return copied


def _replace(network: Any, name: str, module: nn.Module) -> None:  # noqa: ANN401  (modules have any attributes)
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
