"""Watch a training: divergence, and how far each step moves the weights."""

from collections.abc import Sequence
from functools import partial
from math import isfinite, sqrt

import torch
from torch import Tensor, nn

from finetune.decide.plan import Plan
from finetune.errors import DivergenceError
from finetune.history import Row
from finetune.network.finiteness import first_not_finite
from finetune.processes import of_all_processes
from finetune.training.sharding import without_shards
from finetune.training.task import Task, _Batches, _split

WATCHED = 10
"""Steps a training, at equal distances, that tell how far they move the weights."""


def is_watched(step: int, num_steps: int) -> bool:
    """Return whether a step (0 .. num_steps - 1) tells how far it moves the weights: the first and each tenth of the
    way."""
    return step == 0 or (step + 1) * WATCHED // num_steps > step * WATCHED // num_steps


class _UpdateRatios:
    """How far a step moves the weights of each stage."""

    def __init__(self, groups: dict[str, list[str]], trained: list[nn.Parameter]) -> None:
        """Copy the weights before the step, in the order of the groups; none where the step is not watched."""
        self._groups = groups
        self._trained = trained
        self._before = [parameter.detach().clone() for parameter in trained]

    def measure(self) -> Row:
        """Return, after the step, the norm of each stage's change over the norm of its weights before it."""
        changes = [(own.detach() - old).norm() ** 2 for own, old in zip(self._trained, self._before, strict=True)]
        norms = [old.norm() ** 2 for old in self._before]
        row: Row = {}
        first = 0
        for stage, names in self._groups.items() if self._before else ():
            own = slice(first, first + len(names))
            moved, length = (float(without_shards(sum(parts[own]))) for parts in (changes, norms))
            row[f"update_ratio:{stage}"] = sqrt(moved / max(length, 1e-30))
            first = own.stop
        return row


def _check_finite(
    task: Task, plan: Plan, batches: "_Batches", step: int, loss: float, suspects: Sequence[nn.Parameter]
) -> None:
    """Raise DivergenceError, which names the layer that is to blame, unless the loss and all gradients of the suspects
    are finite.

    Where only the gradients' norm overflowed they were clipped to 0. With a scaler, which leaves such steps out, nobody
    is suspected.
    """
    is_finite = all(own.grad is None or bool(torch.isfinite(own.grad).all()) for own in suspects)
    if isfinite(loss) and is_finite:
        return
    what = "gradient" if isfinite(loss) else "loss"
    value = "infinite or not a number" if isfinite(loss) else str(loss)
    inputs, indices = batches.taken or (torch.zeros(0), torch.zeros(0))
    layer = ""
    is_whole = next(task.module.parameters()).device == task.class_weights.device  # and not sharded elsewhere
    for part, members in zip(inputs.chunk(plan.accumulation), indices.chunk(plan.accumulation), strict=True):
        if is_whole and not layer:
            layer = first_not_finite(task.module, partial(_plain_loss, task, part, members))
    layer = next(filter(None, of_all_processes(layer)), "")  # which may show in another process's images alone
    row: Row = {"phase": task.name, "step": step + 1, "diverged_in": layer or f"the {what}"}
    raise DivergenceError(
        f"the {what} became {value} at step {step + 1} of the training '{task.name}'"
        + (f", first in {layer}" if layer else "")
        + "; lower the learning rate (--set training.learning_rate=...) or train in float32 "
        "(--set training.precision=float32)",
        [*task.history, row],
    )


def _plain_loss(task: Task, inputs: Tensor, indices: Tensor) -> Tensor:
    scores, _ = _split(task.module(task.prepare(inputs)).float(), task)
    return nn.functional.cross_entropy(scores, task.labels[indices].to(scores.device))
