"""Measure the speed of a network on this machine, in images per second: of forward passes, and of each strategy."""

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from finetune.data.augmentation import Key
from finetune.data.batches import VariedImages, make_loader, normaliser
from finetune.decide.evidence import ForwardSettings, MachineSpeed, TrainingSpeed
from finetune.decide.preprocessing import Preprocessing
from finetune.device import MEMORY_FORMATS, autocast
from finetune.errors import ModelError
from finetune.measure.machine import device_name, layouts, precisions
from finetune.measure.timing import NOTHING_YET, Rate, time_rate
from finetune.network.backbone import find_norms, find_stages
from finetune.network.cpu import FoldedNorms, ThreadTeam, quick_gradients
from finetune.network.forward import forward_batches, logits
from finetune.network.head import find_head, recorded_features
from finetune.network.tail import cut
from finetune.recipe import Layout, Precision, Strategy

LEAD = 1.15
"""Ratio of speeds above which one part that all threads compute is preferred to several parallel parts, one on each
thread. Parallel parts have advantages that are not timed: they overlap with reading images, and their threads do not
wait for each other where another program uses a core."""

OVERLAPPED = 1e9
"""Speed of reading, in images per second, that is recorded where reading adds no time to the computation."""

MOST_WORKERS = 8
"""Largest number of processes that read images for an accelerator."""

LARGEST_ERROR = 0.02
"""Largest error of a precision against float32, as a share of the features' variance and as 1 - cosine of the
gradients: the accuracy of a probe stays the same (experiments/log.md, 2026-11-25)."""

FORWARD_BATCHES = (8, 16, 32, 64)
"""Batch sizes of forward passes that are timed, in images; those on an accelerator are four times as large."""

MICRO_BATCH = 32
"""Largest number of images of a training step that a CPU computes at once: larger numbers are not faster, but need more
memory."""

READ_BATCHES = 6
"""Number of batches that are read and sent forward to measure the cost of reading."""


def measure_speed(
    network: nn.Module, preprocessing: Preprocessing, batch_size: int, depths: Sequence[int], images: VariedImages
) -> MachineSpeed:
    """Return the fastest settings for `network` on this machine, and median speeds in images per second.

    Precision, layout, batch size and parallel parts are tried one after another, each with the best of those before.
    Settings far slower than the best are timed once; a precision that changes features or gradients is not used. A
    batch that does not fit into an accelerator's memory is halved until it fits.

    Args:
        network: the network, on its device; it is left in the fastest layout.
        preprocessing: preprocessing of the network.
        batch_size: number of images of a training step.
        depths: numbers of trained last stages with which `partial` is timed.
        images: training images, to measure the cost of reading and the error of each precision.

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
                measured = _measure_speed(network, preprocessing, micro_batch, depths, images, threads)
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
) -> MachineSpeed:
    """Return the speeds of forward passes, of reading and of each strategy, with `micro_batch` images at once."""
    device = next(network.parameters()).device
    allowed = layouts(network, device)
    network.to(memory_format=MEMORY_FORMATS[allowed[0]])
    real = _real_batch(images, micro_batch, preprocessing, device, allowed[0])
    settings, rate, error = _fastest_forward(network, preprocessing.image_size, real, threads, allowed)
    network.to(memory_format=MEMORY_FORMATS[settings.layout])
    inputs = real.contiguous(memory_format=MEMORY_FORMATS[settings.layout])
    reading = OVERLAPPED
    if device.type == "cpu":
        reading = _time_reading(network, images, preprocessing, settings, rate)
    training = [
        _time_norm_tuning(network, inputs, threads),
        *(_time_partial(network, inputs, stages, settings, threads) for stages in depths),
        _time_full(network, inputs, threads),
    ]
    training.append(training[-1].changed(strategy="scratch"))
    for parameter in network.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    return MachineSpeed(
        device=device_name(device),
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


def _parallel_parts(device: torch.device, threads: int) -> tuple[int, ...]:
    """Return the numbers of parallel parts worth timing: one for each thread, and one."""
    return (threads, 1) if device.type == "cpu" and threads > 1 else (1,)


def _fastest_forward(
    network: nn.Module, image_size: int, real: Tensor, threads: int, allowed_layouts: Sequence[Layout]
) -> tuple[ForwardSettings, float, float]:
    """Return the fastest settings of forward passes, their images per second, and the error of their precision.

    The network and the images must be in the first of the allowed layouts.
    """
    device = real.device
    network.eval()
    errors = {precision: _feature_error(network, real, precision) for precision in precisions(device)}
    allowed = [precision for precision in errors if errors[precision] <= LARGEST_ERROR]
    batches = [size if device.type == "cpu" else 4 * size for size in FORWARD_BATCHES]
    counts = _parallel_parts(device, threads)
    best = ForwardSettings(
        precision=allowed[0],
        layout=allowed_layouts[0],
        batch_size=batches[2],
        parallel_parts=counts[0],
        num_threads=threads // counts[0],
        loader_workers=0 if device.type != "cuda" else min(MOST_WORKERS, os.cpu_count() or 1),
    )
    rate = NOTHING_YET
    # One setting is searched after another, instead of all combinations: precision, layout, batch size, parts.
    steps: list[list[dict[str, object]]] = [
        [{"precision": precision} for precision in allowed],
        [{"layout": layout} for layout in allowed_layouts[1:]],
        [{"batch_size": size} for size in batches if size != best.batch_size],
        [{"parallel_parts": count, "num_threads": threads // count} for count in counts[1:]],
    ]
    for step in steps:
        start = best
        for change in step:
            settings = start.changed(**change)
            measured = NOTHING_YET
            with suppress(torch.OutOfMemoryError):  # a smaller batch may fit
                measured = _time_forward(network, image_size, settings, device, rate)
            lead = LEAD if settings.parallel_parts < start.parallel_parts else 1.0
            if measured.fastest > lead * rate.fastest:
                best, rate = settings, measured
    if rate is NOTHING_YET:
        raise torch.OutOfMemoryError
    return best, rate.usual, errors[best.precision]


def _time_forward(
    network: nn.Module, image_size: int, settings: ForwardSettings, device: torch.device, best: Rate
) -> Rate:
    """Return the speed of forward passes of random images with these settings."""
    memory_format = MEMORY_FORMATS[settings.layout]
    network.to(memory_format=memory_format)
    inputs = torch.randn(settings.batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(device).contiguous(memory_format=memory_format)

    folded = FoldedNorms(lambda: network(inputs[:1]))

    def send(batch: Tensor) -> None:
        with torch.inference_mode(), autocast(device, settings.precision), folded:
            network(batch)

    def work() -> None:
        for _ in team.map(send, [inputs] * settings.parallel_parts):
            pass

    with ThreadTeam(settings.parallel_parts, settings.num_threads) as team:
        return time_rate(work, settings.parallel_parts * settings.batch_size, device, best)


def _feature_error(network: nn.Module, images: Tensor, precision: Precision) -> float:
    """Return the error of features in a precision against float32, as a share of the features' variance over images."""
    with torch.inference_mode(), recorded_features(network) as features:
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


def _time_training(module: nn.Module, inputs: Tensor, threads: int) -> tuple[Precision, int, float, float]:
    """Return the fastest precision and number of parallel parts, their images per second, and the gradients' error.

    The parameters that require a gradient are trained; batch norms stay frozen.
    """
    module.eval()
    device = inputs.device
    labels = torch.arange(len(inputs), device=device) % 2
    folded = FoldedNorms(lambda: module(inputs[:1]))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # With a learning rate of 0 a step costs the usual time, but changes nothing.
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)

    def gradients(precision: Precision, leaves: Sequence[Tensor], part: tuple[Tensor, Tensor]) -> Sequence[Tensor]:
        with quick_gradients(device), folded, autocast(device, precision):
            loss = nn.functional.cross_entropy(module(part[0]).float(), part[1], reduction="sum") / len(inputs)
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    def step(precision: Precision, team: ThreadTeam) -> None:
        parts = zip(inputs.chunk(team.count), labels.chunk(team.count), strict=True)
        with autocast(device, precision), folded.once(trained, team) as weights:
            for found in team.map(partial(gradients, precision, weights.leaves), parts):
                weights.add(found)
            for parameter, gradient in zip(trained, weights.gradients(), strict=True):
                parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    exact = gradients("float32", trained, (inputs, labels))
    best: tuple[Precision, int, float, float] = ("float32", 1, 0.0, 0.0)
    best_rate = NOTHING_YET
    for precision in precisions(device):
        error = _direction_error(gradients(precision, trained, (inputs, labels)), exact)
        if error > LARGEST_ERROR:
            continue
        for count in _parallel_parts(device, threads) if len(inputs) >= threads else (1,):
            with ThreadTeam(count, threads // count) as team:
                rate = time_rate(partial(step, precision, team), len(inputs), device, best_rate)
            if rate.fastest > best_rate.fastest * (LEAD if best[0] == precision else 1.0):
                best, best_rate = (precision, count, rate.usual, error), rate
    return best


def _direction_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return 1 - cos(g, h) between two gradients g and h, each one tensor for each parameter."""
    # cos(g, h) = g . h / (|g| |h|)
    product = sum(float((one * other).sum()) for one, other in zip(found, exact, strict=True))
    norms = [math.sqrt(sum(float(part.square().sum()) for part in parts)) for parts in (found, exact)]
    return round(max(0.0, 1.0 - product / max(norms[0] * norms[1], 1e-30)), 4)


def _speed(
    strategy: Strategy, stages: int, measured: tuple[Precision, int, float, float], prefix: float | None
) -> TrainingSpeed:
    precision, parts, rate, error = measured
    return TrainingSpeed(
        strategy=strategy,
        trainable_stages=stages,
        precision=precision,
        parallel_parts=parts,
        images_per_second=rate,
        prefix_images_per_second=prefix,
        gradient_error=error,
    )


def _time_full(network: nn.Module, inputs: Tensor, threads: int) -> TrainingSpeed:
    """Return the speed of training all parameters."""
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return _speed("full", 0, _time_training(network, inputs, threads), None)


def _time_norm_tuning(network: nn.Module, inputs: Tensor, threads: int) -> TrainingSpeed:
    """Return the speed of training the norms and the head."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for module in (*find_norms(network).values(), *find_head(network).layers):
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    return _speed("norm_tuning", 0, _time_training(network, inputs, threads), None)


def _time_partial(
    network: nn.Module, inputs: Tensor, stages: int, settings: ForwardSettings, threads: int
) -> TrainingSpeed:
    """Return the speed of training the last stages from cached activations.

    Where the network cannot be cut, it is the speed of training all parameters.
    """
    device = inputs.device
    tail = cut(network, stages, inputs.shape[-1])
    if tail is None:
        return _time_full(network, inputs, threads).changed(strategy="partial", trainable_stages=stages)

    folded = FoldedNorms(lambda: tail.prefix(inputs[:1]))

    def send(images: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, settings.precision), folded:
            return tail.prefix(images)

    def work() -> None:
        for _ in team.map(send, [inputs] * settings.parallel_parts):
            pass

    frozen = {name for stage in find_stages(network)[:-stages] for name in stage.parameters}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    measured = _time_training(tail, send(inputs).float().clone(), threads)
    with ThreadTeam(settings.parallel_parts, settings.num_threads) as team:
        rate = time_rate(work, settings.parallel_parts * len(inputs), device)
    tail.release()
    return _speed("partial", stages, measured, rate.usual)
