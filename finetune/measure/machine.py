"""Identify the machine: its name, whether it is busy, and the precisions and memory layouts worth timing on it."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.backends import mkldnn

from finetune.recipe import Layout, Precision

BUSY = 25.0
"""Processor load above which a machine counts as busy, in percent."""

FEW_CHANNELS = 8
"""Number of input channels from which a strided 1 x 1 convolution is safe in channels-last layout on a CPU."""

WATCHED_SECONDS = 0.2
"""Time for which the processor load is observed, in seconds."""


def device_name(device: torch.device) -> str:
    """Return a short name of the hardware: that of the accelerator, or the processor's architecture and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.machine()} GPU (MPS)"
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} {'thread' if threads == 1 else 'threads'}"


def machine_name(device: torch.device) -> str:
    """Return a description of everything that speed depends on in addition to the network: processor or accelerator,
    number of threads, operating system, version of PyTorch."""
    processor = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    return f"{device_name(device)}, {processor}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}"


def is_busy() -> bool:
    """Return whether other programs use much of this machine, so that speeds measured now do not hold later."""
    return bool(psutil.cpu_percent(interval=WATCHED_SECONDS) > BUSY)


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Return the precisions worth timing on a device, the probably fastest one first.

    On processors without instructions for bfloat16 PyTorch computes it in plain loops, which take 5 to 40 times as long
    as float32 (experiments/log.md, 2026-11-26): timing them would take minutes.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return ("float16", "float32")
    # Training in float16 needs a gradient scaler, which Accelerate has for CUDA alone.
    if device.type == "mps":
        return ("float32",)
    has_onednn = mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type == "cpu" and not (has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return ("float32",)
    return ("bfloat16", "float32")


def layouts(network: nn.Module, device: torch.device) -> tuple[Layout, ...]:
    """Return the memory layouts worth timing on a device, the probably fastest one first.

    For depthwise convolutions in channels-last layout on CUDA, cuDNN compiles kernels at their first use, for each
    layer, batch size and direction, and in every process. That takes 2 to 14 s for each network, more than most
    trainings gain (experiments/log.md, 2026-11-26).
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    # On a CPU, PyTorch 2.14 writes outside of its memory in the backward pass of strided 1 x 1 convolutions of few
    # channels in channels-last layout (FastViT's stem): the process dies.
    if device.type == "cpu" and any(
        found.kernel_size == (1, 1) and max(found.stride) > 1 and found.in_channels < FEW_CHANNELS
        for found in convolutions
    ):
        return ("contiguous",)
    if device.type == "cuda" and any(found.groups == found.in_channels > 1 for found in convolutions):
        return ("contiguous",)
    return ("channels_last", "contiguous")
