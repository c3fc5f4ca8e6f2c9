"""Time the training steps of each strategy, in images per second, with the fastest precision and parallel parts."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from finetune.decide.evidence import ForwardSettings, TrainingSpeed
from finetune.device import autocast
from finetune.measure.machine import precisions
from finetune.measure.timing import NOTHING_YET, time_rate
from finetune.network.backbone import find_norms, find_stages, set_training_mode
from finetune.network.cpu import FoldedNorms, ThreadTeam, quick_gradients
from finetune.network.head import find_head
from finetune.network.tail import cut
from finetune.recipe import Precision, Strategy

LEAD = 1.15
"""Ratio of speeds above which one part that all threads compute is preferred to several parallel parts, one on each
thread. Parallel parts have advantages that are not timed: they overlap with reading images, and their threads do not
wait for each other where another program uses a core."""

LARGEST_ERROR = 0.02
"""Largest error of a precision against float32, as a share of the features' variance and as 1 - cosine of the
gradients: the accuracy of a probe stays the same (experiments/log.md, 2026-11-25)."""

ERROR_IMAGES = 16
"""Largest number of images on which the error of a precision is measured."""


def parallel_parts(device: torch.device, threads: int) -> tuple[int, ...]:
    """Return the numbers of parallel parts worth timing: one for each thread, and one."""
    return (threads, 1) if device.type == "cpu" and threads > 1 else (1,)


def _time_training(
    module: nn.Module, inputs: Tensor, threads: int, like: TrainingSpeed | None = None
) -> tuple[Precision, int, float, float]:
    """Return the fastest precision and number of parallel parts, their images per second, and the gradients' error.

    The parameters that require a gradient are trained; batch norms stay frozen. If the speed of another strategy is
    given in `like`, only its settings are timed, or float32 if its precision changes the gradients.
    """
    set_training_mode(module, freeze_statistics=True)
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

    few = inputs[:ERROR_IMAGES], labels[:ERROR_IMAGES]
    tried, counts = _tried(device, len(inputs), threads, like)
    exact = gradients("float32", trained, few) if tried != ("float32",) else ()
    best: tuple[Precision, int, float, float] = ("float32", 1, 0.0, 0.0)
    best_rate = NOTHING_YET
    for precision in tried:
        error = _direction_error(gradients(precision, trained, few), exact) if precision != "float32" else 0.0
        if error > LARGEST_ERROR:
            continue
        for count in counts:
            with ThreadTeam(count, threads // count) as team:
                rate = time_rate(partial(step, precision, team), len(inputs), device, best_rate)
            if rate.fastest > best_rate.fastest * (LEAD if best[0] == precision else 1.0):
                best, best_rate = (precision, count, rate.usual, error), rate
        if like is not None:
            break
    return best


def _tried(
    device: torch.device, num_images: int, threads: int, like: TrainingSpeed | None
) -> tuple[tuple[Precision, ...], tuple[int, ...]]:
    """Return the precisions and the numbers of parallel parts to time: those of `like`, or all that may be fastest."""
    if like is not None:
        return tuple(dict.fromkeys((like.precision, "float32"))), (like.parallel_parts,)
    return precisions(device), parallel_parts(device, threads) if num_images >= threads else (1,)


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


def time_full(network: nn.Module, inputs: Tensor, threads: int) -> TrainingSpeed:
    """Return the speed of training all parameters."""
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return _speed("full", 0, _time_training(network, inputs, threads), None)


def time_norm_tuning(network: nn.Module, inputs: Tensor, threads: int, full: TrainingSpeed) -> TrainingSpeed:
    """Return the speed of training the norms and the head."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for module in (*find_norms(network).values(), *find_head(network).layers):
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    return _speed("norm_tuning", 0, _time_training(network, inputs, threads, full), None)


def time_partial(
    network: nn.Module, inputs: Tensor, stages: int, settings: ForwardSettings, threads: int, full: TrainingSpeed
) -> TrainingSpeed:
    """Return the speed of training the last stages from cached activations.

    Where the network cannot be cut, it is the speed of training all parameters.
    """
    device = inputs.device
    tail = cut(network, stages, inputs.shape[-1])
    if tail is None:
        return full.changed(strategy="partial", trainable_stages=stages)

    folded = FoldedNorms(lambda: tail.prefix(inputs[:1]))

    def send(images: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, settings.precision), folded:
            return tail.prefix(images)

    def work() -> None:
        for _ in team.map(send, [inputs] * settings.parallel_parts):
            pass

    frozen = {name for stage in find_stages(network)[:-stages] for name in stage.parameters}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    measured = _time_training(tail, send(inputs).float().clone(), threads, full)
    with ThreadTeam(settings.parallel_parts, settings.num_threads) as team:
        rate = time_rate(work, settings.parallel_parts * len(inputs), device)
    tail.release()
    return _speed("partial", stages, measured, rate.usual)
