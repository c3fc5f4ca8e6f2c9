"""Carry out a choice: measure networks and decide, train the members, and reject any that ends worse than its
linear probe."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data import ImageSplits, groups_of
from finetune.decide.answers import make_rule
from finetune.decide.choice import choose_backbone, choose_strategy
from finetune.decide.evidence import Evidence
from finetune.decide.label_settings import refuse_other_labels
from finetune.decide.planned_run import PlannedRun, budgeted, list_members, plan_choice
from finetune.decide.planning import make_plan
from finetune.ensemble.members import TrainedMember, recommend_members, train_members
from finetune.ensemble.recommendation import Option
from finetune.errors import RecipeError
from finetune.measure import measure_evidence
from finetune.network.weights import available_models
from finetune.predict.model import TrainedModel
from finetune.processes import from_main_process
from finetune.progress import Progress, named_progress, no_progress
from finetune.recipe import Recipe
from finetune.training import TrainingState
from finetune.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The result of a search for hyper-parameters, and what the search cost."""

    winner: TrainingState
    """Paused training of the winner."""
    work: Work
    """Images decoded, sent forward and sent backward by the other trials."""
    seconds: float
    """Wall time of the search, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The models of a finished run, and the cost of all its trainings."""

    members: tuple[PlannedRun, ...]
    """Planned run of each model, in the order of `models`."""
    models: tuple[TrainedModel, ...]
    """The final model, or the members of the final ensemble."""
    work: Work
    """The work of all trainings, those of a search included."""
    seconds: float
    """Wall time of the trainings that were finished, in seconds."""
    options: tuple[Option, ...]
    """Models and averages that were compared at the end; empty if only one could be kept."""
    rejected: tuple[TrainedMember, ...]
    """Trainings that ended worse than their linear probe and are not part of the final model."""


def measure_networks(
    recipe: Recipe, splits: ImageSplits, progress: Progress = no_progress, start: float | None = None
) -> Iterator[Evidence]:
    """Yield the evidence of each network that the recipe names, on the same images.

    Args:
        recipe: recipe of the run.
        splits: labelled images; the test split is not used.
        progress: called with the work in progress.
        start: value of `time.perf_counter()` when the command began; None: now.

    Raises:
        ModelError: a network is unknown, or its weights cannot be found.
        RecipeError: the recipe asks for an ensemble of backbones, but names one network, or a setting does not suit the
            labels.
    """
    refuse_other_labels(recipe, splits.has_sets)
    make_rule(recipe.labels, splits.class_names)  # names that are not classes are refused before the measurement
    if recipe.ensemble == "backbones" and len(recipe.models) == 1:
        raise RecipeError(
            f"backbones averages several networks, but model names {recipe.model} alone; list them: a,b,c"
        )
    shared = recipe
    start = time.perf_counter() if start is None else start
    # Of `auto:best`, whatever can be reached is measured; networks that were named must all be there.
    for name in available_models(recipe.models) if recipe.model == "auto:best" else recipe.models:
        own, before = shared.changed(model=name), time.perf_counter() - start
        yield measure_evidence(own, splits, progress, before)
        if groups_of(splits.train) is None:  # the first network looked for groups
            shared = shared.changed(groups="none")


def decide(recipe: Recipe, measured: Iterable[Evidence], share: float = 1.0) -> tuple[PlannedRun, ...]:
    """Return the planned runs to train: one, of the chosen network, or the members of an ensemble.

    Args:
        recipe: recipe of the run.
        measured: the evidence of each network that the recipe names.
        share: fraction of the time that is left for trainings that they may take.

    Raises:
        RecipeError: an ensemble of folds has no cross-validation, or the time budget is too short.
    """
    found = list(measured)
    # The time that all measurements took has passed, whichever network is chosen.
    passed = max(evidence.seconds_before + evidence.seconds for evidence in found)
    found = [evidence.changed(seconds_before=round(passed - evidence.seconds, 2)) for evidence in found]
    choices = [
        (evidence, choose_strategy(evidence, budgeted(recipe, evidence, share).changed(model=evidence.model)))
        for evidence in found
    ]
    chosen = choose_backbone(choices, recipe.prefer)
    others = [(evidence, choice) for evidence, choice in choices if evidence.model != chosen[0].model]
    leading = plan_choice(recipe, *chosen, share)
    if leading.choice.ensemble == "folds" and leading.plan.validation != "cross_validation":
        raise RecipeError(
            f"folds averages the trainings of a cross-validation, but here models are evaluated on "
            f"{leading.plan.evaluated_on}; ask for snapshots:3 or seeds:3"
        )
    return list_members(leading, [plan_choice(recipe, *other, share) for other in others])


def carry_out(
    members: Sequence[PlannedRun],
    splits: ImageSplits,
    folder: Path,
    progress: Progress = no_progress,
    searched: Searched | None = None,
) -> Outcome:
    """Train the members to their end and return the final model, or the members of the final ensemble.

    Members that end worse than their linear probe are rejected. If all are rejected, the fallback of the choice is
    trained, if it has one and the time budget still allows for it. Of an ensemble, the members or the average that the
    results on held-out images recommend are kept.

    Args:
        members: planned runs, the leading one first.
        splits: labelled images; the test split is not used.
        folder: folder in which each training keeps its checkpoints, under its name.
        progress: called with the work in progress.
        searched: the search that began the training of the only member; None: there was no search.

    Raises:
        DivergenceError: a training diverged.
    """
    leading = members[0]
    tried, others = train_members(members, searched.winner if searched else None, splits, folder, progress)
    trained = tried
    names = {"", *(member.planned.choice.chosen.name for member in tried)}
    if all(member.model.rejected for member in tried) and leading.choice.fallback not in names:
        planned = _plan_fallback(leading, tried)
        if planned:
            named = named_progress(progress, planned[0].name)
            tried, others = train_members(planned, None, splits, folder, named)
            trained = [*trained, *tried]
    # If all were rejected, each model is a linear probe, and the first one is kept.
    kept, options = recommend_members([each for each in tried if not each.model.rejected] or tried[:1], others)
    rejected = [each for each in trained if each.model.rejected and all(each.model is not own.model for own in kept)]
    kept = _describe_outcome(kept, rejected)
    return Outcome(
        members=tuple(member.planned for member in kept),
        models=tuple(member.model for member in kept),
        options=options,
        work=sum((member.model.work for member in trained), searched.work if searched else Work()),
        seconds=sum(member.model.seconds for member in trained),
        rejected=tuple(rejected),
    )


def _plan_fallback(leading: PlannedRun, rejected: Sequence[TrainedMember]) -> tuple[PlannedRun, ...]:
    """Return the planned runs of the fallback, within the time budget that is left; none if it is too short for them.

    How long the fallback will take follows from the first rejected training: expected times rest on a few timings, and
    may be wrong by a factor that both share.
    """
    seconds = [member.model.seconds for member in rejected]
    choice = leading.choice.led_by(leading.choice.fallback).changed(members=())
    recipe = budgeted(leading.recipe, leading.evidence)
    plan = make_plan(recipe, leading.evidence, choice)
    if recipe.time_budget is not None:
        # Processes measure slightly different times; those of the main process count for all of them.
        spent, first = from_main_process(lambda: (sum(seconds), seconds[0]))
        pace = first / max(rejected[0].planned.choice.chosen.expected_seconds, 1e-3)
        left = plan.time_budget - spent
        if left < pace * choice.chosen.expected_seconds or not choice.chosen.has_enough_steps:
            return ()
        plan = plan.changed(time_budget=left)
    return list_members(replace(leading, choice=choice, plan=plan), [])


def _describe_outcome(kept: Sequence[TrainedMember], rejected: Sequence[TrainedMember]) -> list[TrainedMember]:
    """Return the kept members; the choice and the note of the first one say which were kept and which rejected."""
    first, *others = kept
    planned, model = first
    choice = planned.choice
    if not others:
        choice = choice.changed(members=(), ensemble="")
    if rejected:
        members = [member.planned.choice.chosen.name for member in kept] if choice.members else ()
        choice = choice.changed(members=members, fallback="")
        reasons = "; ".join(
            f"{member.planned.label} ended worse than its linear probe: {member.model.rejected}" for member in rejected
        )
        labels = tuple(dict.fromkeys(member.planned.choice.chosen.label for member in kept))
        verb = "is" if len(labels) == 1 else "are"
        kept_instead = f"{reasons}; {' and '.join(labels)} {verb} kept instead"
        model = replace(model, note="; ".join(filter(None, (kept_instead, model.note))))
    return [TrainedMember(replace(planned, choice=choice), model), *others]
