"""From a recipe to what ships: networks are measured and one is chosen; where that does not decide, short trainings
race, and the winner goes on; several are trained where they are averaged; what did harm does not ship."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from finetune.data import ImageSplits
from finetune.decide.choice import choose_backbone, choose_strategy
from finetune.decide.evidence import Evidence
from finetune.decide.members import PlannedRun, budgeted, list_members, plan_choice
from finetune.decide.planning import make_plan
from finetune.ensemble.members import TrainedMember, _recommended, _train_all
from finetune.ensemble.recommendation import Option
from finetune.errors import RecipeError
from finetune.measure import measure_evidence
from finetune.predict.model import TrainedModel
from finetune.processes import from_main_process
from finetune.progress import Progress, no_progress
from finetune.recipe import Recipe
from finetune.runs.race import RacedMembers, _race, _sum
from finetune.work import Work


def decide(
    recipe: Recipe,
    splits: ImageSplits,
    progress: Progress = no_progress,
    tell: Callable[[Evidence], None] = lambda _evidence: None,
) -> tuple[PlannedRun, ...]:
    """Return what is trained: one, for the network that is chosen among the recipe's, or the members of an ensemble.

    Args:
        recipe: what was asked.
        splits: labelled images; the test split is not looked at.
        progress: told what is going on.
        tell: told each network's evidence.

    Raises:
        ModelError: an unknown network, or weights that are not to be had.
        RecipeError: an ensemble of backbones that has one, or of folds that there are not.
    """
    if recipe.ensemble == "backbones" and len(recipe.models) == 1:
        raise RecipeError(
            f"backbones averages several networks, but model names {recipe.model} alone; list them: a,b,c"
        )
    measured = []
    for name in recipe.models:
        own = budgeted(recipe).changed(model=name)
        evidence = from_main_process(partial(measure_evidence, own, splits, progress))
        tell(evidence)
        measured.append((evidence, choose_strategy(evidence, own)))
    chosen = choose_backbone(measured, recipe.prefer)
    others = [(evidence, choice) for evidence, choice in measured if evidence.model != chosen[0].model]
    leading = plan_choice(recipe, *chosen)
    if leading.choice.ensemble == "folds" and leading.plan.validation != "cross_validation":
        raise RecipeError(
            f"folds averages the trainings of a cross-validation, but here {leading.plan.judged_on} will judge; "
            f"ask for snapshots:3 or seeds:3"
        )
    return list_members(leading, [plan_choice(recipe, *other) for other in others])


def begin(
    members: Sequence[PlannedRun], splits: ImageSplits, folder: Path, progress: Progress = no_progress
) -> RacedMembers:
    """Return what is trained after the race, if its choice wants one.

    What was interrupted goes on from `folder` and ends as it would have.

    Args:
        members: what was decided.
        splits: labelled images; the test split is not looked at.
        folder: where each training keeps its checkpoints, under its name.
        progress: told what is going on.

    Raises:
        DivergenceError: a training diverged.
    """
    if members[0].choice.racing:
        return _race(members[0], splits, folder, progress)
    return RacedMembers(members=tuple(members), winner=None, work=Work(), seconds=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What ships, and what all of it took."""

    members: tuple[PlannedRun, ...]
    """Why and how each model that ships was trained."""
    models: tuple[TrainedModel, ...]
    """One, or the members of an ensemble."""
    work: Work
    seconds: float
    """Of the trainings that went to their end."""
    options: tuple[Option, ...]
    """What could have shipped, where more than one model was trained."""
    lost: tuple[TrainedMember, ...]
    """What did harm and does not ship, for who wants to know why."""


def finish(begun: RacedMembers, splits: ImageSplits, folder: Path, progress: Progress = no_progress) -> Outcome:
    """Return what ships of trainings that were begun: all, but those that did harm; where all did, those of another
    candidate, if the choice has one. Of an ensemble, or of an average of candidates, what the held-out images
    recommend.

    The arguments and errors are those of `begin`.
    """
    leading = begun.members[0]
    tried, mixtures = _train_all(begun.members, begun.winner, splits, folder, progress)
    trained = tried
    fallback = leading.choice.fallback
    if all(model.harm for _, model in tried) and fallback not in {"", *(own.choice.chosen.name for own, _ in tried)}:
        seconds = begun.seconds + sum(model.seconds for _, model in tried)
        tried, mixtures = _train_all(_fall_back(leading, seconds), None, splits, folder, progress)
        trained = [*trained, *tried]
    # Where all did harm, each is a linear probe.
    kept, options = _recommended([each for each in tried if not each[1].harm] or tried[:1], mixtures)
    lost = [each for each in trained if each[1].harm and all(each[1] is not model for _, model in kept)]
    kept = _settled(kept, lost)
    return Outcome(
        members=tuple(own for own, _ in kept),
        models=tuple(model for _, model in kept),
        options=options,
        work=_sum((begun.work, *(model.work for _, model in trained))),
        seconds=sum(model.seconds for _, model in trained),
        lost=tuple(lost),
    )


def _fall_back(leading: PlannedRun, spent: float) -> tuple[PlannedRun, ...]:
    """Return what is trained where all that was chosen did harm, in what is left of the time budget."""
    choice = leading.choice.led_by(leading.choice.fallback).changed(members=())
    plan = make_plan(budgeted(leading.recipe), leading.evidence, choice)
    if leading.recipe.time_budget is not None:
        left = 1.0 - spent / leading.recipe.time_budget
        plan = plan.changed(time_budget=max(1.0, left * plan.time_budget))
    return list_members(replace(leading, choice=choice, plan=plan), [])


def _settled(kept: list[TrainedMember], lost: Sequence[TrainedMember]) -> list[TrainedMember]:
    """Return what ships, with a choice that says so and a note of what did harm and does not ship."""
    (leading, model), *others = kept
    choice = leading.choice
    if not others:
        choice = choice.changed(members=(), ensemble="")
    if lost:
        members = [own.choice.chosen.name for own, _ in kept] if choice.members else ()
        choice = choice.changed(members=members, racing=(), fallback="")
        told = "; ".join(f"training {own.label} did harm: {each.harm}" for own, each in lost)
        labels = tuple(dict.fromkeys(own.choice.chosen.label for own, _ in kept))
        ships = "ships" if len(labels) == 1 else "ship"
        model = replace(model, note=f"{told}; {' and '.join(labels)} {ships} instead. {model.note}".rstrip())
    return [(replace(leading, choice=choice), model), *others]
