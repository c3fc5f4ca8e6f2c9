"""Keep the pretrained classifier next to the new head while a network is fine-tuned.

You et al. 2020, "Co-Tuning for Transfer Learning": a second loss on the pretrained classes keeps the features close to
their pretrained values.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class CoTunedHead(nn.Linear):
    """A new head that also holds the pretrained one.

    Its output is (n, num_classes) in evaluation mode and (n, num_classes + source_classes) in training mode, with the
    new head's logits first.
    """

    def __init__(self, head: nn.Linear, source: nn.Linear) -> None:
        """Copy the weights of both heads."""
        super().__init__(head.in_features, head.out_features)
        self.load_state_dict(head.state_dict())
        self.source = copy.deepcopy(source)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of features (n, width), as the class describes."""
        own = super().forward(features)
        return torch.cat([own, self.source(features)], dim=-1) if self.training else own


def add_source_head(network: nn.Module, name: str, source: nn.Linear) -> None:
    """Add the pretrained classifier `source` to the head `name` of a network, in place.

    Raises:
        TypeError: the head is not a linear layer.
    """
    head = network.get_submodule(name)
    if not isinstance(head, nn.Linear):
        raise TypeError(f"a head is a linear layer, not {type(head).__name__}")
    _replace(network, name, CoTunedHead(head, source))


def without_source(network: nn.Module) -> nn.Module:
    """Return a copy of the network without the pretrained classifier in its head, or the network itself if it has
    none."""
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, CoTunedHead)]
    if not found:
        return network
    ((name, head),) = found
    alone = nn.Linear(head.in_features, head.out_features)
    alone.load_state_dict({part: head.state_dict()[part] for part in alone.state_dict()})
    copied = copy.deepcopy(network)
    _replace(copied, name, alone.to(head.weight.device))
    return copied


def _replace(network: Any, name: str, module: nn.Module) -> None:  # noqa: ANN401  (modules have any attributes)
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
