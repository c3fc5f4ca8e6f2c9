"""Choose the device, and define the number formats and memory formats that networks run in."""

from contextlib import AbstractContextManager

import torch
from torch import nn

from finetune.recipe import Layout, Precision

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""PyTorch's number format for each precision."""

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
"""PyTorch's memory format for each layout."""


def best_device() -> torch.device:
    """Return the device on which this process runs networks: its CUDA device, else an Apple GPU (MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def to_layout(network: nn.Module, layout: Layout) -> None:
    """Give the weights of a network a layout in memory, in place, with the same strides whatever they had before.

    `Module.to` leaves a tensor as it is if both layouts describe it, as those of a 1 x 1 convolution. Its strides
    decide which kernels compute, and kernels round differently.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = torch.empty_like(tensor.data, memory_format=MEMORY_FORMATS[layout]).copy_(tensor.data)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Return the context in which the network computes with `precision`."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32")
