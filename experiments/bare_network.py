"""Measure the speed limits of any toolkit: bare decoding, and the bare network on tensors that are ready."""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from experiments.benchmark_network import BATCH, CPU, pretrained
from experiments.rows import Row
from finetune.measure.machine import precisions
from finetune.network.cpu import quick_gradients

Gradients = Callable[[], AbstractContextManager[Any]]
"""Function that returns a context for computing gradients: this toolkit's quick ones, or PyTorch's (`nullcontext`)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the network's computation."""

    precision: str
    """Precision of the computation: `float32` or `bfloat16`."""
    layout: torch.memory_format
    """Memory format of weights and images."""
    parallel_parts: int
    """Number of batches that are computed in parallel, each on an equal part of the threads."""
    batch_size: int
    """Number of images in each batch."""


def measure_limits(data: Path, image_size: int) -> Row:
    """Return the images per second of decoding alone, and of forward passes and training steps alone.

    The rates of the network are the highest over float32 and bfloat16 (if the processor has it), both memory layouts,
    several batch sizes, and one batch on all cores or one batch on each core. The `tutorial` rates are those of
    float32 in PyTorch's default layout. The `unaided` training rate is that with PyTorch's gradients of convolutions.
    """
    cores = os.cpu_count() or 1
    files = [str(file) for file in sorted((data / "train").rglob("*.*"))]
    decoding = max(rate(partial(_decode_all, files, image_size, threads), len(files)) for threads in (1, cores))
    network = pretrained(12)
    forward, training, unaided, larger = [], [], [], []
    for precision in precisions(CPU):
        for layout in (torch.channels_last, torch.contiguous_format):
            for parts in (1, cores):
                for batch in (16, 32):
                    settings = Settings(precision, layout, parts, batch)
                    forward.append(_network_rate(network, image_size, settings, nullcontext, False))
                settings = Settings(precision, layout, parts, BATCH // parts)
                unaided.append(_network_rate(network, image_size, settings, nullcontext, True))
                training.append(_network_rate(network, image_size, settings, _quick, True))
                settings = Settings(precision, layout, parts, 2 * BATCH // parts)
                larger.append(_network_rate(network, image_size, settings, _quick, True))
    tutorial = Settings("float32", torch.contiguous_format, 1, BATCH)
    return {
        "decoding": decoding,
        "forward": max(forward),
        "training": max(*training, *unaided),
        "unaided_training": max(unaided),
        "larger_training": max(larger),
        "tutorial_forward": _network_rate(network, image_size, tutorial, nullcontext, False),
        "tutorial_training": _network_rate(network, image_size, tutorial, nullcontext, True),
    }


def bare_training(image_size: int) -> float:
    """Return the images per second of the bare forward and backward pass at this moment, in the fastest precision.

    The speed of a machine that other programs use, too, changes within minutes, so it is measured before and after each
    training.
    """
    cores = os.cpu_count() or 1
    return max(
        _network_rate(
            pretrained(12),
            image_size,
            Settings(precision, torch.channels_last, cores, BATCH // cores),
            _quick,
            True,
        )
        for precision in precisions(CPU)
    )


def rate(work: Callable[[], object], count: int, repetitions: int = 5) -> float:
    """Return the median rate in items per second of a function that works on `count` items, after an untimed call."""
    work()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def _decode_all(files: list[str], image_size: int, threads: int) -> None:
    """Decode, resize and crop images on a number of threads."""

    def decode(file: str) -> NDArray[np.uint8]:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        side = int(image_size / 0.875)
        scale = side / min(rgb.size)
        rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.BICUBIC)
        left, top = (rgb.width - image_size) // 2, (rgb.height - image_size) // 2
        return np.asarray(rgb.crop((left, top, left + image_size, top + image_size)))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, files))


def _quick() -> AbstractContextManager[Any]:
    return quick_gradients(CPU)


def _network_rate(network: nn.Module, image_size: int, settings: Settings, gradients: Gradients, trains: bool) -> float:
    """Return the images per second of forward passes, or of forward and backward passes, with frozen batch norms."""
    batch, parts = settings.batch_size, settings.parallel_parts
    network.to(memory_format=settings.layout).eval()
    images = torch.randn(batch, 3, image_size, image_size).contiguous(memory_format=settings.layout)
    labels = torch.zeros(batch, dtype=torch.long)
    parameters = list(network.parameters())

    def work() -> None:
        with gradients(), torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
            if not trains:
                with torch.inference_mode():
                    network(images)
                return
            loss = nn.functional.cross_entropy(network(images).float(), labels)
        torch.autograd.grad(loss, parameters)

    if parts == 1:
        return rate(work, batch)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(max(1, threads // parts),)) as pool:
        return rate(lambda: list(pool.map(lambda _: work(), range(parts))), parts * batch)
