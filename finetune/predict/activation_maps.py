"""Show which parts of an image a prediction rests on: class activation maps."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BATCH = 16
"""Number of images whose gradients are computed at once."""


class _Features(nn.Module):
    """The part of a timm network below its head, as a module of its own, at whose output gradients can be taken."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network, whose parameters stay its own."""
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the last feature map of normalised images (n, channels, h, w)."""
        features: Tensor = self.network.forward_features(inputs)  # type: ignore[operator]
        return features


def class_activation_maps(network: Any, inputs: Tensor, classes: NDArray[np.int64]) -> NDArray[np.float32] | None:  # noqa: ANN401  (timm's networks share methods, but no type)
    """Return for each image how much each place raises the logit of a class, (n, rows, columns) in 0 .. 1.

    Each map is divided by its largest value; a place that lowers the logit has 0. None: the network has no map of
    places below its head.

    Args:
        network: a timm network in evaluation mode.
        inputs: normalised images (n, channels, h, w), on the network's device.
        classes: class of each image whose logit is explained, (n,).
    """
    below = _Features(network)
    layer = _find_layer(network, below)
    if layer is None:
        return None
    from captum.attr import LayerGradientXActivation  # slow to import, and a run may draw no map

    method = LayerGradientXActivation(lambda images: network.forward_head(below(images)), layer)
    parts = []
    for start in range(0, len(inputs), BATCH):
        targets = torch.from_numpy(classes[start : start + BATCH]).to(inputs.device)
        found = method.attribute(inputs[start : start + BATCH], target=targets)
        grid = _to_grid(found.detach().float().cpu(), network) if isinstance(found, Tensor) else None
        if grid is None:
            return None
        parts.append(grid)
    # HiResCAM (Draelos & Carin 2020): map = ReLU(sum over channels of gradient x activation). For a network whose head
    # is a mean over places and a linear layer, this is Grad-CAM (Selvaraju et al. 2017).
    maps = torch.cat(parts).clamp(min=0.0)
    return (maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)).numpy()


def _find_layer(network: Any, below: nn.Module) -> nn.Module | None:  # noqa: ANN401
    """Return the layer at whose output gradients are taken, or None if the network has none that is known.

    It is the last feature map, except where the head reads the class token alone: the other tokens of the last map then
    have no gradient, but those at the input of the last attention have one.
    """
    if getattr(network, "num_prefix_tokens", 0) == 0 or getattr(network, "global_pool", "") != "token":
        return below
    found: nn.Module | None = getattr(network.blocks[-1], "norm1", None)
    return found


def _to_grid(products: Tensor, network: Any) -> Tensor | None:  # noqa: ANN401
    """Return the sums over the channels, (n, rows, columns), of gradient x activation in a network's own layout."""
    if products.ndim == 4:
        return products.sum(dim=-1 if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC") else 1)
    if products.ndim != 3:
        return None
    tokens = products[:, getattr(network, "num_prefix_tokens", 0) :].sum(dim=-1)
    side = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(-1, side, side) if side * side == tokens.shape[1] else None
