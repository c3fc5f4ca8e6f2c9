"""Define what all contenders of the benchmark share: the network, its weights, and the format of the results."""

from collections.abc import Iterable
from typing import Any

import torch

from finetune.network.weights import create_embedded

NETWORK = "tf_efficientnet_lite0"
"""timm's name of the network."""

MEAN = STD = (0.5, 0.5, 0.5)
"""Mean and standard deviation of pixels (0 to 1) that the network's pretrained weights expect."""

BATCH = 32
"""Number of images in a batch."""

CPU = torch.device("cpu")
"""Device of all contenders."""


def pretrained(num_classes: int) -> Any:  # noqa: ANN401  (timm's networks have no type)
    """Return the network with its pretrained weights and a new head, for 1,000 classes with its own, for 0 without."""
    network: Any = create_embedded()[0]
    if num_classes != 1000:
        network.reset_classifier(num_classes)
    return network


def by_path(paths: Iterable[str], right: Iterable[Any]) -> str:
    """Return a text with 1 (right) or 0 (wrong) for each image in the order of the sorted paths.

    In this order, contenders can be compared image by image.
    """
    return "".join(str(int(is_right)) for _, is_right in sorted(zip(paths, right, strict=True)))
