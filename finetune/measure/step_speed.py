"""Time the training steps of each strategy, in images per second, with the fastest precision and parallel parts."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from finetune.decide.evidence import ForwardSettings, TrainingSpeed
from finetune.device import autocast
from finetune.measure.machine import precisions
from finetune.measure.timing import NOTHING_YET, Rate, time_rate
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


class _Steps:
    """Training steps of the parameters of a module that require a gradient; batch norms stay frozen."""

    def __init__(self, module: nn.Module, inputs: Tensor) -> None:
        set_training_mode(module, freeze_statistics=True)
        self._module, self._inputs = module, inputs
        self._labels = torch.arange(len(inputs), device=inputs.device) % 2
        self._folded = FoldedNorms(lambda: module(inputs[:1]))
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # With a learning rate of 0 a step costs the usual time, but changes nothing.
        self._optimizer = torch.optim.AdamW(self._trained, lr=0.0, weight_decay=0.0, fused=True)

    def gradients(self, precision: Precision) -> Sequence[Tensor]:
        """Return the gradients of a few images in a precision."""
        return self._gradients(precision, self._trained, (self._inputs[:ERROR_IMAGES], self._labels[:ERROR_IMAGES]))

    def time(self, precision: Precision, parts: int, threads: int, best: Rate = NOTHING_YET) -> Rate:
        """Return the rate of steps in a precision and a number of parallel parts, in images per second."""
        with ThreadTeam(parts, threads // parts) as team:
            return time_rate(partial(self._step, precision, team), len(self._inputs), self._inputs.device, best)

    def _gradients(
        self, precision: Precision, leaves: Sequence[Tensor], part: tuple[Tensor, Tensor]
    ) -> Sequence[Tensor]:
        device = self._inputs.device
        with quick_gradients(device), self._folded, autocast(device, precision):
            logits = self._module(part[0]).float()
            loss = nn.functional.cross_entropy(logits, part[1], reduction="sum") / len(self._inputs)
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    def _step(self, precision: Precision, team: ThreadTeam) -> None:
        parts = zip(self._inputs.chunk(team.count), self._labels.chunk(team.count), strict=True)
        with autocast(self._inputs.device, precision), self._folded.once(self._trained, team) as weights:
            for found in team.map(partial(self._gradients, precision, weights.leaves), parts):
                weights.add(found)
            for parameter, gradient in zip(self._trained, weights.gradients(), strict=True):
                parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()


def _time_training(
    module: nn.Module, inputs: Tensor, threads: int, like: TrainingSpeed | None = None
) -> tuple[Precision, int, float, float]:
    """Return the fastest precision and number of parallel parts, their images per second, and the gradients' error.

    If the speed of another strategy is given in `like`, its settings are timed, and its error stands for that of these
    parameters.
    """
    steps = _Steps(module, inputs)
    if like is not None:
        rate = steps.time(like.precision, like.parallel_parts, threads)
        return like.precision, like.parallel_parts, rate.usual, like.gradient_error
    errors: dict[Precision, float] = {
        precision: _direction_error(steps.gradients(precision), steps.gradients("float32"))
        if precision != "float32"
        else 0.0
        for precision in precisions(inputs.device)
    }
    # One setting is searched after another, instead of all combinations.
    first, *others = parallel_parts(inputs.device, threads) if len(inputs) >= threads else (1,)
    best: tuple[Precision, int] = "float32", first
    best_rate = NOTHING_YET
    for precision, error in errors.items():
        rate = steps.time(precision, first, threads, best_rate) if error <= LARGEST_ERROR else NOTHING_YET
        if rate.fastest > best_rate.fastest:
            best, best_rate = (precision, first), rate
    for count in others:
        rate = steps.time(best[0], count, threads, best_rate)
        if rate.fastest > LEAD * best_rate.fastest:
            best, best_rate = (best[0], count), rate
    return *best, best_rate.usual, errors[best[0]]


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
    tail = cut(network, stages, inputs.shape[-1], inputs.shape[1])
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
