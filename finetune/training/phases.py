"""Split a plan into phases: the images that each one trains on, and the images that it holds out."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finetune.data import ImageSplits, labels_of, stratified_folds, stratified_holdout, together_of
from finetune.decide.plan import Plan, plan_of_cycle, plan_of_refit
from finetune.decide.workload import HELD_OUT
from finetune.errors import DataError

LARGEST_SAMPLE = 256
"""Largest number of training images in an evaluation; the standard error of their accuracy is then about 3 points at
most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One training on a part of the images."""

    name: str
    """Name of the phase: validation, fold-1 ..., or refit."""
    plan: Plan
    """Plan of this training: its steps and learning rates."""
    indices: NDArray[np.intp]
    """Indices of the images that it trains on, (n_members,)."""
    held_out: NDArray[np.intp]
    """Indices of the images that it is evaluated on, (n_held_out,); empty for a refit."""
    earlier: "Phase | None" = None
    """Phase whose final weights this one starts from; None if it starts from the pretrained weights, or, in a further
    cycle, from the weights of the phase of this name in the previous cycle."""


def plan_phases(plan: Plan, splits: ImageSplits) -> list[Phase]:
    """Return the phases of a plan, whose indices count the training images followed by the validation images.

    The last phase trains the final model.

    Raises:
        DataError: the plan evaluates on a validation split, and there is none, or it is for labels of another kind.
    """
    _refuse_other_labels(plan, splits)
    labels = labels_of(splits.train)
    none = np.zeros(0, dtype=np.intp)
    given = splits.validation if plan.validation == "given" else None
    if plan.validation == "given" and given is None:
        raise DataError(
            "the plan evaluates on a validation split, but the data has none; set its validation to held_out"
        )
    count = len(labels) + (len(given) if given is not None else 0)

    def refit(earlier: Phase | None) -> Phase:
        last = plan_of_cycle(plan) if earlier is None else plan_of_refit(plan)
        return Phase(name="refit", plan=last, indices=np.arange(count), held_out=none, earlier=earlier)

    def evaluated(name: str, indices: NDArray[np.intp], held_out: NDArray[np.intp]) -> Phase:
        return Phase(name=name, plan=plan_of_cycle(plan), indices=indices, held_out=held_out)

    if given is not None:
        first = evaluated("validation", np.arange(len(labels)), np.arange(len(labels), count))
        return [first, refit(first)] if plan.refit else [first]
    together = together_of(splits.train)
    if plan.validation == "held_out":
        # Images of one group (one patient, one place) and copies of one picture stay on the same side.
        stay, held = stratified_holdout(labels, HELD_OUT, plan.seed, together)
        first = evaluated("validation", stay, held)
        return [first, refit(first)] if plan.refit else [first]
    # Each image is held out once, and its prediction comes from the fold that did not train on it.
    folds = [
        # The best step on a fold's own held-out images would make its accuracy too high: the last weights are kept.
        replace(evaluated(f"fold-{number}", stay, held), plan=plan_of_cycle(plan).changed(keep="last"))
        for number, (stay, held) in enumerate(stratified_folds(labels, plan.folds, plan.seed, together), start=1)
    ]
    return [folds[plan.fold - 1]] if plan.fold else [*folds, refit(None)]


def _refuse_other_labels(plan: Plan, splits: ImageSplits) -> None:
    """Refuse a plan for one label per image on sets of labels, and the other way round.

    Raises:
        DataError: plan and images do not fit together.
    """
    if plan.has_sets != splits.has_sets:
        has = "any number of labels" if splits.has_sets else "one label"
        raise DataError(
            f"the images have {has} each, but the plan's metric is {plan.metric}; make a plan for these images"
        )


def evaluated_images(phase: Phase, seed: int) -> NDArray[np.intp]:
    """Return the indices of all images that a phase is evaluated on: those held out, and a sample of its own images."""
    return np.concatenate([phase.held_out, training_sample(phase, seed)])


def training_sample(phase: Phase, seed: int) -> NDArray[np.intp]:
    """Return the indices of a random sample of a phase's training images, to evaluate next to the held-out images.

    The sample has as many images as are held out, and at most `LARGEST_SAMPLE`.
    """
    # The standard error of an accuracy p of n images is sqrt(p (1 - p) / n), at most .5 / sqrt(256) = .031.
    count = min(len(phase.held_out), LARGEST_SAMPLE)
    chosen: NDArray[np.intp] = np.random.default_rng(seed).permutation(phase.indices)[:count]
    return chosen
