"""Send images forward through a network that is not trained, batch after batch."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.data.augmentation import Key
from finetune.data.batches import FileBatch, ImageFiles, Images, normaliser, read_files_in_turn, read_in_turn
from finetune.data.kinds import Kind
from finetune.decide.evidence import ForwardSettings
from finetune.decide.preprocessing import Preprocessing
from finetune.device import autocast
from finetune.network.cpu import FoldedNorms, ThreadTeam
from finetune.progress import Progress, no_progress

Compute = Callable[[Any, Tensor], Tensor]
"""Function of a network and normalised images (n, channels, h, w) that returns one row for each image, (n, ...)."""


@dataclass(frozen=True, slots=True)
class FileOutputs:
    """Outputs of a network for the image files of a chunk."""

    rows: NDArray[np.float32]
    """A row for each file that can be read, (k, views, ...): of the image and, with two views, of its mirrored copy."""
    reasons: list[str | None]
    """For each file, the reason why it cannot be read, or None."""
    kinds: list[Kind]
    """Kinds of the files that can be read."""


def logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the network's logits (n, num_classes) of normalised images (n, channels, h, w)."""
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
        side = preprocessing.image_size
        blank = torch.zeros(1, preprocessing.num_channels, side, side, dtype=torch.uint8)
        self._folded = FoldedNorms(lambda: self._compute(blank))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return `compute` of a batch of pixels (n, channels, h, w) uint8: a row for each image, (n, ...), on the
        CPU."""
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


def forward_files(
    network: nn.Module,
    preprocessing: Preprocessing,
    settings: ForwardSettings,
    compute: Compute,
    chunks: Iterator[list[str]],
    mirrored: bool = False,
) -> Iterator[FileOutputs]:
    """Yield `compute` of image files, chunk after chunk. The next files are read while a batch is computed.

    No batch has files of two chunks, so that the outputs of a chunk do not depend on the other chunks. The network is
    set to evaluation mode.

    Args:
        network: network on the device that it computes on.
        preprocessing: preprocessing of the network's input.
        settings: precision, layout, batch size, threads and worker processes.
        compute: function of the network and a batch of normalised images.
        chunks: paths of the files of each chunk.
        mirrored: whether to compute the mirrored copy of each image, too.
    """
    device = next(network.parameters()).device
    forward = ForwardPass(network, preprocessing, settings, compute)
    waiting: deque[int] = deque()
    """Number of files of each chunk of which some are not computed."""

    def batches() -> Iterator[list[str]]:
        for chunk in chunks:
            waiting.append(len(chunk))
            yield from (chunk[at : at + settings.batch_size] for at in range(0, len(chunk), settings.batch_size))

    def send(read: Callable[[], FileBatch]) -> tuple[NDArray[np.float32] | None, list[str | None], list[Kind]]:
        pixels, reasons, kinds = read()
        if not len(pixels):
            return None, reasons, kinds
        views = (pixels, pixels.flip(-1)) if mirrored else (pixels,)
        return torch.stack([forward(view).float() for view in views], dim=1).numpy(), reasons, kinds

    rows: list[NDArray[np.float32]] = []
    reasons: list[str | None] = []
    kinds: list[Kind] = []
    with ThreadTeam(settings.parallel_parts, settings.num_threads, apart=True) as team:
        parts = batches()
        first = list(islice(parts, 3))
        # Without workers, one or two batches are read in less time than workers need to start.
        workers = settings.loader_workers if len(first) > 2 else 0
        read = read_files_in_turn(ImageFiles(preprocessing), device, workers, chain(first, parts))
        for made, why, own in team.map(send, read):
            rows += [] if made is None else [made]
            reasons += why
            kinds += own
            if len(reasons) == waiting[0]:
                yield FileOutputs(np.concatenate(rows) if rows else np.zeros((0, 1, 0), np.float32), reasons, kinds)
                waiting.popleft()
                rows, reasons, kinds = [], [], []
