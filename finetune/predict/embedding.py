"""Compute the features of new images: the inputs of the head of a trained model, or of a pretrained network."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import nn

from finetune.data import Unreadable
from finetune.decide.evidence import ForwardSettings
from finetune.decide.preprocessing import Preprocessing
from finetune.device import best_device, to_layout
from finetune.errors import ModelError
from finetune.network.backbone import native_preprocessing, network_image_size
from finetune.network.forward import forward_files
from finetune.network.head import give_head, has_head, recorded_features
from finetune.network.weights import binding_licence, create_pretrained, resolve_model
from finetune.predict.files import FileRows, remembered
from finetune.predict.rows import Columns

CPU_BATCH, ACCELERATOR_BATCH = 16, 128
"""Number of images in a batch of a pretrained network, which is not timed before."""

MOST_WORKERS = 8
"""Largest number of processes that read images for an accelerator."""


class Embedder(Protocol):
    """A model that computes features of image files."""

    def features(self, chunks: Iterator[list[str]]) -> Iterator[FileRows]:
        """Yield the inputs of the head, float32 (k, width), for the files of each chunk that can be read."""
        ...


@dataclass(frozen=True, kw_only=True)
class PretrainedNetwork:
    """A network with its pretrained weights, which predicts no classes."""

    network: nn.Module
    """The network, on its device."""
    preprocessing: Preprocessing
    """Preprocessing of its pretraining."""
    settings: ForwardSettings
    """Settings of the forward passes."""

    def features(self, chunks: Iterator[list[str]]) -> Iterator[FileRows]:
        """Yield the inputs of the head, float32 (k, width), for the files of each chunk that can be read."""
        with recorded_features(self.network) as compute:
            for found in forward_files(self.network, self.preprocessing, self.settings, compute, chunks):
                yield FileRows(found.rows[:, 0], found.reasons, found.kinds)


def pretrained_network(name: str) -> tuple[PretrainedNetwork, str]:
    """Return timm's network of this name with its pretrained weights, and the licence of the weights if it may restrict
    their use, else an empty text.

    Raises:
        ModelError: timm does not know the name, or the weights cannot be found.
    """
    device = best_device()
    name = resolve_model(name, device.type != "cpu")
    network, _ = create_pretrained(name, None)
    if not has_head(network):  # the features are the inputs of a head
        give_head(network, 1)
    is_cpu = device.type == "cpu"
    settings = ForwardSettings(
        precision="float32",
        layout="channels_last" if is_cpu else "contiguous",
        batch_size=CPU_BATCH if is_cpu else ACCELERATOR_BATCH,
        parallel_parts=torch.get_num_threads() if is_cpu else 1,
        num_threads=1,
        loader_workers=MOST_WORKERS if device.type == "cuda" else 0,
    )
    network = network.to(device).eval()
    to_layout(network, settings.layout)
    preprocessing = native_preprocessing(network, network_image_size(name))
    return PretrainedNetwork(network=network, preprocessing=preprocessing, settings=settings), binding_licence(name)


def embed_files(
    model: Embedder, chunks: Iterator[list[str]], dtype: Literal["float16", "float32"]
) -> Iterator[tuple[Columns, list[Unreadable]]]:
    """Yield, for the image files of each chunk, a table with a row for each that can be read, and the other files.

    Columns: path, and features, a matrix (k, width) with a row for each image.

    Args:
        model: the model that computes the features.
        chunks: paths of the files of each chunk.
        dtype: type of the numbers.

    Raises:
        ModelError: a feature is too large for the type.
    """
    waiting: deque[list[str]] = deque()
    for found in model.features(remembered(chunks, waiting)):
        paths, left_out = found.divided(waiting.popleft())
        largest = float(np.abs(found.rows).max(initial=0.0))
        if largest > np.finfo(dtype).max:
            raise ModelError(
                f"features reach {largest:.3g}, but the largest number of {dtype} is {np.finfo(dtype).max:.5g}; give "
                f"--dtype float32"
            )
        yield {"path": paths, "features": found.rows.astype(dtype)}, left_out
