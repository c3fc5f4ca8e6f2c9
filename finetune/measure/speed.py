"""Measure the speed of a network on this machine, in images per second: of forward passes, and of each strategy."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from finetune.data.augmentation import Key
from finetune.data.batches import VariedImages, make_loader, normaliser
from finetune.decide.evidence import ForwardSettings, MachineSpeed
from finetune.decide.preprocessing import Preprocessing
from finetune.device import MEMORY_FORMATS, autocast
from finetune.errors import ModelError
from finetune.measure.machine import device_name, layouts, precisions
from finetune.measure.step_speed import (
    ERROR_IMAGES,
    LARGEST_ERROR,
    LEAD,
    parallel_parts,
    time_full,
    time_norm_tuning,
    time_partial,
)
from finetune.measure.timing import NOTHING_YET, Rate, time_rate
from finetune.network.cpu import FoldedNorms, ThreadTeam
from finetune.network.forward import forward_batches, logits
from finetune.network.head import recorded_features
from finetune.recipe import Layout, Precision

OVERLAPPED = 1e9
"""Speed of reading, in images per second, that is recorded where reading adds no time to the computation."""

MOST_WORKERS = 8
"""Largest number of processes that read images for an accelerator."""

FORWARD_BATCHES = (8, 16, 32, 64)
"""Batch sizes of forward passes that are timed, in images; those on an accelerator are four times as large."""

MICRO_BATCH = 32
"""Largest number of images of a training step that a CPU computes at once: larger numbers are not faster, but need more
memory."""

READ_BATCHES = 4
"""Number of batches that are read and sent forward to measure the cost of reading."""

TRAINING_SECONDS = 0.8
"""Approximate time that a CPU may take to time all training steps, in seconds. A slow network is timed with fewer
images at once: the rate of its steps hardly depends on their number."""

TRAINING_PASSES = 32
"""Approximate number of forward passes that take as long as all timed training steps: those of `full` with and without
parallel parts, and those of `partial` at two depths."""

LEAST_TIMED = 8
"""Smallest number of images with which a training step is timed."""


def measure_speed(
    network: nn.Module,
    preprocessing: Preprocessing,
    batch_size: int,
    depths: Sequence[int],
    images: VariedImages,
    with_norms: bool = True,
) -> MachineSpeed:
    """Return the fastest settings for `network` on this machine, and median speeds in images per second.

    Precision, layout, batch size and parallel parts are tried one after another, each with the best of those before.
    Settings far slower than the best are timed once; a precision that changes features or gradients is not used. The
    precision and the parallel parts that are fastest for `full` are those of the other strategies. A batch that does
    not fit into an accelerator's memory is halved until it fits.

    Args:
        network: the network, on its device; it is left in the fastest layout.
        preprocessing: preprocessing of the network.
        batch_size: number of images of a training step.
        depths: numbers of trained last stages with which `partial` is timed.
        images: training images, to measure the cost of reading and the error of each precision.
        with_norms: whether `norm_tuning` is timed; else it is taken to be as fast as `full`.

    Raises:
        ModelError: training on a single image does not fit into the accelerator's memory.
    """
    device = next(network.parameters()).device
    threads = torch.get_num_threads()
    name = device_name(device)
    micro_batch = min(batch_size, MICRO_BATCH) if device.type == "cpu" else batch_size
    # Several OpenMP threads are used only where they are timed: alone they are a little faster than one, but with
    # another program on the machine they wait for each other and take many times as long.
    with ThreadTeam(1, 1 if device.type == "cpu" else threads):
        while micro_batch:
            with suppress(torch.OutOfMemoryError):
                measured = _measure_speed(network, preprocessing, micro_batch, depths, images, threads, with_norms)
                return measured.changed(device=name)
            torch.cuda.empty_cache()
            micro_batch //= 2
    raise ModelError(
        f"training the network on one image of {preprocessing.image_size} px does not fit into the memory of {name}; "
        f"give a smaller --image-size or another --model"
    )


def _measure_speed(
    network: nn.Module,
    preprocessing: Preprocessing,
    micro_batch: int,
    depths: Sequence[int],
    images: VariedImages,
    threads: int,
    with_norms: bool,
) -> MachineSpeed:
    """Return the speeds of forward passes, of reading and of each strategy, with `micro_batch` images at once."""
    device = next(network.parameters()).device
    allowed = layouts(network, device)
    network.to(memory_format=MEMORY_FORMATS[allowed[0]])
    real = _real_batch(images, micro_batch, preprocessing, device, allowed[0])
    settings, rate, error = _fastest_forward(network, real, threads, allowed)
    network.to(memory_format=MEMORY_FORMATS[settings.layout])
    count = micro_batch if device.type != "cpu" else _affordable_images(rate, micro_batch)
    inputs = real[:count].contiguous(memory_format=MEMORY_FORMATS[settings.layout])
    reading = OVERLAPPED
    if device.type == "cpu":
        reading = _time_reading(network, images, preprocessing, settings, rate)
    full = time_full(network, inputs, threads)
    norms = time_norm_tuning(network, inputs, threads, full) if with_norms else full.changed(strategy="norm_tuning")
    training = [
        norms,
        *(time_partial(network, inputs, stages, settings, threads, full) for stages in depths),
        full,
        full.changed(strategy="scratch"),
    ]
    for parameter in network.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    return MachineSpeed(
        device=device_name(device),
        device_kind=device.type,
        num_threads=threads,
        forward=settings,
        forward_images_per_second=rate,
        forward_error=error,
        reading_images_per_second=reading,
        micro_batch=micro_batch,
        training=tuple(training),
    )


def _real_batch(
    images: VariedImages, count: int, preprocessing: Preprocessing, device: torch.device, layout: Layout
) -> Tensor:
    """Return `count` normalised images (count, 3, h, w), with several views of each if the set has fewer images."""
    keys = [Key(number % len(images), number // len(images)) for number in range(count)]
    pixels, _ = next(iter(make_loader(images, device, 0, batch_size=count, keys=keys)))
    return normaliser(preprocessing, device, layout)(pixels)


def _affordable_images(rate: float, micro_batch: int) -> int:
    """Return the number of images with which a CPU times its training steps: a power of two, or `micro_batch`.

    >>> _affordable_images(400.0, 32), _affordable_images(50.0, 32), _affordable_images(9_000.0, 32)
    (16, 8, 32)

    Args:
        rate: speed of forward passes, in images per second.
        micro_batch: number of images that a training step computes at once.
    """
    # n images take TRAINING_PASSES * n / rate seconds.
    affordable = int(TRAINING_SECONDS * rate / TRAINING_PASSES)
    return min(micro_batch, max(LEAST_TIMED, 1 << max(affordable, 1).bit_length() - 1))


def _fastest_forward(
    network: nn.Module, real: Tensor, threads: int, allowed_layouts: Sequence[Layout]
) -> tuple[ForwardSettings, float, float]:
    """Return the fastest settings of forward passes, their images per second, and the error of their precision.

    The network and the images must be in the first of the allowed layouts.
    """
    device = real.device
    network.eval()
    errors = {precision: _feature_error(network, real[:ERROR_IMAGES], precision) for precision in precisions(device)}
    allowed = [precision for precision in errors if errors[precision] <= LARGEST_ERROR]
    batches = [size if device.type == "cpu" else 4 * size for size in FORWARD_BATCHES]
    counts = parallel_parts(device, threads)
    best = ForwardSettings(
        precision=allowed[0],
        layout=allowed_layouts[0],
        batch_size=batches[0],
        parallel_parts=counts[0],
        num_threads=threads // counts[0],
        loader_workers=0 if device.type != "cuda" else min(MOST_WORKERS, os.cpu_count() or 1),
    )
    rate = NOTHING_YET

    def is_faster(**change: object) -> bool:
        """Time the best settings with a change, and keep it if it is faster."""
        nonlocal best, rate
        settings, measured = best.changed(**change), NOTHING_YET
        with suppress(torch.OutOfMemoryError):  # a smaller batch may fit
            measured = _time_forward(network, real.shape[1:], settings, device, rate)
        lead = LEAD if settings.parallel_parts < best.parallel_parts else 1.0
        if measured.fastest <= lead * rate.fastest:
            return False
        best, rate = settings, measured
        return True

    # One setting is searched after another, instead of all combinations. The rate has one maximum along batch sizes.
    for precision in allowed:
        is_faster(precision=precision)
    for layout in allowed_layouts[1:]:
        is_faster(layout=layout)
    for size in batches[1:]:
        if not is_faster(batch_size=size):
            break
    for count in counts[1:]:
        is_faster(parallel_parts=count, num_threads=threads // count)
    if rate is NOTHING_YET:
        raise torch.OutOfMemoryError
    return best, rate.usual, errors[best.precision]


def _time_forward(
    network: nn.Module, shape: torch.Size, settings: ForwardSettings, device: torch.device, best: Rate
) -> Rate:
    """Return the speed of forward passes of random images of a shape (channels, h, w) with these settings."""
    memory_format = MEMORY_FORMATS[settings.layout]
    network.to(memory_format=memory_format)
    inputs = torch.randn((settings.batch_size, *shape), generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(device).contiguous(memory_format=memory_format)

    folded = FoldedNorms(lambda: network(inputs[:1]))

    def send(batch: Tensor) -> None:
        with torch.no_grad(), autocast(device, settings.precision), folded:
            network(batch)

    def work() -> None:
        for _ in team.map(send, [inputs] * settings.parallel_parts):
            pass

    with ThreadTeam(settings.parallel_parts, settings.num_threads) as team:
        return time_rate(work, settings.parallel_parts * settings.batch_size, device, best)


def _feature_error(network: nn.Module, images: Tensor, precision: Precision) -> float:
    """Return the error of features in a precision against float32, as a share of the features' variance over images."""
    if precision == "float32":
        return 0.0
    with torch.no_grad(), recorded_features(network) as features:
        exact = features(network, images).float()
        with autocast(images.device, precision), FoldedNorms(lambda: network(images[:1])):
            change = features(network, images).float() - exact
    # sum |d_i - mean d|^2 / sum |f_i - mean f|^2: a shift that all images share does not matter to a classifier.
    total = (exact - exact.mean(0)).square().sum().clamp_min(1e-12)
    return round(float((change - change.mean(0)).square().sum() / total), 4)


def _time_reading(
    network: nn.Module, images: VariedImages, preprocessing: Preprocessing, settings: ForwardSettings, rate: float
) -> float:
    """Return the speed of reading alone, in images per second, from the time that it adds to forward passes."""
    count = READ_BATCHES * settings.batch_size
    keys = [Key(number % len(images), number // len(images)) for number in range(count)]
    start = time.perf_counter()
    for _ in forward_batches(network, images, preprocessing, settings, logits, keys):
        pass
    # With n images in t seconds and a forward rate r, reading adds t - n / r seconds.
    added = time.perf_counter() - start - count / rate
    return round(count / added, 1) if added > 0 else OVERLAPPED
