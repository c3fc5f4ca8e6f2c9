"""Define what all contenders of the benchmark share: the network, its weights, and the form of the answers."""

from collections.abc import Iterable
from typing import Any

import torch

from finetune.network.weights import create_embedded

NETWORK = "tf_efficientnet_lite0"
"""timm's name of the network."""

MEAN = STD = (0.5, 0.5, 0.5)
"""Mean and standard deviation of pixels (0 to 1) that the network's pretrained weights expect."""

BATCH = 32
"""Images in a batch."""

CPU = torch.device("cpu")


def pretrained(num_classes: int) -> Any:  # noqa: ANN401  (timm's networks have no type)
    """Return the network with its pretrained weights and a new head, or its own head of 1,000 classes."""
    network: Any = create_embedded()[0]
    if num_classes != 1000:
        network.reset_classifier(num_classes)
    return network


def by_path(paths: Iterable[str], right: Iterable[Any]) -> str:
    """Return 1 or 0 for each image in the order of the paths, so that contenders can be compared image by image."""
    return "".join(str(int(is_right)) for _, is_right in sorted(zip(paths, right, strict=True)))
