"""Send images forward through a network that is not trained, batch after batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.data.augmentation import Key
from finetune.data.batches import Images, normaliser, read_in_turn
from finetune.decide.evidence import ForwardSettings
from finetune.decide.preprocessing import Preprocessing
from finetune.device import autocast
from finetune.network.cpu import FoldedNorms, ThreadTeam
from finetune.progress import Progress, no_progress

Compute = Callable[[Any, Tensor], Tensor]
"""Function of a network and normalised images (n, 3, h, w) that returns one row for each image, (n, ...)."""


def logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the network's logits (n, num_classes) of normalised images (n, 3, h, w)."""
    output: Tensor = network(inputs)
    return output


class ForwardPass:
    """A forward pass of batches through a network that does not change between them; any thread may call it."""

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, settings: ForwardSettings, compute: Compute
    ) -> None:
        """Set the network to evaluation mode, and find the norms to fold in one pass of a blank image.

        Args:
            network: network on the device that it computes on.
            preprocessing: preprocessing of the network's input.
            settings: precision and layout.
            compute: function of the network and a batch.
        """
        self._device = next(network.parameters()).device
        self._precision = settings.precision
        normalise = normaliser(preprocessing, self._device, settings.layout)

        def of_pixels(pixels: Tensor) -> Tensor:
            return compute(network, normalise(pixels))

        self._compute = of_pixels
        network.eval()
        blank = torch.zeros(1, 3, preprocessing.image_size, preprocessing.image_size, dtype=torch.uint8)
        self._folded = FoldedNorms(lambda: self._compute(blank))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return `compute` of a batch of pixels (n, 3, h, w) uint8: one row for each image, (n, ...), on the CPU."""
        # Not inference mode: what a network keeps between passes (ConViT's positions) must serve its training.
        with torch.no_grad(), autocast(self._device, self._precision), self._folded:
            return self._compute(pixels).cpu()


def forward_batches(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    settings: ForwardSettings,
    compute: Compute,
    keys: Sequence[int] | Sequence[Key] | None = None,
) -> Iterator[Tensor]:
    """Yield `compute` of all images (or of those in `keys`) in order: one tensor (n, ...) for each batch, on the CPU.

    The network is set to evaluation mode.

    Args:
        network: network on the device that it computes on.
        images: the images, as prediction or training reads them.
        preprocessing: preprocessing of the network's input.
        settings: precision, layout, batch size and threads.
        compute: `logits`, the features of `recorded_features`, or another function of the network and a batch.
        keys: indices of images, or keys of views of them; all images by default.
    """
    device = next(network.parameters()).device
    batches = read_in_turn(images, device, settings.loader_workers, settings.batch_size, keys)
    with ThreadTeam(settings.parallel_parts, settings.num_threads) as team:
        send = ForwardPass(network, preprocessing, settings, compute)
        yield from team.map(lambda read: send(read()[0]), batches)


def forward_all(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    settings: ForwardSettings,
    compute: Compute,
    progress: Progress = no_progress,
    indices: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Return `compute` of all images (or of `indices`) in order, as float32 (n, ...)."""
    total = len(images) if indices is None else len(indices)
    results: list[NDArray[np.float32]] = []
    done = 0
    for output in forward_batches(network, images, preprocessing, settings, compute, indices):
        results.append(output.float().numpy())
        done += len(output)
        progress("predicting images", done, total)
    return np.concatenate(results) if results else np.zeros((0, 0), dtype=np.float32)
