"""The trainings of a plan: on which images each trains, and which it holds out."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finetune.data import ImageSplits, groups_of, labels_of, stratified_folds, stratified_holdout
from finetune.decide.plan import Plan, plan_of_cycle, plan_of_refit
from finetune.decide.workload import HELD_OUT
from finetune.errors import DataError

MOST_SEEN = 256
"""Most training images that an evaluation judges, too: the standard error of their accuracy is at most 3 points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One training: on which images, and on which it is judged."""

    name: str
    plan: Plan
    """How many steps, at which rates."""
    members: NDArray[np.intp]
    held_out: NDArray[np.intp]
    earlier: "Phase | None" = None
    """The training whose weights it goes on from; None: the pretrained ones, or those that the phase of this name had
    before a further cycle."""


def plan_phases(plan: Plan, splits: ImageSplits) -> list[Phase]:
    """Return the trainings of a plan, over the training images followed by the validation images; the last one
    ships.

    Raises:
        DataError: the plan judges by a validation split, and there is none.
    """
    labels = labels_of(splits.train)
    none = np.zeros(0, dtype=np.intp)
    given = splits.validation if plan.validation == "given" else None
    if plan.validation == "given" and given is None:
        raise DataError("the plan judges by a validation split, but the data has none; set its validation to held_out")
    count = len(labels) + (len(given) if given is not None else 0)

    def refit(earlier: Phase | None) -> Phase:
        last = plan_of_cycle(plan) if earlier is None else plan_of_refit(plan)
        return Phase(name="refit", plan=last, members=np.arange(count), held_out=none, earlier=earlier)

    def judged(name: str, members: NDArray[np.intp], held_out: NDArray[np.intp]) -> Phase:
        return Phase(name=name, plan=plan_of_cycle(plan), members=members, held_out=held_out)

    if given is not None:
        first = judged("validation", np.arange(len(labels)), np.arange(len(labels), count))
        return [first, refit(first)] if plan.refit else [first]
    groups = groups_of(splits.train)
    if plan.validation == "held_out":
        stay, held = stratified_holdout(labels, HELD_OUT, plan.seed, groups)
        first = judged("validation", stay, held)
        return [first, refit(first)] if plan.refit else [first]
    folds = [
        # The step that does best on a fold's own images would flatter it.
        replace(judged(f"fold-{number}", stay, held), plan=plan_of_cycle(plan).changed(keep="last"))
        for number, (stay, held) in enumerate(stratified_folds(labels, plan.folds, plan.seed, groups), start=1)
    ]
    return [folds[plan.fold - 1]] if plan.fold else [*folds, refit(None)]


def judged_by(phase: Phase, seed: int) -> NDArray[np.intp]:
    """Return the images that a phase judges."""
    return np.concatenate([phase.held_out, seen_by(phase, seed)])


def seen_by(phase: Phase, seed: int) -> NDArray[np.intp]:
    """Return some of the images that a phase trains on, as many as it holds out, to judge them beside those."""
    count = min(len(phase.held_out), MOST_SEEN)
    chosen: NDArray[np.intp] = np.random.default_rng(seed).permutation(phase.members)[:count]
    return chosen
