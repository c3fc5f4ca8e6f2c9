"""Decide which step comes next, what is due after it, and when a training ends."""

import time

from finetune.decide.plan import Plan
from finetune.decide.schedule import is_time_to_stop, stride
from finetune.processes import from_main_process
from finetune.training.task import Task

CHECKPOINTS = 10
"""Number of checkpoints of a training, at equal distances."""


class Pace:
    """The steps of a training and their positions on the schedule.

    A step advances the position by 1, or by more if time is short, so that the learning rate still falls to its end.
    """

    def __init__(self, task: Task, plan: Plan) -> None:
        """Start at the step of the task's checkpoint, or at step 0."""
        self._task = task
        self._plan = plan
        resumed = task.resumed or {"step": 0, "position": 0.0}
        self.step = int(resumed["step"])
        """Number of steps taken."""
        self.position = float(resumed["position"])
        """Position on the schedule, in the plan's steps."""
        self.end = plan.steps if task.until is None else task.until
        """Position on the schedule at which the training pauses, in the plan's steps."""
        # Evaluations are due where a step reaches one of these positions; the last one is the end.
        self._marks = [round((number + 1) * plan.steps / plan.evaluations) for number in range(plan.evaluations)]
        self._started = time.perf_counter(), self.step
        self._stride = self._next_stride()
        self._is_stopped = self._stops()

    @property
    def has_ended(self) -> bool:
        """Whether the training has ended: a training that pauses has not."""
        return self._is_stopped or self.position > self._plan.steps - 0.5

    @property
    def is_over(self) -> bool:
        """Whether there is no further step to take now: the training has ended or pauses."""
        return self.has_ended or self.position > self.end - 0.5

    def evaluation_is_due(self) -> bool:
        """Return whether the held-out images are evaluated after this step."""
        # 1e-9: the position is a sum of strides, whose rounding must not move an evaluation to the next step.
        return any(self.position < mark <= self.position + self._stride + 1e-9 for mark in self._marks)

    def checkpoint_is_due(self) -> bool:
        """Return whether a checkpoint is saved at this step: before a pause, and CHECKPOINTS times until the end."""
        is_at_mark = self.step % max(1, self._plan.steps // CHECKPOINTS) == 0
        return (is_at_mark or self.is_over) and self.step < self._plan.steps

    def advance(self) -> None:
        """Count a step, and decide how far the next one goes."""
        self.step += 1
        self.position += self._stride
        self._stride = self._next_stride()
        self._is_stopped = self._stops()

    def _next_stride(self) -> float:
        """Return how far the next step advances on the schedule, in the plan's steps; 1 without a limit of time."""
        if self._task.seconds is None:
            return 1.0
        start, first = self._started
        elapsed, taken = time.perf_counter() - start, self.step - first
        left = self._task.seconds - elapsed
        # With E seconds elapsed, n steps taken and S seconds left, S / (E / n) further steps are affordable.
        # They share the rest of the schedule: stride = max(1, (steps - position) / (S * n / E)).
        # The main process decides: the clocks of processes differ, and their steps must not.
        return from_main_process(
            lambda: stride(self.position, self._plan.steps, elapsed / taken, left) if taken else 1.0
        )

    def _stops(self) -> bool:
        """Return whether the held-out loss has not fallen for as long as the plan's patience."""
        losses = [float(row["validation_loss"]) for row in self._task.history if "validation_loss" in row]
        if not self._plan.patience or len(losses) <= self._plan.patience:
            return False
        return from_main_process(lambda: is_time_to_stop(losses, self._plan.patience, self._plan.minimum_gain))
