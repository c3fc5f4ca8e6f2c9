"""Describe how far the phases of a plan are trained."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from finetune.decide.plan import Plan
from finetune.errors import DivergenceError
from finetune.history import Row
from finetune.training.cached_activations import CachedActivations
from finetune.training.evaluation import HeldOutPredictions
from finetune.training.fit import PhaseResult
from finetune.training.material import Material, Weights
from finetune.training.phases import Phase
from finetune.work import Work

BUDGETED = 0.95
"""Fraction of a time budget for training steps; the rest is for evaluation and for saving the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """How far the phases of a plan are trained."""

    material: Material
    results: tuple[PhaseResult, ...] = ()
    """In the order in which they were reached; a phase that paused has several."""
    cached: CachedActivations | None = None
    """Activations at the frozen boundary, once a phase has computed them."""
    extra_seconds: float = 0.0
    """Wall time that no result counts, in seconds: reading and saving results, and phases that diverged."""
    extra_work: Work = field(default_factory=Work)
    """Work that no result counts: cached activations of a phase that diverged."""
    spent_elsewhere: float = 0.0
    """Seconds that other trainings took from the same time budget."""

    @property
    def plan(self) -> Plan:
        """The plan that is carried out."""
        return self.material.plan

    @property
    def seconds(self) -> float:
        """Wall time so far, in seconds."""
        return self.material.seconds + self.extra_seconds + sum(result.seconds for result in self.results)

    @property
    def work(self) -> Work:
        """The work so far."""
        return sum((result.work for result in self.results), self.material.work + self.extra_work)

    @property
    def history(self) -> tuple[Row, ...]:
        """Rows of all finished phases."""
        return tuple(row for result in self.results for row in result.history)

    @property
    def weights(self) -> dict[str, Weights]:
        """The weights that finished phases left, by phase, where they are kept."""
        return {result.phase.name: result.weights for result in self.results if result.weights is not None}

    def result(self, phase: Phase, until: int) -> PhaseResult | None:
        """Return the result of a phase at a step, if it was reached."""
        return next((each for each in self.results if each.phase is phase and each.until == until), None)

    def steps_taken(self, phase: Phase) -> int:
        """Return the number of steps that a phase has taken."""
        return next((each.steps for each in reversed(self.results) if each.phase is phase), 0)


def history_so_far(state: TrainingState) -> list[Row]:
    """Return the history of finished phases, and of those that paused."""
    paused = [state.material.checkpoints.step(phase.name) for phase in state.material.phases]
    return [*state.history, *(row for checkpoint in paused if checkpoint for row in checkpoint["history"])]


def step_at(phase: Phase, share: float) -> int:
    """Return the step at a fraction of a phase's schedule: at least 1 for a positive fraction of any steps."""
    return max(1, round(share * phase.plan.steps)) if phase.plan.steps and share else 0


def collect(
    material: Material, found: Sequence[tuple[Phase, NDArray[np.float32], NDArray[np.float32] | None]]
) -> HeldOutPredictions:
    """Return the predictions of all phases, in the order of the images; `found` has each phase's logits and probe."""
    members = np.concatenate([phase.held_out for phase, _, _ in found])
    order = np.argsort(members)
    probes = [probe for _, _, probe in found if probe is not None]
    return HeldOutPredictions(
        members=members[order],
        labels=material.labels[members[order]],
        logits=np.concatenate([logits for _, logits, _ in found])[order],
        probe=np.concatenate(probes)[order] if probes else None,
    )


def allowance_of(state: TrainingState, phase: Phase, running: float) -> float | None:
    """Return the seconds that the rest of a phase may take, or None without a time budget.

    What the budget leaves is divided among the unfinished phases in proportion to the steps that they still have.

    Args:
        state: before this part of the phase.
        phase: the phase about to train.
        running: seconds that this part of the phase has taken so far.
    """
    material = state.material
    if not material.plan.time_budget:
        return None
    left = {
        each.name: each.plan.steps - state.steps_taken(each)
        for each in material.phases
        if state.result(each, each.plan.steps) is None  # a finished phase may have taken fewer steps
    }
    budget = BUDGETED * material.plan.time_budget - state.spent_elsewhere
    return (budget - state.seconds - running) * left[phase.name] / max(sum(left.values()), 1)


class TrainingDivergedError(DivergenceError):
    """A training diverged after some of its phases were finished."""

    def __init__(self, error: DivergenceError, state: TrainingState) -> None:
        """Hold the error, with the history of the phases before it, and the state that was reached before it."""
        super().__init__(str(error), [*state.history, *error.history])
        self.state = state
