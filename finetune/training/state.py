"""Hold the progress of a plan's training: the results of its phases, and the time that is left for them."""

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
"""Fraction of a time budget that training steps may take; the rest is for evaluating and saving the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """The progress of a plan's training."""

    material: Material
    """Network, images and phases of the plan."""
    results: tuple[PhaseResult, ...] = ()
    """Results of the phases, in the order in which they were reached; a phase that paused has several."""
    cached: CachedActivations | None = None
    """Activations at the frozen boundary; None until a phase has computed them."""
    extra_seconds: float = 0.0
    """Wall time that no result includes, in seconds: of reading and saving results, and of phases that diverged."""
    extra_work: Work = field(default_factory=Work)
    """Work that no result includes: computing the cached activations of a phase that diverged."""

    @property
    def plan(self) -> Plan:
        """The plan that is carried out."""
        return self.material.plan

    @property
    def seconds(self) -> float:
        """Wall time of the preparation and of the training so far, in seconds."""
        return self.material.seconds + self.extra_seconds + sum(result.seconds for result in self.results)

    @property
    def work(self) -> Work:
        """The work of the preparation and of the training so far."""
        return sum((result.work for result in self.results), self.material.work + self.extra_work)

    @property
    def history(self) -> tuple[Row, ...]:
        """Rows of all finished phases."""
        return tuple(row for result in self.results for row in result.history)

    @property
    def weights(self) -> dict[str, Weights]:
        """The weights that finished phases left and kept, by phase."""
        return {result.phase.name: result.weights for result in self.results if result.weights is not None}

    def result(self, phase: Phase, until: int) -> PhaseResult | None:
        """Return the result of a phase at a step, if it was reached."""
        return next((each for each in self.results if each.phase is phase and each.until == until), None)

    def steps_taken(self, phase: Phase) -> int:
        """Return the number of steps that a phase has taken."""
        return next((each.steps for each in reversed(self.results) if each.phase is phase), 0)


def history_so_far(state: TrainingState) -> list[Row]:
    """Return the history of the finished phases, and of those that paused or were interrupted."""
    # A finished phase has no checkpoint within it any more, so none of its rows are listed twice.
    paused = [state.material.checkpoints.step(phase.name) for phase in state.material.phases]
    return [*state.history, *(row for checkpoint in paused if checkpoint for row in checkpoint["history"])]


def step_at(phase: Phase, share: float) -> int:
    """Return the step at a fraction of a phase's schedule: at least 1, unless the fraction or the schedule is 0."""
    return max(1, round(share * phase.plan.steps)) if phase.plan.steps and share else 0


def collect(
    material: Material, found: Sequence[tuple[Phase, NDArray[np.float32], NDArray[np.float32] | None]]
) -> HeldOutPredictions:
    """Return the predictions of all phases, in the order of the images.

    Args:
        material: material of the plan.
        found: each phase with its logits and its linear probe's, (n_held_out, num_classes); None without a probe.
    """
    indices = np.concatenate([phase.held_out for phase, _, _ in found])
    # Each image is held out by one phase at most, so sorting the indices merges the predictions of folds.
    order = np.argsort(indices)
    # Within a time budget, one fold may end at a step at which another pauses. Until all of them have ended, there is
    # no probe to compare all images with.
    probes = [probe for _, _, probe in found if probe is not None]
    return HeldOutPredictions(
        indices=indices[order],
        labels=material.labels[indices[order]],
        logits=np.concatenate([logits for _, logits, _ in found])[order],
        probe=np.concatenate(probes)[order] if len(probes) == len(found) else None,
    )


def allowance_of(state: TrainingState, phase: Phase, running: float) -> float | None:
    """Return the seconds that the rest of a phase may take, or None without a time budget.

    The rest of the budget is divided among the unfinished phases in proportion to their remaining steps.

    Args:
        state: progress before this part of the phase.
        phase: phase to train.
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
    # allowance = (BUDGETED * budget - spent) * steps left in this phase / steps left in all unfinished phases.
    budget = BUDGETED * material.plan.time_budget
    return (budget - state.seconds - running) * left[phase.name] / max(sum(left.values()), 1)


class TrainingDivergedError(DivergenceError):
    """A training diverged after some of its phases were finished."""

    def __init__(self, error: DivergenceError, state: TrainingState) -> None:
        """Extend the history of the error by that of the finished phases; hold the state that was reached."""
        super().__init__(str(error), [*state.history, *error.history])
        self.state = state
        """Progress before the phase that diverged, with the time and work that this phase took."""
