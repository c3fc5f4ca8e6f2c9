"""One pass of images through a network that is not trained: pooled features, logits, activations at a boundary."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.batches import PlainImages, make_loader, normaliser
from finetune.evidence import Precision
from finetune.preprocessing import Preprocessing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def no_progress(_task: str, _done: int, _total: int) -> None:
    """Say nothing."""


def best_device() -> torch.device:
    """Return the device of this process that networks run on."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Return the context in which the network computes with `precision`."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32")


def pooled(network: Any, inputs: Tensor) -> Tensor:  # noqa: ANN401  (timm's networks share methods, but no type)
    """Return what the head of a timm network sees: (n, width)."""
    features: Tensor = network.forward_head(network.forward_features(inputs), pre_logits=True)
    return features


def logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the network's output: (n, num_classes)."""
    output: Tensor = network(inputs)
    return output


def forward_all(
    network: nn.Module,
    images: PlainImages,
    preprocessing: Preprocessing,
    precision: Precision,
    compute: Callable[[nn.Module, Tensor], Tensor],
    progress: Progress = no_progress,
    members: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Return `compute` (`pooled` or `logits`) of every image (or of `members`) in order, as float32 (n, ...).

    The network is put into evaluation mode.
    """
    device = next(network.parameters()).device
    normalise = normaliser(preprocessing, device)
    network.eval()
    total = len(images) if members is None else len(members)
    results: list[NDArray[np.float32]] = []
    done = 0
    for pixels, _ in make_loader(images, device, members=members):
        with torch.inference_mode(), autocast(device, precision):
            results.append(compute(network, normalise(pixels)).float().cpu().numpy())
        done += len(pixels)
        progress("looking at images", done, total)
    return np.concatenate(results) if results else np.zeros((0, 0), dtype=np.float32)
