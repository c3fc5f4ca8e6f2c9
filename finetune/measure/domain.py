"""Measure the parts of the domain similarity, in one pass of a frozen pretrained network over labelled images.

For channel c of a batch-norm layer with running mean mu_c and variance var_c, and the layer's inputs x on the target
images, with z = (x - mu_c) / sqrt(var_c + eps):

    log std ratio of c = log sqrt(E[z^2] - E[z]^2) = log(sigma_target / sigma_source)

E is the mean over pixels and images, with all classes weighted equally. A network's running statistics describe its
pretraining images (Li et al. 2017), so the pretraining images need not be available.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

FULL_CLASS = 10
"""Least number of images with which a class has full weight; smaller classes are weighted by their size, because
their means are noisy."""

SMALLEST_RATIO = 0.01
"""Smallest ratio of standard deviations whose logarithm is taken: below it a channel counts as switched off."""


@dataclass(frozen=True)
class Moments:
    """Sums over a group of images of the values measured on each image; those of two groups can be added."""

    count: int
    """Number of images in the group."""
    channels: Tensor
    """Sums of E[z] and E[z^2] over the images, (2, channels), for the last two thirds of the batch-norm layers."""
    head: Tensor | None
    """Sums of the energy and the skewness of the logits, (2,); None if the network has no classification head."""

    def __add__(self, other: Self) -> "Moments":
        """Return the sums over both groups of images."""
        head = None if self.head is None or other.head is None else self.head + other.head
        return Moments(self.count + other.count, self.channels + other.channels, head)


class DomainProbe:
    """Sums of the moments of groups of images, collected while the images pass through a frozen network.

    The input of each batch-norm layer with running statistics is standardised with these statistics. The pretraining
    images themselves would have mean 0 and standard deviation 1 in each channel.
    """

    def __init__(self, network: nn.Module, has_source_head: bool = True) -> None:
        """Prepare to observe the batch-norm layers of `network`, and its logits if it has its pretrained head."""
        self.network = network
        self._has_source_head = has_source_head
        self.groups: dict[int, Moments] = {}
        """Sums of the moments, by the number of the group."""
        layers = [module for module in network.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))]
        layers = [layer for layer in layers if layer.running_mean is not None]
        # The first third of the layers is not used; its large activations would take most of the time.
        self._watched = layers[len(layers) // 3 :]
        self.layer_sizes = [0] * (len(layers) // 3) + [layer.num_features for layer in self._watched]
        """Number of channels of each batch-norm layer in order; 0 for layers that are not observed."""
        self._pass = threading.local()

    def add(self, images: Tensor, groups: Tensor) -> None:
        """Send a batch of normalised images forward, and add the moments of each image to the sums of its group.

        Args:
            images: normalised images (n, channels, h, w) on the network's device.
            groups: number of each image's group, such as its class, (n,).
        """
        training = self.network.training
        self.network.eval()
        try:
            with self.watching():
                self.collect(self.measure(images), groups)
        finally:
            self.network.train(training)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Return a context for calls of `measure` in any number of threads; the network must be in evaluation mode."""
        handles = [layer.register_forward_pre_hook(self._keep_input) for layer in self._watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def measure(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the moments of normalised images (n, channels, h, w), one row for each image.

        Returns:
            E[z] and E[z^2] of the channels (n, 2, channels), and the energy and the skewness of the logits (n, 2), or
            None if the network does not have its pretrained head.
        """
        self._pass.inputs = []
        logits = self.network(images)
        inputs: list[Tensor] = self._pass.inputs
        channels = torch.cat(inputs, dim=2) if inputs else torch.zeros(len(images), 2, 0)
        return channels, _head_moments(logits) if self._has_source_head else None

    def collect(self, moments: tuple[Tensor, Tensor | None], groups: Tensor) -> None:
        """Add the moments of images, as `measure` returns them, to the sums of their groups (n,)."""
        channels, head = moments
        for group in sorted(set(groups.tolist())):
            chosen = (groups == group).cpu()
            added = Moments(int(chosen.sum()), channels[chosen].sum(0), None if head is None else head[chosen].sum(0))
            self.groups[group] = self.groups[group] + added if group in self.groups else added

    def parts(self, classes: Sequence[Moments]) -> dict[str, float]:
        """Return the parts of the similarity from the moments of each class."""
        return combine_moments(classes, self.layer_sizes)

    def _keep_input(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        mean, variance, epsilon = layer.running_mean, layer.running_var, layer.eps
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        assert isinstance(epsilon, float)
        # Sums over pixels are several times faster with adjacent channels, the order of channels-last layout.
        pixels = arguments[0].permute(0, 2, 3, 1).flatten(1, 2).float()
        # On the CPU, because MPS has no float64.
        first = pixels.mean(1).cpu().double()
        second = pixels.square().mean(1).cpu().double()
        # E[z] = (E[x] - mu) s and E[z^2] = (E[x^2] - 2 mu E[x] + mu^2) s^2, with s = 1 / sqrt(var + eps); in float64,
        # as differences of large squares lose digits.
        mean, scale = mean.cpu().double(), (variance.cpu().double() + epsilon).rsqrt()
        standardised = (second - 2.0 * mean * first + mean.square()) * scale.square()
        self._pass.inputs.append(torch.stack([(first - mean) * scale, standardised], dim=1))


def measure_domain_parts(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the parts of the domain similarity (see `similarity`), with all classes weighted equally.

    A few hundred images are enough. They must be prepared as for the calibration: shorter side resized to 128 pixels,
    central 128 x 128 pixels, normalised with the network's mean and deviation, without augmentation. Autocast to
    bfloat16 changes little.

    Args:
        network: the pretrained network with its original head; it is not changed.
        batches: normalised images (n, channels, h, w) on the network's device, and their classes (n,), batch after
            batch.

    Returns:
        `late_vigour` and `middle_vigour` if the network has at least three batch-norm layers; `energy` and
        `logit_skewness` if it has a classification head.
    """
    probe = DomainProbe(network, has_source_head=getattr(network, "num_classes", None) != 0)
    for images, labels in batches:
        probe.add(images, labels)
    return probe.parts(list(probe.groups.values()))


def combine_moments(classes: Sequence[Moments], layer_sizes: Sequence[int]) -> dict[str, float]:
    """Return the parts of the similarity from the moments of each class.

    Args:
        classes: sums of each class.
        layer_sizes: number of channels of each batch-norm layer in order, 0 for layers that were not observed.
    """
    parts: dict[str, float] = {}
    # Weight of each image: a class of n images weighs min(n, FULL_CLASS).
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
    """Return the mean log std ratio of the middle third and of the last third of the layers.

    Args:
        channels: E[z] and E[z^2] of each channel, (2, channels).
        layer_sizes: number of channels of each layer in order.
    """
    mean, square = channels
    # sigma_target / sigma_source = sqrt(E[z^2] - E[z]^2); rounding can make the difference slightly negative.
    ratio = (square - mean.square()).clamp_min(0).sqrt().clamp_min(SMALLEST_RATIO).log()
    # Each layer counts equally, whatever its number of channels.
    layers = [float(part.mean()) for part in ratio.split(list(layer_sizes))]
    first, second = len(layers) // 3, 2 * len(layers) // 3
    middle, late = layers[first:second], layers[second:]
    return {"middle_vigour": sum(middle) / len(middle), "late_vigour": sum(late) / len(late)}


def _head_moments(logits: Tensor) -> Tensor | None:
    """Return the energy and the skewness of each image's logits, (n, 2); None unless there are 3 classes or more."""
    if logits.ndim != 2 or logits.shape[1] < 3:
        return None
    # Energy: log sum_k exp(l_k), the negative of the free energy of Liu et al. 2020.
    # Skewness: E[(l - mean)^3] / E[(l - mean)^2]^1.5.
    logits = logits.float().cpu().double()
    centred = logits - logits.mean(1, keepdim=True)
    skewness = centred.pow(3).mean(1) / centred.square().mean(1).clamp_min(1e-12).pow(1.5)
    return torch.stack([logits.logsumexp(1), skewness], dim=1)
