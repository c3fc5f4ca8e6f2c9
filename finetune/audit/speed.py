"""What this machine does with a network: images a second, forward and for each way of training, in the precisions it
has."""

import math
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from finetune.batches import VariedImages
from finetune.evidence import MachineSpeed, Precision, TrainingSpeed
from finetune.features import autocast
from finetune.network.backbone import find_head, find_norms, find_stages
from finetune.network.depthwise import quick_depthwise_gradients
from finetune.network.tail import cut
from finetune.recipe import Strategy

REPETITIONS = 3
"""Timed after one that is not: the first call plans its kernels."""

HOPELESS = 1.5
"""A precision whose first timed repetition takes so many times the best one's time is not timed further."""

OVERLAPPED = 1e9
"""Images a second where reading them costs the network no time."""


def device_name(device: torch.device) -> str:
    """Return a short name of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Return the arithmetics worth timing on a device, the one that is likely to be fastest first."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return ("float16", "float32")
    return ("bfloat16", "float32")


def measure_speed(
    network: nn.Module, image_size: int, batch_size: int, trainable_stages: int, images: VariedImages
) -> MachineSpeed:
    """Return the images a second of `network` (with its new head), each the median of three after one to warm up.

    A precision that is far slower than another is timed once.

    Args:
        network: on its device.
        image_size: side of the input, in pixels.
        batch_size: images a training step.
        trainable_stages: how many of the last stages `partial` is timed with.
        images: read for a few batches, where reading does not overlap with the network.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch_size, 3, image_size, image_size, generator=generator).to(device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    fastest, forward = _time_forward(network, inputs)
    training = [
        _time_norm_tuning(network, inputs),
        _time_partial(network, inputs, trainable_stages, fastest),
        _time_full(network, inputs),
    ]
    training.append(training[-1].changed(strategy="scratch"))
    for parameter in network.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    return MachineSpeed(
        device=device_name(device),
        num_threads=torch.get_num_threads(),
        forward_precision=fastest,
        forward_images_per_second=forward,
        reading_images_per_second=_time_reading(images, batch_size) if device.type == "cpu" else OVERLAPPED,
        training=tuple(training),
    )


def _rate(work: Callable[[], object], count: int, device: torch.device, best: float = 0.0) -> float:
    """Return how many of `count` a second `work` does: the median, or sooner where it is far below the `best` rate."""

    def timed() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed()
    seconds = [timed()]
    if seconds[0] <= HOPELESS * count / (best or math.inf):
        seconds += [timed() for _ in range(REPETITIONS - 1)]
    return round(count / statistics.median(seconds), 1)


def _fastest(work: Callable[[Precision], object], count: int, device: torch.device) -> tuple[Precision, float]:
    """Return the precision in which `work` is fastest, and its rate."""
    rates: dict[Precision, float] = {}
    for precision in precisions(device):
        rates[precision] = _rate(partial(work, precision), count, device, max(rates.values(), default=0.0))
    fastest = max(rates, key=lambda precision: rates[precision])
    return fastest, rates[fastest]


def _time_forward(network: nn.Module, inputs: Tensor) -> tuple[Precision, float]:
    network.eval()

    def work(precision: Precision) -> None:
        with torch.inference_mode(), autocast(inputs.device, precision):
            network(inputs)

    return _fastest(work, len(inputs), inputs.device)


def _time_training(module: nn.Module, inputs: Tensor) -> tuple[Precision, float]:
    """Return the fastest precision and its rate; what requires a gradient is trained, batch norms stay frozen."""
    module.eval()
    labels = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)  # moves nothing, in the usual time

    def step(precision: Precision) -> None:
        with quick_depthwise_gradients(inputs.device), autocast(inputs.device, precision):
            loss = nn.functional.cross_entropy(module(inputs).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return _fastest(step, len(inputs), inputs.device)


def _speed(strategy: Strategy, stages: int, measured: tuple[Precision, float], prefix: float | None) -> TrainingSpeed:
    return TrainingSpeed(
        strategy=strategy,
        trainable_stages=stages,
        precision=measured[0],
        images_per_second=measured[1],
        prefix_images_per_second=prefix,
    )


def _time_full(network: nn.Module, inputs: Tensor) -> TrainingSpeed:
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return _speed("full", 0, _time_training(network, inputs), None)


def _time_norm_tuning(network: nn.Module, inputs: Tensor) -> TrainingSpeed:
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for module in (*find_norms(network).values(), find_head(network)[1]):
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    return _speed("norm_tuning", 0, _time_training(network, inputs), None)


def _time_partial(network: nn.Module, inputs: Tensor, stages: int, precision: Precision) -> TrainingSpeed:
    """Return the rate of the last stages from kept activations; uncut networks are timed as if all of them were
    trained."""
    tail = cut(network, stages, inputs.shape[-1])
    if tail is None:
        return _time_full(network, inputs).changed(strategy="partial", trainable_stages=stages)
    with torch.no_grad(), autocast(inputs.device, precision):
        activations = tail.prefix(inputs)

    def prefix() -> None:
        with torch.inference_mode(), autocast(inputs.device, precision):
            tail.prefix(inputs)

    frozen = {name for stage in find_stages(network)[:-stages] for name in stage.parameters}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    measured = _time_training(tail, activations.float())
    rate = _rate(prefix, len(inputs), inputs.device)
    tail.release()
    return _speed("partial", stages, measured, rate)


def _time_reading(images: VariedImages, batch_size: int) -> float:
    count = min(len(images), 2 * batch_size)
    start = time.perf_counter()
    for view in range(3):
        images.__getitems__([(index, view) for index in range(count)])
    return round(3 * count / (time.perf_counter() - start), 1)
