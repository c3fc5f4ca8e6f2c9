"""What this machine does with a network: images a second, forward and for each way of training, in the ways it has."""

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
from finetune.network.backbone import find_head, find_norms, find_stages
from finetune.network.cpu.convolutions import quick_gradients
from finetune.network.cpu.folding import FoldedNorms
from finetune.network.cpu.threads import ThreadTeam
from finetune.network.forward import pooled, stream
from finetune.network.tail import cut
from finetune.recipe import Layout, Precision, Strategy

LEAD = 1.15
"""How much faster one batch on all threads must be than one on each of them: those read images meanwhile, and do not
wait for each other where another program has a core."""

OVERLAPPED = 1e9
"""Images a second where reading them costs the network no time."""

MOST_WORKERS = 8
"""Processes that read images for an accelerator, where there are so many cores."""

LARGEST_ERROR = 0.02
"""Share of the features' variance, and 1 - cosine of the gradients, that an arithmetic may change: the accuracy of a
probe stays the same (experiments/log.md, 2026-11-25)."""

FORWARD_BATCHES = (8, 16, 32, 64)
"""Images sent forward at once that are timed; on an accelerator four times as many."""

MICRO_BATCH = 32
"""Images of a training step that a CPU works on at once: more are not faster, and take memory in proportion."""


READ_BATCHES = 6
"""Batches that are read and sent forward to see what reading adds."""


def measure_speed(
    network: nn.Module, preprocessing: Preprocessing, batch_size: int, depths: Sequence[int], images: VariedImages
) -> MachineSpeed:
    """Return how `network` runs fastest here, and its images a second: medians.

    Arithmetic, layout, batch and streams are tried one after another, each with the best of those before. What is far
    slower than another is timed once; an arithmetic that changes features or gradients is not used. What does not fit
    into an accelerator's memory is timed with half of the batch, and so on.

    Args:
        network: on its device; it is left in the layout that is fastest.
        preprocessing: of the network.
        batch_size: images a training step.
        depths: how many of the last stages `partial` is timed with.
        images: some real ones, to see what reading costs and whether an arithmetic is exact enough.

    Raises:
        ModelError: a training on one image does not fit into the accelerator's memory.
    """
    device = next(network.parameters()).device
    threads = torch.get_num_threads()
    # Alone, one thread is a little slower; beside another program, several that wait for each other take many times
    # as long. So they are used only where they are what is timed.
    name = device_name(device)
    micro_batch = min(batch_size, MICRO_BATCH) if device.type == "cpu" else batch_size
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
    """Return `count` normalised images; few images come several times, each varied in its own way."""
    keys = [Key(number % len(images), number // len(images)) for number in range(count)]
    pixels, _ = next(iter(make_loader(images, device, 0, batch_size=count, keys=keys)))
    return normaliser(preprocessing, device, layout)(pixels)


def _side_by_side(device: torch.device, threads: int) -> tuple[int, ...]:
    """Return the numbers of streams worth timing: one for each thread, or one."""
    return (threads, 1) if device.type == "cpu" and threads > 1 else (1,)


def _fastest_forward(
    network: nn.Module, image_size: int, real: Tensor, threads: int, allowed_layouts: Sequence[Layout]
) -> tuple[ForwardSettings, float, float]:
    """Return the fastest way to send images forward, its images a second, and the error of its arithmetic.

    Network and images are in the first layout.
    """
    device = real.device
    network.eval()
    errors = {precision: _feature_error(network, real, precision) for precision in precisions(device)}
    allowed = [precision for precision in errors if errors[precision] <= LARGEST_ERROR]
    batches = [size if device.type == "cpu" else 4 * size for size in FORWARD_BATCHES]
    counts = _side_by_side(device, threads)
    best = ForwardSettings(
        precision=allowed[0],
        layout=allowed_layouts[0],
        batch_size=batches[2],
        parallel_parts=counts[0],
        num_threads=threads // counts[0],
        loader_workers=0 if device.type == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1),
    )
    rate = NOTHING_YET
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
    memory_format = MEMORY_FORMATS[settings.layout]
    network.to(memory_format=memory_format)
    inputs = torch.randn(settings.batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(device).contiguous(memory_format=memory_format)

    folded = FoldedNorms(lambda: network(inputs[:1]))

    def send(batch: Tensor) -> None:
        with torch.inference_mode(), autocast(device, settings.precision), folded:
            network(batch)

    def work() -> None:
        for _ in streams.map(send, [inputs] * settings.parallel_parts):
            pass

    with ThreadTeam(settings.parallel_parts, settings.num_threads) as streams:
        return time_rate(work, settings.parallel_parts * settings.batch_size, device, best)


def _feature_error(network: nn.Module, images: Tensor, precision: Precision) -> float:
    """Return how much an arithmetic changes features against float32, as a share of their variance over images."""
    with torch.inference_mode():
        exact = pooled(network, images).float()
        with autocast(images.device, precision), FoldedNorms(lambda: pooled(network, images[:1])):
            change = pooled(network, images).float() - exact
    total = (exact - exact.mean(0)).square().sum().clamp_min(1e-12)
    return round(float((change - change.mean(0)).square().sum() / total), 4)


def _time_reading(
    network: nn.Module, images: VariedImages, preprocessing: Preprocessing, settings: ForwardSettings, rate: float
) -> float:
    """Return the images a second of what reading images adds to sending them forward."""
    count = READ_BATCHES * settings.batch_size
    keys = [Key(number % len(images), number // len(images)) for number in range(count)]
    start = time.perf_counter()
    for _ in stream(network, images, preprocessing, settings, pooled, keys):
        pass
    added = time.perf_counter() - start - count / rate
    return round(count / added, 1) if added > 0 else OVERLAPPED


def _time_training(module: nn.Module, inputs: Tensor, threads: int) -> tuple[Precision, int, float, float]:
    """Return the fastest arithmetic and number of streams, the images a second, and the error of the gradients.

    What requires a gradient is trained; batch norms stay frozen.
    """
    module.eval()
    device = inputs.device
    labels = torch.arange(len(inputs), device=device) % 2
    folded = FoldedNorms(lambda: module(inputs[:1]))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)  # moves nothing, in the usual time

    def gradients(precision: Precision, leaves: Sequence[Tensor], part: tuple[Tensor, Tensor]) -> Sequence[Tensor]:
        with quick_gradients(device), folded, autocast(device, precision):
            loss = nn.functional.cross_entropy(module(part[0]).float(), part[1], reduction="sum") / len(inputs)
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    def step(precision: Precision, streams: ThreadTeam) -> None:
        parts = zip(inputs.chunk(streams.count), labels.chunk(streams.count), strict=True)
        with autocast(device, precision), folded.once(trained, streams) as weights:
            for found in streams.map(partial(gradients, precision, weights.leaves), parts):
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
        for count in _side_by_side(device, threads) if len(inputs) >= threads else (1,):
            with ThreadTeam(count, threads // count) as streams:
                rate = time_rate(partial(step, precision, streams), len(inputs), device, best_rate)
            if rate.fastest > best_rate.fastest * (LEAD if best[0] == precision else 1.0):
                best, best_rate = (precision, count, rate.usual, error), rate
    return best


def _direction_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return 1 - the cosine between two gradients."""
    product = sum(float((one * other).sum()) for one, other in zip(found, exact, strict=True))
    norms = [math.sqrt(sum(float(part.square().sum()) for part in parts)) for parts in (found, exact)]
    return round(max(0.0, 1.0 - product / max(norms[0] * norms[1], 1e-30)), 4)


def _speed(
    strategy: Strategy, stages: int, measured: tuple[Precision, int, float, float], prefix: float | None
) -> TrainingSpeed:
    precision, streams, rate, error = measured
    return TrainingSpeed(
        strategy=strategy,
        trainable_stages=stages,
        precision=precision,
        parallel_parts=streams,
        images_per_second=rate,
        prefix_images_per_second=prefix,
        gradient_error=error,
    )


def _time_full(network: nn.Module, inputs: Tensor, threads: int) -> TrainingSpeed:
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return _speed("full", 0, _time_training(network, inputs, threads), None)


def _time_norm_tuning(network: nn.Module, inputs: Tensor, threads: int) -> TrainingSpeed:
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for module in (*find_norms(network).values(), find_head(network)[1]):
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    return _speed("norm_tuning", 0, _time_training(network, inputs, threads), None)


def _time_partial(
    network: nn.Module, inputs: Tensor, stages: int, settings: ForwardSettings, threads: int
) -> TrainingSpeed:
    """Return the rate of the last stages from kept activations; uncut networks are timed as if all of them were
    trained."""
    device = inputs.device
    tail = cut(network, stages, inputs.shape[-1])
    if tail is None:
        return _time_full(network, inputs, threads).changed(strategy="partial", trainable_stages=stages)

    folded = FoldedNorms(lambda: tail.prefix(inputs[:1]))

    def send(images: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, settings.precision), folded:
            return tail.prefix(images)

    def work() -> None:
        for _ in streams.map(send, [inputs] * settings.parallel_parts):
            pass

    frozen = {name for stage in find_stages(network)[:-stages] for name in stage.parameters}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    measured = _time_training(tail, send(inputs).float().clone(), threads)
    with ThreadTeam(settings.parallel_parts, settings.num_threads) as streams:
        rate = time_rate(work, settings.parallel_parts * len(inputs), device)
    tail.release()
    return _speed("partial", stages, measured, rate.usual)
