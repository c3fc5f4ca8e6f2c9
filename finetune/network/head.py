"""Find the head of a timm network, give it a new one, and record the features that enter it.

The head is the last linear layer. Networks that were pretrained by distillation or that have branches end in several
linear layers whose outputs are averaged:

    logits = 1/k * sum_i (W_i x_i + b_i) = W x + b    with x = [x_1, ..., x_k], W = 1/k [W_1, ..., W_k], b = mean of b_i

A linear probe on the joined features x is therefore a probe of each of these networks. A 1 x 1 convolution on pooled
features is a linear layer, too, and of an MLP head the last layer is the head.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ModelError

Layer = nn.Linear | nn.Conv2d
"""A linear layer, or a 1 x 1 convolution that takes pooled features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last linear layer of a network, or the layers whose outputs are averaged."""

    names: tuple[str, ...]
    """Names of the layers within the network."""
    layers: tuple[Layer, ...]
    """The layers, in the order of their names."""

    @property
    def num_classes(self) -> int:
        """The number of logits."""
        return int(self.layers[0].weight.shape[0])

    @property
    def width(self) -> int:
        """The number of features: the inputs of all layers."""
        return sum(int(layer.weight.shape[1]) for layer in self.layers)

    @property
    def single(self) -> nn.Linear | None:
        """The head if it is one linear layer; None for a convolution or several layers."""
        layer = self.layers[0]
        return layer if len(self.layers) == 1 and isinstance(layer, nn.Linear) else None

    def owns(self, name: str) -> bool:
        """Return whether a parameter of this name within the network belongs to the head."""
        return any(name.startswith(own + ".") for own in self.names)

    @torch.no_grad()
    def load(self, weight: Tensor, bias: Tensor) -> None:
        """Copy a linear classifier, weight (num_classes, width) and bias (num_classes,), into the layers."""
        widths = [int(layer.weight.shape[1]) for layer in self.layers]
        # W_i = k W[:, part i] and b_i = b, whose average gives W x + b again.
        for layer, part in zip(self.layers, torch.split(weight, widths, dim=1), strict=True):
            layer.weight.copy_((part * len(self.layers)).reshape(layer.weight.shape))
            _bias(layer).copy_(bias)

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Return the layers as one linear classifier, on the CPU: weight (num_classes, width), bias (num_classes,)."""
        count = len(self.layers)
        weights = [layer.weight.detach().flatten(1) / count for layer in self.layers]
        biases = [_bias(layer).detach() / count for layer in self.layers]
        return torch.cat(weights, dim=1).cpu(), torch.stack(biases).sum(0).cpu()

    @torch.no_grad()
    def subtract_from_bias(self, values: Tensor, factor: float) -> None:
        """Subtract `factor` times `values` (num_classes,) from the bias, in place."""
        for layer in self.layers:
            # sub_ with a signed factor, because `b - s * x` rounds the same way in both directions.
            _bias(layer).sub_(values.to(layer.weight.device), alpha=factor)


def find_head(network: Any) -> Head:  # noqa: ANN401  (timm's networks share methods, but no type)
    """Return the head of a network.

    Raises:
        ModelError: the network does not end in linear layers with a bias, or weights several heads by numbers of its
            own.
    """
    names, layers = _find_layers(network)
    kind = type(network).__name__
    if not layers or any(layer.bias is None for layer in layers):
        raise ModelError(
            f"{kind} has no linear layer with a bias at its end that could be trained on new classes; choose another "
            f"--model"
        )
    # EfficientViM sums its heads with trained weights, so that no linear probe on the features is its head.
    if len(layers) > 1 and any(len(own) == len(layers) for own in network.parameters(recurse=False) if own.ndim == 1):
        raise ModelError(
            f"{kind} sums {len(layers)} heads with trained weights, which has no linear probe; choose another --model"
        )
    return Head(names=tuple(names), layers=tuple(layers))


def give_head(network: Any, num_classes: int) -> Head:  # noqa: ANN401
    """Replace the head of a network by a new one with random weights, in place, and return it.

    The layers of an MLP head below the last one keep their weights. A network without a head, such as a self-supervised
    one, gets the head that timm defines for it.

    Raises:
        ModelError: the network does not end in linear layers, and timm cannot give it one.
    """
    if not callable(getattr(network, "reset_classifier", None)):
        raise ModelError(
            f"{type(network).__name__} is an encoder without a classifier, and timm cannot give it one; choose another "
            f"--model"
        )
    names, layers = _find_layers(network)
    if not layers or network.get_classifier() is layers[0]:
        network.reset_classifier(num_classes)
        return find_head(network)
    for name, layer in zip(names, layers, strict=True):
        new: Layer
        if isinstance(layer, nn.Conv2d):
            new = nn.Conv2d(layer.in_channels, num_classes, kernel_size=1)
        else:
            new = nn.Linear(layer.in_features, num_classes)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, new.to(layer.weight.device))
    network.num_classes = num_classes
    return find_head(network)


def has_head(network: Any) -> bool:  # noqa: ANN401
    """Return whether a network has a head, as it is."""
    return bool(getattr(network, "num_classes", 0)) and bool(_find_layers(network)[0])


@contextmanager
def recorded_features(network: nn.Module, with_logits: bool = False) -> Iterator[Callable[[Any, Tensor], Tensor]]:
    """Return a context with the function of this network and of normalised images (n, channels, h, w) that returns the
    features (n, width): the inputs of its head.

    Any number of threads may call the function.

    Args:
        network: the network.
        with_logits: whether the logits follow the features, (n, width + num_classes).
    """
    layers = find_head(network).layers
    own = threading.local()

    def record(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found = getattr(own, "found", None)
            if found is not None:  # a pass of this function, not another one
                found[number] = arguments[0].flatten(1)

        return hook

    def features(sent_through: nn.Module, inputs: Tensor) -> Tensor:
        own.found = {}
        try:
            logits = sent_through(inputs)
            found = [own.found[number] for number in range(len(layers))]
            return torch.cat([*found, logits] if with_logits else found, dim=1)
        finally:
            own.found = None

    handles = [layer.register_forward_pre_hook(record(number)) for number, layer in enumerate(layers)]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def _find_layers(network: Any) -> tuple[list[str], list[Layer]]:  # noqa: ANN401
    """Return the names and modules of the layers that give the logits; nothing if there are none."""
    found = network.get_classifier() if callable(getattr(network, "get_classifier", None)) else None
    # Distilled networks return several modules, one for each head.
    parts = found if isinstance(found, tuple | list) else [found]
    inside = {id(module) for part in parts if isinstance(part, nn.Module) for module in part.modules()}
    modules = {name: module for name, module in network.named_modules() if id(module) in inside}
    # timm names the last layers in the network's configuration; those that its classifier does not contain, such as the
    # auxiliary head of VOLO, take no part in a prediction.
    config = getattr(network, "pretrained_cfg", None) or {}
    listed = config.get("classifier") or ()
    names = [listed] if isinstance(listed, str) else list(listed)
    names = [name for name in names if isinstance(modules.get(name), Layer)]
    if not names:
        names = [name for name, module in modules.items() if isinstance(module, Layer) and module in parts]
    if not names:
        names = [name for name, module in modules.items() if _gives_logits(module, getattr(network, "num_classes", 0))]
    chosen = [modules[name] for name in names]
    return names, [layer for layer in chosen if isinstance(layer, Layer)]


def _gives_logits(module: nn.Module, num_classes: int) -> bool:
    """Return whether a module is a linear layer, or a 1 x 1 convolution, with this number of outputs."""
    is_layer = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    return is_layer and isinstance(module, Layer) and int(module.weight.shape[0]) == num_classes


def _bias(layer: Layer) -> Tensor:
    assert layer.bias is not None  # find_head takes only layers with a bias
    return layer.bias
