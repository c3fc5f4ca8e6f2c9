"""The measurements behind the domain similarity: one pass of a frozen pretrained network over labelled images."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

FULL_CLASS = 10
"""From this many images on every class has the same weight; a smaller one counts by its size, as its mean is noise."""

SMALLEST_RATIO = 0.01
"""Ratios of deviations below this are taken for this: a channel that is off is off."""


@dataclass(frozen=True)
class Moments:
    """Sums over some images of what is measured on each; the sums of two groups of images add up."""

    count: int
    channels: Tensor
    """2 x channels of the layers from the second third on: the mean of the standardised input and of its square."""
    head: Tensor | None
    """Energy and skewness of the logits; None if the network has no classification head."""

    def __add__(self, other: Self) -> "Moments":
        """Return the sums over both groups of images."""
        head = None if self.head is None or other.head is None else self.head + other.head
        return Moments(self.count + other.count, self.channels + other.channels, head)


class DomainProbe:
    """Collects the moments of groups of images while they pass a frozen network.

    Every batch-norm layer with running statistics is watched at its input, which is standardised with these statistics:
    the pretraining images would give mean 0 and deviation 1 in each channel.
    """

    def __init__(self, network: nn.Module) -> None:
        """Watch the batch-norm layers of `network`, whose head must be the pretrained one."""
        self.network = network
        self.groups: dict[int, Moments] = {}
        layers = [module for module in network.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))]
        layers = [layer for layer in layers if layer.running_mean is not None]
        # The first third is not used, and its large maps would take most of the time.
        self._watched = layers[len(layers) // 3 :]
        self.layer_sizes = [0] * (len(layers) // 3) + [layer.num_features for layer in self._watched]
        self._pass = threading.local()

    def add(self, images: Tensor, groups: Tensor) -> None:
        """Pass a batch of normalised images and add each to the sums of its group (its class, for instance)."""
        training = self.network.training
        self.network.eval()
        try:
            with self.watching():
                self.collect(self.measure(images), groups)
        finally:
            self.network.train(training)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let `measure` be called, by several threads if need be; the network is in evaluation mode."""
        handles = [layer.register_forward_pre_hook(self._keep_input) for layer in self._watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def measure(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the moments of each of some normalised images: (n, 2, channels) and (n, 2)."""
        self._pass.inputs = []
        logits = self.network(images)
        inputs: list[Tensor] = self._pass.inputs
        channels = torch.cat(inputs, dim=2).cpu().double() if inputs else torch.zeros(len(images), 2, 0)
        return channels, None if getattr(self.network, "num_classes", None) == 0 else _head_moments(logits)

    def collect(self, moments: tuple[Tensor, Tensor | None], groups: Tensor) -> None:
        """Add the moments of some images to the sums of their groups."""
        channels, head = moments
        for group in sorted(set(groups.tolist())):
            chosen = (groups == group).cpu()
            added = Moments(int(chosen.sum()), channels[chosen].sum(0), None if head is None else head[chosen].sum(0))
            self.groups[group] = self.groups[group] + added if group in self.groups else added

    def parts(self, classes: Sequence[Moments]) -> dict[str, float]:
        """Return the parts for images with these moments, one for each class."""
        return combine_moments(classes, self.layer_sizes)

    def _keep_input(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        mean, variance, epsilon = layer.running_mean, layer.running_var, layer.eps
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        assert isinstance(epsilon, float)
        # Sums over pixels are several times faster where the channels lie beside each other, as channels-last has them.
        pixels = arguments[0].permute(0, 2, 3, 1).flatten(1, 2).float()
        first = pixels.mean(1).double()
        second = pixels.square().mean(1).double()
        mean, scale = mean.double(), (variance.double() + epsilon).rsqrt()
        standardised = (second - 2.0 * mean * first + mean.square()) * scale.square()
        self._pass.inputs.append(torch.stack([(first - mean) * scale, standardised], dim=1))


def measure_domain_parts(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the parts of the domain similarity (see `similarity`), weighting the classes equally.

    A few hundred images are enough. They must be prepared as for the calibration: shorter side resized to 128 pixels,
    central 128 x 128, normalised with the network's own mean and deviation; no augmentation. bf16 autocast is fine.

    Args:
        network: the pretrained network with its original head; it is left as it was.
        batches: pairs of normalised images on the network's device (N x 3 x H x W) and class indices.

    Returns:
        `late_vigour` and `middle_vigour` if the network has at least three batch-norm layers; `energy` and
        `logit_skewness` if it has a classification head.
    """
    probe = DomainProbe(network)
    for images, labels in batches:
        probe.add(images, labels)
    return probe.parts(list(probe.groups.values()))


def combine_moments(classes: Sequence[Moments], layer_sizes: Sequence[int]) -> dict[str, float]:
    """Return the parts from the moments of each class; `layer_sizes` are the channels of the layers, in order, 0 for
    those that were not watched."""
    parts: dict[str, float] = {}
    per_image = [min(1.0, FULL_CLASS / moments.count) for moments in classes]
    total = sum(weight * moments.count for weight, moments in zip(per_image, classes, strict=True))
    if len(layer_sizes) >= 3:
        sums = sum(weight * moments.channels for weight, moments in zip(per_image, classes, strict=True))
        parts |= _log_std_ratios(torch.as_tensor(sums) / total, layer_sizes)
    heads = [
        weight * moments.head for weight, moments in zip(per_image, classes, strict=True) if moments.head is not None
    ]
    if heads:
        parts["energy"], parts["logit_skewness"] = (torch.stack(heads).sum(0) / total).tolist()
    return parts


def _log_std_ratios(channels: Tensor, layer_sizes: Sequence[int]) -> Mapping[str, float]:
    """Return the mean logarithm of the ratio of deviations in the middle and in the last third of the layers."""
    mean, square = channels
    ratio = (square - mean.square()).clamp_min(0).sqrt().clamp_min(SMALLEST_RATIO).log()
    layers = [float(part.mean()) for part in ratio.split(list(layer_sizes))]
    first, second = len(layers) // 3, 2 * len(layers) // 3
    middle, late = layers[first:second], layers[second:]
    return {"middle_vigour": sum(middle) / len(middle), "late_vigour": sum(late) / len(late)}


def _head_moments(logits: Tensor) -> Tensor | None:
    """Return energy and skewness of the logits of each image, or None if these are no logits of a head."""
    if logits.ndim != 2 or logits.shape[1] < 3:
        return None
    logits = logits.float().cpu().double()
    centred = logits - logits.mean(1, keepdim=True)
    skewness = centred.pow(3).mean(1) / centred.square().mean(1).clamp_min(1e-12).pow(1.5)
    return torch.stack([logits.logsumexp(1), skewness], dim=1)
