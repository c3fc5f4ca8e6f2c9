"""Compute the frozen features by which an audit compares images, or read them from the cache."""

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.auditing.images import AuditedImages
from finetune.data import ImageSplits, Pixels
from finetune.data.batches import PlainImages
from finetune.decide.evidence import ForwardSettings
from finetune.device import MEMORY_FORMATS
from finetune.measure.machine import layouts
from finetune.measure.network import load_network
from finetune.network.head import find_head, give_head
from finetune.network.outputs import digest_weights, frozen_features
from finetune.progress import Progress
from finetune.recipe import Recipe

BATCH_SIZE = 16
"""Number of images in a batch of a forward pass."""


def compute_features(
    data: str, splits: ImageSplits, images: AuditedImages, progress: Progress
) -> tuple[NDArray[np.float32], Pixels]:
    """Return the frozen features of all images (n_images, width), and their pixels.

    Args:
        data: the data, as given.
        splits: its splits.
        images: the images of all splits.
        progress: called with the number of images done.
    """
    network, about = load_network(Recipe(data=data, strategy="linear_probe"), splits)
    pixels = Pixels(images.tables, about.preprocessing.shorter_side, splits.reading)
    pixels.cache(progress)
    device = next(network.parameters()).device
    weights = digest_weights(network, leave_out=find_head(network).names)
    give_head(network, len(images.class_names))
    layout = layouts(network, device)[0]
    network = network.to(device).to(memory_format=MEMORY_FORMATS[layout])
    settings = ForwardSettings(
        precision="float32",
        layout=layout,
        batch_size=BATCH_SIZE,
        parallel_parts=torch.get_num_threads() if device.type == "cpu" else 1,
        num_threads=1,
        loader_workers=0,
    )
    plain = PlainImages(pixels, about.preprocessing)
    return frozen_features(network, plain, about.preprocessing, settings, weights, progress).numpy(), pixels
