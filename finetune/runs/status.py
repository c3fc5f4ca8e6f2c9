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
from finetune.runs.run_state import RunState

AVERAGED_STEPS = 10
"""Number of steps over which the training loss is averaged; that of a single batch jumps."""


class Status:
    """Turn the progress of tasks into states of the run."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = _now()
        self._host = socket.gethostname()
        self._plans: dict[str, Plan] = {}
        self._begun: dict[str, float] = {}
        self._key = ("", "")
        self._first = (0.0, 0.0)
        self._pace: float | None = None
        self._accuracy: float | None = None
        self.state = self._state(phase="starting", step=0, of=0)
        """The last state."""

    def expect(self, members: Sequence[PlannedRun]) -> None:
        """Take note of the trainings to come, the leading one first: their steps tell how much time is left."""
        if members[0].choice.ensemble == "folds":  # the first member's cross-validation trains all of them
            members = members[:1]
        self._plans = {member.name if len(members) > 1 else "": member.plan for member in members}

    def update(self, task: str, done: int, total: int, history: Sequence[Row] = ()) -> RunState:
        """Return the state in which a task is; the arguments are those of `Progress`."""
        now = time.monotonic()
        # A training's task has the name of the training in front, if there are several.
        name = task.rpartition(": ")[0]
        key = (name, str(history[-1]["phase"])) if history else (task, "")
        plan = self._plans.get(name, next(iter(self._plans.values()), None)) if history else None
        phases = {} if plan is None else _phases(plan)
        work = _work_of(phases[key[1]], done) if key[1] in phases else float(done)
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
        recent = [float(row["train_loss"]) for row in history[-AVERAGED_STEPS:]]
        self.state = self._state(
            phase=task,
            step=done,
            of=total,
            loss=sum(recent) / len(recent) if recent else None,
            accuracy=self._accuracy,
            eta=self._estimate(key, plan, work, float(total - done), now),
        )
        return self.state

    def end(self, status: Literal["finished", "failed", "interrupted"], error: str = "") -> RunState:
        """Return the state of a run that has ended."""
        self.state = self.state.changed(status=status, error=error, updated=_now(), eta=None)
        return self.state

    def _left(self, key: tuple[str, str], work: float) -> float:
        """Return the work that is left after some work on a phase: in it, in those after it, and in further members."""
        name, phase = key
        # A fallback was not expected; it is about as long as the training that it replaces.
        phases = _phases(self._plans.get(name, next(iter(self._plans.values()))))
        place = list(phases).index(phase)
        left = sum(_work_of(plan, plan.steps) for plan in list(phases.values())[place:]) - work
        return left + sum(
            _work_of(own, own.steps) for plan in self._plans_after(name).values() for own in _phases(plan).values()
        )

    def _estimate(self, key: tuple[str, str], plan: Plan | None, work: float, left: float, now: float) -> float | None:
        """Return the seconds that are probably left; None before there is a pace.

        Args:
            key: names of the training and of its phase.
            plan: the plan of the training; None for other tasks, of which `left` items are left.
            work: work of the phase that is done.
            left: number of items that are left of the task.
            now: time of the clock.
        """
        if plan is None:
            return None if self._pace is None else self._pace * left
        begun = self._begun.setdefault(key[0], now)
        if self._pace is None:
            return None
        eta = self._pace * self._left(key, work)
        if not plan.time_budget:
            return eta
        # Within a budget, fewer steps may be taken than planned.
        further = sum(each.time_budget for each in self._plans_after(key[0]).values())
        return min(eta, max(0.0, plan.time_budget - (now - begun) + further))

    def _plans_after(self, name: str) -> dict[str, Plan]:
        """Return the plans of the members after one of them."""
        names = list(self._plans)
        after = names[names.index(name) + 1 :] if name in names else []
        return {each: self._plans[each] for each in after}

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


def _phases(plan: Plan) -> dict[str, Plan]:
    """Return the plan of each training of a plan by the name of its phase, in their order."""
    first = plan_of_cycle(plan)
    if plan.fold:
        return {f"fold-{plan.fold}": first}
    if plan.validation == "cross_validation":
        return {**{f"fold-{number}": first for number in range(1, plan.folds + 1)}, "refit": first}
    return {"validation": first, "refit": plan_of_refit(plan)} if plan.refit else {"validation": first}


def _work_of(plan: Plan, steps: int) -> float:
    """Return the work of the first steps of a training: a step on smaller images counts as their share of the area."""
    return steps - min(steps, plan.small_steps) * (1.0 - small_cost(plan.preprocessing))


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
