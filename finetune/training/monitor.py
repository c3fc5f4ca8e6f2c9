"""Watch a training: write its history, and stop it with a reason when it diverges."""

import time
from collections.abc import Sequence
from functools import partial
from math import isfinite, sqrt

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.decide.plan import Plan
from finetune.errors import DivergenceError
from finetune.history import Row
from finetune.network.finiteness import first_not_finite
from finetune.predict.links import Link, link_of
from finetune.processes import of_all_processes
from finetune.training.loop_state import LoopState
from finetune.training.pace import Pace
from finetune.training.sharding import without_shards
from finetune.training.task import Batches, Task, split_logits

WATCHED_STEPS = 10
"""Number of steps of a training, at equal distances, at which the update ratios of the stages are measured."""


def is_watched(step: int, num_steps: int) -> bool:
    """Return whether the update ratios of a step (0 .. num_steps - 1) are measured: at step 0, and WATCHED_STEPS times.

    >>> [step for step in range(30) if is_watched(step, 30)]
    [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29]
    """
    return step == 0 or (step + 1) * WATCHED_STEPS // num_steps > step * WATCHED_STEPS // num_steps


class UpdateRatios:
    """Measure how far a step moves the weights of each stage, relative to their norm."""

    def __init__(self, groups: dict[str, list[str]], trained: Sequence[nn.Parameter]) -> None:
        """Copy the weights before the step, in the order of the groups; none where the step is not watched."""
        self._groups = groups
        self._trained = trained
        self._before = [parameter.detach().clone() for parameter in trained]

    def measure(self) -> Row:
        """Return ||w_after - w_before|| / ||w_before|| of each stage, after the step."""
        # The norm of a stage from those of its tensors: ||w||^2 = sum_k ||w_k||^2.
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


class Monitor:
    """Write a row of the history after each step, evaluations included."""

    def __init__(self, task: Task, plan: Plan, accelerator: Accelerator, state: LoopState) -> None:
        """Continue the task's history."""
        self._task = task
        self._plan = plan
        self._accelerator = accelerator
        self._state = state
        self._ratios = UpdateRatios({}, [])
        # "seconds" counts from the start of the training, an interrupted part included.
        self._start = time.perf_counter() - float(task.history[-1]["seconds"] if task.history else 0.0)

    def check_finite(self, step: int, loss: float, norm: float, batches: Batches) -> None:
        """Check that the loss and all gradients are finite.

        Args:
            step: number of the step, from 0.
            loss: mean loss over its batch.
            norm: norm of all gradients, before they were clipped.
            batches: the batches, to find the first layer that is not finite.

        Raises:
            DivergenceError: the loss or a gradient is not a finite number.
        """
        # An infinite norm of finite gradients is an overflow of their squares: they were clipped to 0. With float16, a
        # loss scaler skips the steps whose gradients overflow.
        suspects = [] if isfinite(norm) or self._accelerator.scaler else self._state.trained
        is_finite = all(own.grad is None or bool(torch.isfinite(own.grad).all()) for own in suspects)
        if isfinite(loss) and is_finite:
            return
        what = "gradient" if isfinite(loss) else "loss"
        value = "infinite or not a number" if isfinite(loss) else str(loss)
        layer = self._find_layer(batches)
        row: Row = {"phase": self._task.name, "step": step + 1, "diverged_in": layer or f"the {what}"}
        raise DivergenceError(
            f"the {what} became {value} at step {step + 1} of the training '{self._task.name}'"
            + (f", first in {layer}" if layer else "")
            + "; lower the learning rate (--set training.learning_rate=...) or train in float32 "
            "(--set training.precision=float32)",
            [*self._task.history, row],
        )

    def before_step(self, step: int) -> None:
        """Copy the weights if the update ratios of this step are measured."""
        # A copy of all weights, and two norms of each tensor: too slow for every step.
        watched = self._state.trained if is_watched(step, self._plan.steps) else []
        self._ratios = UpdateRatios(self._task.groups, watched)

    def after_step(self, pace: Pace, loss: float, norm: float) -> None:
        """Add a row to the history; evaluate the weights if it is time to."""
        row: Row = {
            "phase": self._task.name,
            "step": pace.step + 1,
            "train_loss": loss,
            "learning_rate": self._state.optimizer.param_groups[-1]["lr"],  # the head's
            # JSON has no infinity; the largest float32 stands for it.
            "gradient_norm": norm if isfinite(norm) else torch.finfo(torch.float32).max,
            **self._ratios.measure(),
        }
        if pace.evaluation_is_due():
            row |= self._state.evaluate()
        row["seconds"] = round(time.perf_counter() - self._start, 3)
        self._task.history.append(row)

    def _find_layer(self, batches: Batches) -> str:
        """Return the first layer that is not finite on the current batch; "" if all layers are finite."""
        task, layer = self._task, ""
        inputs, indices = batches.taken or (torch.zeros(0), torch.zeros(0))
        parts = self._plan.accumulation
        is_whole = next(task.module.parameters()).device == task.class_weights.device  # and not sharded elsewhere
        # In micro-batches: the whole batch may not fit into memory at once.
        link = link_of(self._plan.metric)
        for part, part_indices in zip(inputs.chunk(parts), indices.chunk(parts), strict=True):
            if is_whole and not layer:
                layer = first_not_finite(task.module, partial(_plain_loss, task, link, part, part_indices))
        # Another process may be the only one with the images on which a layer is not finite.
        return next(filter(None, of_all_processes(layer)), "")


def _plain_loss(task: Task, link: Link, inputs: Tensor, indices: Tensor) -> Tensor:
    logits, _ = split_logits(task.module(task.prepare(inputs)).float(), task)
    losses, _ = link.train_losses(logits, task.labels[indices].to(logits.device), task.class_weights, 0.0)
    return losses.mean()
