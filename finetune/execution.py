"""From a recipe to what ships: networks are measured and one is chosen; where that does not decide, short trainings
race, and the winner goes on; several are trained where they are averaged; what did harm does not ship."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.audit import measure_evidence
from finetune.evidence import Evidence, Work
from finetune.features import Progress, no_progress
from finetune.images import ImageSplits
from finetune.plan import Plan, make_plan
from finetune.prediction import TrainedModel
from finetune.probing import softmax
from finetune.processes import from_main_process, is_main_process
from finetune.recipe import Recipe
from finetune.selection import RUNGS, compete
from finetune.strategy import Choice, choose_backbone, choose_strategy, make_contest, settle
from finetune.training import Checkpoints, Look, Training


def decide(
    recipe: Recipe,
    splits: ImageSplits,
    progress: Progress = no_progress,
    tell: Callable[[Evidence], None] = lambda _evidence: None,
) -> tuple[Evidence, Choice]:
    """Return the evidence of the network that is chosen among the recipe's, and what is chosen for it.

    Args:
        recipe: what was asked.
        splits: labelled images; the test split is not looked at.
        progress: told what is going on.
        tell: told each network's evidence.

    Raises:
        ModelError: an unknown network, or weights that are not to be had.
    """
    measured = []
    for name in recipe.models:
        own = recipe.changed(model=name)
        evidence = from_main_process(partial(measure_evidence, own, splits, progress))
        tell(evidence)
        measured.append((evidence, choose_strategy(evidence, own)))
    return choose_backbone(measured, recipe.prefer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What is to be finished."""

    choice: Choice
    """Decided."""
    trainings: tuple[Training, ...]
    """Of the chosen candidate, which goes on from the race where there was one; of all members of an ensemble."""
    work: Work
    """Of those who lost a race."""
    seconds: float
    """What they took."""


def begin(
    recipe: Recipe,
    evidence: Evidence,
    choice: Choice,
    plan: Plan,
    splits: ImageSplits,
    folder: Path,
    progress: Progress = no_progress,
) -> Begun:
    """Return the trainings of a choice, begun, after its race if it wants one.

    What was interrupted goes on from `folder` and ends as it would have.

    Args:
        recipe: what was asked.
        evidence: what was measured.
        choice: says what is trained, and who races.
        plan: the chosen candidate's, which is carried out where it trains alone.
        splits: labelled images; the test split is not looked at.
        folder: where each training keeps its checkpoints, under its name.
        progress: told what is going on.

    Raises:
        NotFiniteError: a training diverged.
    """
    if choice.racing:
        return _race(recipe, evidence, choice, splits, folder, progress)
    plans = [_plan_member(recipe, evidence, choice, name) for name in choice.members]
    trainings = [
        _begin(own, name, splits, folder, _naming(progress, name))
        for name, own in zip(choice.members, plans, strict=True)
    ]
    trainings = trainings or [_begin(plan, choice.chosen.name, splits, folder, progress)]
    return Begun(choice=choice, trainings=tuple(trainings), work=Work(), seconds=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What ships, and what all of it took."""

    choice: Choice
    """Of what ships."""
    models: tuple[TrainedModel, ...]
    """One, or the members of an ensemble."""
    work: Work
    seconds: float
    """Of the trainings that went to their end."""


def finish(
    begun: Begun,
    recipe: Recipe,
    evidence: Evidence,
    splits: ImageSplits,
    folder: Path,
    progress: Progress = no_progress,
) -> Finished:
    """Return what ships of trainings that were begun: all, but those that did harm; where all did, another candidate,
    if the choice has one.

    The arguments and errors are those of `begin`.
    """
    choice = begun.choice
    names = choice.members or (choice.chosen.name,)
    trained = {name: training.finish() for name, training in zip(names, begun.trainings, strict=True)}
    kept = tuple(name for name, model in trained.items() if not model.harm)
    if not kept and choice.fallback not in {"", *names}:
        kept = (choice.fallback,)
        spent = begun.seconds + sum(model.seconds for model in trained.values())
        plan = make_plan(recipe, evidence, choice.led_by(choice.fallback))
        training = _begin(plan, choice.fallback, splits, folder, _naming(progress, choice.fallback))
        training.spend(spent)
        trained[choice.fallback] = training.finish()
    kept = kept or names[:1]  # a linear probe, for its training did harm, too
    models = [trained[name] for name in kept]
    if kept != names:
        labels = {candidate.name: candidate.label for candidate in choice.candidates}
        told = [f"training {labels[name]} did harm: {trained[name].harm}" for name in names if name not in kept]
        note = f"{'; '.join(told)}; {labels[kept[0]]} ships instead. {models[0].note}".rstrip()
        models = [replace(models[0], note=note)]
        choice = choice.led_by(kept[0]).changed(members=(), racing=(), fallback="")
    return Finished(
        choice=choice,
        models=tuple(models),
        work=_sum((begun.work, *(model.work for model in trained.values()))),
        seconds=sum(model.seconds for model in trained.values()),
    )


def _race(
    recipe: Recipe,
    evidence: Evidence,
    choice: Choice,
    splits: ImageSplits,
    folder: Path,
    progress: Progress,
) -> Begun:
    """Train those that race to a rung, drop those that will hardly be picked, and so on until one is left."""
    contest = make_contest(choice.candidates, evidence, recipe)
    plans = {name: make_plan(recipe, evidence, choice.led_by(name)) for name in choice.racing}
    trainings: dict[str, Training] = {}

    def look(rung: int, places: list[int]) -> NDArray[np.float64]:
        seen = []
        for name in contest.named(places):
            if name not in trainings:
                trainings[name] = _begin(plans[name], name, splits, folder, _naming(progress, name))
            seen.append(_right(trainings[name].look(RUNGS[rung])))
        # Processes may differ in the last digit, and must not differ in what they decide.
        return from_main_process(lambda: np.stack(seen))

    entered = [contest.names.index(name) for name in choice.racing]
    ended = compete(contest.belief, contest.costs, contest.tolerance, entered, look)
    winner = contest.names[ended.winner]
    training = trainings.pop(winner, None) or _begin(plans[winner], winner, splits, folder, progress)
    seconds = sum(lost.seconds for lost in trainings.values())
    training.spend(seconds)
    return Begun(
        choice=settle(choice, contest, ended, evidence),
        trainings=(training,),
        work=_sum(lost.work for lost in trainings.values()),
        seconds=seconds,
    )


def _plan_member(recipe: Recipe, evidence: Evidence, choice: Choice, name: str) -> Plan:
    """Return a member's plan, with its share of the time budget."""
    plan = make_plan(recipe, evidence, choice.led_by(name))
    seconds = {each.name: each.expected_seconds for each in choice.candidates if each.name in choice.members}
    return plan.changed(time_budget=plan.time_budget * seconds[name] / sum(seconds.values()))


def _begin(plan: Plan, name: str, splits: ImageSplits, folder: Path, progress: Progress) -> Training:
    checkpoints = Checkpoints(folder / name, writes=is_main_process())
    checkpoints.begin()
    return Training(plan, splits, progress, checkpoints)


def _naming(progress: Progress, name: str) -> Progress:
    """Return a progress that says whose tasks these are."""
    return lambda task, done, total: progress(f"{name}: {task}", done, total)


def _right(look: Look) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = softmax(look.logits)[np.arange(len(look.labels)), look.labels]
    return probabilities


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, Work())
