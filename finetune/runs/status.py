"""Follow the tasks of a run, and estimate how much time is left."""

import os
import socket
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from finetune.decide.plan import Plan, plan_of_cycle, plan_of_refit
from finetune.decide.planned_run import PlannedRun
from finetune.decide.workload import small_cost
from finetune.history import Row
from finetune.value import FrozenModel

AVERAGED_STEPS = 10
"""Number of steps over which the training loss is averaged; that of a single batch jumps."""


class RunState(FrozenModel):
    """The state of a run while it is in progress, and how it ended."""

    status: Literal["running", "finished", "failed", "interrupted"]
    """Whether the run is in progress, or how it ended."""
    phase: str
    """Name of the task in progress, such as `computing features` or `training (validation)`; the last one after the
    end."""
    step: int
    """Number of steps or images of the phase that are done."""
    of: int
    """Number of all steps or images of the phase."""
    loss: float | None = None
    """Mean training loss of the last 10 steps; null outside of a training."""
    accuracy: float | None = None
    """Top-1 accuracy on the held-out images at the last evaluation of this training, 0 to 1; null without one."""
    eta: float | None = None
    """Seconds that are probably left: during a training until the end of all trainings, before it until the end of the
    phase; null while there is no estimate."""
    started: str
    """Time at which the process started or resumed the run, ISO 8601."""
    updated: str
    """Time of this state, ISO 8601."""
    pid: int
    """Number of the process."""
    host: str
    """Name of the machine on which the process runs."""
    error: str = ""
    """The error that ended the run; empty unless the status is `failed`."""

    @property
    def updated_seconds(self) -> float:
        """Time of this state, in seconds since 1970."""
        return datetime.fromisoformat(self.updated).timestamp()


class Status:
    """Turn the progress of tasks into states of the run."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = _now()
        self._host = socket.gethostname()
        self._plans: dict[str, Plan] = {}
        self._done: dict[tuple[str, str], float] = {}
        self._key = ("", "")
        self._first = (0.0, 0.0)
        self._pace: float | None = None
        self._accuracy: float | None = None
        self.state = self._state(phase="starting", step=0, of=0)
        """The last state."""

    def expect(self, members: Sequence[PlannedRun], history: Sequence[Row] = ()) -> None:
        """Take note of the trainings to come, whose steps tell how much time is left.

        Args:
            members: planned runs, the leading one first.
            history: rows of an interrupted run, whose steps are done.
        """
        if members[0].choice.ensemble == "folds":  # the first member's cross-validation trains all of them
            members = members[:1]
        self._plans = {member.name if len(members) > 1 else "": member.plan for member in members}
        for row in history:
            name, phase = str(row.get("training", "")), str(row["phase"])
            self._done[name, phase] = self._work(name, phase, int(row["step"]))

    def update(self, task: str, done: int, total: int, history: Sequence[Row] = ()) -> RunState:
        """Return the state in which a task is; the arguments are those of `Progress`."""
        now = time.monotonic()
        name = task.rpartition(": ")[0]
        key = (name, str(history[-1]["phase"])) if history else (task, "")
        work = self._work(name, key[1], done) if history else float(done)
        if key != self._key or work < self._first[1]:
            # The next training of a run has about the pace of the one before.
            self._pace = self._pace if history and self._key[1] else None
            self._key, self._first = key, (now, work)
            found = [row["validation_top1"] for row in history if "validation_top1" in row]
            self._accuracy = float(found[-1]) if found else None
        elif history and "validation_top1" in history[-1]:
            self._accuracy = float(history[-1]["validation_top1"])
        if work > self._first[1]:
            self._pace = (now - self._first[0]) / (work - self._first[1])
        left = self._work_left(key, work) if history and self._plans else float(total - done)
        recent = [float(row["train_loss"]) for row in history[-AVERAGED_STEPS:]]
        self.state = self._state(
            phase=task,
            step=done,
            of=total,
            loss=sum(recent) / len(recent) if recent else None,
            accuracy=self._accuracy,
            eta=None if self._pace is None else self._pace * left,
        )
        return self.state

    def end(self, status: Literal["finished", "failed", "interrupted"], error: str = "") -> RunState:
        """Return the state of a run that has ended."""
        self.state = self.state.changed(status=status, error=error, updated=_now(), eta=None)
        return self.state

    def _work_left(self, key: tuple[str, str], work: float) -> float:
        """Return how many steps are left in all trainings, in steps on full-size images."""
        self._done[key] = work
        # A fallback was not expected; it is about as long as the training that it replaces.
        plans = {key[0]: next(iter(self._plans.values())), **self._plans}
        total = sum(_work_of(each, each.steps) for plan in plans.values() for each in _phase_plans(plan))
        return max(0.0, total - sum(self._done.values()))

    def _work(self, name: str, phase: str, step: int) -> float:
        plan = self._plans.get(name) or next(iter(self._plans.values()), None)
        if plan is None:
            return float(step)
        return _work_of(plan_of_refit(plan) if phase == "refit" else plan_of_cycle(plan), step)

    def _state(
        self,
        *,
        phase: str,
        step: int,
        of: int,
        loss: float | None = None,
        accuracy: float | None = None,
        eta: float | None = None,
    ) -> RunState:
        return RunState(
            status="running",
            phase=phase,
            step=step,
            of=of,
            loss=loss,
            accuracy=accuracy,
            eta=None if eta is None else round(eta, 1),
            started=self._started,
            updated=_now(),
            pid=os.getpid(),
            host=self._host,
        )


def _phase_plans(plan: Plan) -> list[Plan]:
    """Return the plan of each training of a plan, in their order."""
    first = plan_of_cycle(plan)
    if plan.validation == "cross_validation":
        # Every fold, and then the training on all images.
        return [first] * (1 if plan.fold else plan.folds + 1)
    return [first, plan_of_refit(plan)] if plan.refit else [first]


def _work_of(plan: Plan, steps: int) -> float:
    """Return the work of the first steps of a training: a step on smaller images counts as their share of the area."""
    return steps - min(steps, plan.small_steps) * (1.0 - small_cost(plan.preprocessing))


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
