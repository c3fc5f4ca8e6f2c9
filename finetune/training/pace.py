"""Decide which step comes next, and when a training ends."""

import time

from finetune.decide.plan import Plan
from finetune.decide.schedule import is_time_to_stop, stride
from finetune.processes import from_main_process
from finetune.training.task import Task


class _Pace:
    """Which step comes next and where on the schedule it is: a step after the one before, or more where time runs
    out."""

    def __init__(self, task: Task, plan: Plan) -> None:
        """Start where the checkpoint is that the task goes on from."""
        self._task = task
        self._plan = plan
        resumed = task.resumed or {"step": 0, "position": 0.0}
        self.step = int(resumed["step"])
        """Steps taken."""
        self.position = float(resumed["position"])
        """On the schedule, in the plan's steps."""
        self.end = plan.steps if task.until is None else task.until
        """Where on the schedule it pauses."""
        self._marks = [round((number + 1) * plan.steps / plan.evaluations) for number in range(plan.evaluations)]
        self._begun = time.perf_counter(), self.step
        self._stride = self._next_stride()
        self._is_stopped = self._stops()

    @property
    def has_ended(self) -> bool:
        """Whether the training is over, and does not just pause."""
        return self._is_stopped or self.position > self._plan.steps - 0.5

    @property
    def is_over(self) -> bool:
        """Whether there is no step to take now."""
        return self.has_ended or self.position > self.end - 0.5

    def is_evaluated(self) -> bool:
        """Return whether the held-out images are looked at after this step."""
        return any(self.position < mark <= self.position + self._stride + 1e-9 for mark in self._marks)

    def advance(self) -> None:
        """Go on to the next step."""
        self.step += 1
        self.position += self._stride
        self._stride = self._next_stride()
        self._is_stopped = self._stops()

    def _next_stride(self) -> float:
        if self._task.seconds is None:
            return 1.0
        start, first = self._begun
        elapsed, taken = time.perf_counter() - start, self.step - first
        left = self._task.seconds - elapsed
        # Clocks differ between processes, and the steps that they take must not.
        return from_main_process(
            lambda: stride(self.position, self._plan.steps, elapsed / taken, left) if taken else 1.0
        )

    def _stops(self) -> bool:
        """Return whether the plan's patience is over."""
        losses = [float(row["validation_loss"]) for row in self._task.history if "validation_loss" in row]
        if not self._plan.patience or len(losses) <= self._plan.patience:
            return False
        return from_main_process(lambda: is_time_to_stop(losses, self._plan.patience, self._plan.minimum_gain))
