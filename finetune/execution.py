"""From a recipe to what ships: networks are measured and one is chosen; where that does not decide, short trainings
race, and the winner goes on; several are trained where they are averaged; what did harm does not ship."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.audit import measure_evidence
from finetune.decisions import Decisions, budgeted, list_members, plan_choice
from finetune.errors import RecipeError
from finetune.evidence import Evidence, Work
from finetune.features import Progress, no_progress
from finetune.images import ImageSplits
from finetune.planning import make_plan
from finetune.prediction import TrainedModel, average
from finetune.probing import softmax
from finetune.processes import from_main_process, is_main_process
from finetune.recipe import Recipe
from finetune.recommendation import Offer, Option, recommend
from finetune.selection import RUNGS, compete
from finetune.strategy import choose_backbone, choose_strategy, make_contest, settle
from finetune.training import Checkpoints, NotFiniteError, Training, blend, fold_models, soup, with_flips

FLIPPED, BLENDED, SOUP = "with test-time flips", "blend with the linear probe", "soup"
"""What else could ship of an ensemble of one network."""

Trained = tuple[Decisions, TrainedModel]
"""Why and how something was trained, and what came of it."""


def decide(
    recipe: Recipe,
    splits: ImageSplits,
    progress: Progress = no_progress,
    tell: Callable[[Evidence], None] = lambda _evidence: None,
) -> tuple[Decisions, ...]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What is to be finished."""

    members: tuple[Decisions, ...]
    """Decided: what is trained, after the race where there was one."""
    winner: Training | None
    """Of the race, to go on from where it paused."""
    work: Work
    """Of those who lost it."""
    seconds: float
    """What they took."""


def begin(members: Sequence[Decisions], splits: ImageSplits, folder: Path, progress: Progress = no_progress) -> Begun:
    """Return what is trained after the race, if its choice wants one.

    What was interrupted goes on from `folder` and ends as it would have.

    Args:
        members: what was decided.
        splits: labelled images; the test split is not looked at.
        folder: where each training keeps its checkpoints, under its name.
        progress: told what is going on.

    Raises:
        NotFiniteError: a training diverged.
    """
    if members[0].choice.racing:
        return _race(members[0], splits, folder, progress)
    return Begun(members=tuple(members), winner=None, work=Work(), seconds=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What ships, and what all of it took."""

    members: tuple[Decisions, ...]
    """Why and how each model that ships was trained."""
    models: tuple[TrainedModel, ...]
    """One, or the members of an ensemble."""
    work: Work
    seconds: float
    """Of the trainings that went to their end."""
    options: tuple[Option, ...]
    """What could have shipped, where more than one model was trained."""
    lost: tuple[Trained, ...]
    """What did harm and does not ship, for who wants to know why."""


def finish(begun: Begun, splits: ImageSplits, folder: Path, progress: Progress = no_progress) -> Finished:
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
    return Finished(
        members=tuple(own for own, _ in kept),
        models=tuple(model for _, model in kept),
        options=options,
        work=_sum((begun.work, *(model.work for _, model in trained))),
        seconds=sum(model.seconds for _, model in trained),
        lost=tuple(lost),
    )


def _fall_back(leading: Decisions, spent: float) -> tuple[Decisions, ...]:
    """Return what is trained where all that was chosen did harm, in what is left of the time budget."""
    choice = leading.choice.led_by(leading.choice.fallback).changed(members=())
    plan = make_plan(budgeted(leading.recipe), leading.evidence, choice)
    if leading.recipe.time_budget is not None:
        left = 1.0 - spent / leading.recipe.time_budget
        plan = plan.changed(time_budget=max(1.0, left * plan.time_budget))
    return list_members(replace(leading, choice=choice, plan=plan), [])


def _train_all(
    members: Sequence[Decisions],
    winner: Training | None,
    splits: ImageSplits,
    folder: Path,
    progress: Progress,
) -> tuple[list[Trained], dict[str, TrainedModel]]:
    """Train every member to its end; of an ensemble of one network the first alone, where it did harm: snapshots go on
    from it, and other seeds go the same way.

    Returns:
        the members with their models; of an ensemble of one network, its first member with test-time flips where labels
        allow them, and with weights nearer to the linear probe's; and the soup if it is better than the best member.
    """
    if members[0].choice.ensemble == "folds":
        return _train_folds(members, splits, folder, progress), {}
    trained: list[Trained] = []
    trainings: list[Training] = []
    is_one_network = members[0].choice.ensemble.startswith(("seeds", "snapshots"))
    for own in members:
        told = _naming(progress, own.name) if len(members) > 1 else progress
        earlier = trainings[0] if own.plan.cycle else None
        training = winner or _begin(own, splits, folder, told, earlier, keeps_weights=is_one_network)
        trainings.append(training)
        trained.append((own, training.finish()))
        if is_one_network and trained[0][1].harm:
            return trained, {}
    if not is_one_network:
        return trained, {}
    finished = [(training, model) for training, (_, model) in zip(trainings, trained, strict=True) if not model.harm]
    return trained, _mixtures(finished)


def _train_folds(members: Sequence[Decisions], splits: ImageSplits, folder: Path, progress: Progress) -> list[Trained]:
    """Train the first member: the others are the folds that judge it."""
    training = _begin(members[0], splits, folder, progress, keeps_weights=True)
    model = training.finish()
    if model.harm:
        return [(members[0], model)]
    return list(zip(members, [model, *fold_models(training, model)], strict=True))


def _mixtures(finished: Sequence[tuple[Training, TrainedModel]]) -> dict[str, TrainedModel]:
    """Return what else trainings of one network give, by name."""
    found: dict[str, TrainedModel] = {}
    training, _ = finished[0]
    plan = training.plan
    if plan.augmentation.horizontal_flip and not plan.test_time_flips:
        found[FLIPPED] = with_flips(training)
    if plan.strategy not in {"linear_probe", "scratch"}:
        found[BLENDED] = blend(training)
    mixed = soup(finished) if plan.strategy != "scratch" else None  # random weights have no mean that is good
    return found if mixed is None else {**found, SOUP: mixed}


def _recommended(kept: list[Trained], mixtures: Mapping[str, TrainedModel]) -> tuple[list[Trained], tuple[Option, ...]]:
    """Return what ships of an ensemble or of an average of candidates, and what could have."""
    leading = kept[0][0]
    if leading.choice.ensemble == "folds" or len(kept) + len(mixtures) < 2:
        return kept, ()  # folds hold different images out, which can not tell what their mean is worth
    seconds = [model.seconds for _, model in kept]
    latency = [1e3 / own.evidence.speed.forward_images_per_second for own, _ in kept]
    entries = [
        (Offer(name=each[0].label, model=each[1], train_seconds=took, predict_milliseconds=needs), [each])
        for each, took, needs in zip(kept, seconds, latency, strict=True)
    ]
    for name, model in mixtures.items():
        passes = 2 if name == FLIPPED else 1
        took = sum(seconds) if name == SOUP else seconds[0]
        offer = Offer(name=name, model=model, train_seconds=took, predict_milliseconds=passes * latency[0])
        entries.append((offer, [(replace(leading, plan=model.plan), model)]))
    if len(kept) > 1:
        mean = average([model for _, model in kept])
        name = f"mean of {len(kept)}"
        offer = Offer(name=name, model=mean, train_seconds=sum(seconds), predict_milliseconds=sum(latency))
        entries.append((offer, kept))
    options = recommend([offer for offer, _ in entries], asked=len(entries) - 1 if len(kept) > 1 else 0)
    ships = next(each for option, (_, each) in zip(options, entries, strict=True) if option.recommended)
    return ships, options


def _settled(kept: list[Trained], lost: Sequence[Trained]) -> list[Trained]:
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


def _race(leading: Decisions, splits: ImageSplits, folder: Path, progress: Progress) -> Begun:
    """Train those that race to a rung, drop those that will hardly be picked, and so on until one is left."""
    choice, recipe, evidence = leading.choice, leading.recipe, leading.evidence
    contest = make_contest(choice.candidates, evidence, recipe)
    entries = {}
    for name in choice.racing:
        own = choice.led_by(name)
        entries[name] = replace(leading, choice=own, plan=make_plan(recipe, evidence, own))
    trainings: dict[str, Training] = {}

    def look(rung: int, places: list[int]) -> NDArray[np.float64]:
        seen = []
        for name in contest.named(places):
            if name not in trainings:
                trainings[name] = _begin(entries[name], splits, folder, _naming(progress, name))
            training = trainings[name]
            training.spend(sum(other.seconds for other in trainings.values() if other is not training))
            seen.append(_right(training, RUNGS[rung]))
        # Processes may differ in the last digit, and must not differ in what they decide.
        return from_main_process(lambda: np.stack(seen))

    entered = [contest.names.index(name) for name in choice.racing]
    ended = compete(contest.belief, contest.costs, contest.tolerance, entered, look)
    winner = contest.names[ended.winner]
    training = trainings.pop(winner, None) or _begin(entries[winner], splits, folder, progress)
    seconds = sum(lost.seconds for lost in trainings.values())
    training.spend(seconds)
    won = replace(leading, choice=settle(choice, contest, ended, evidence), plan=training.plan)
    return Begun(members=(won,), winner=training, work=_sum(lost.work for lost in trainings.values()), seconds=seconds)


def _begin(
    own: Decisions,
    splits: ImageSplits,
    folder: Path,
    progress: Progress,
    earlier: Training | None = None,
    keeps_weights: bool = False,
) -> Training:
    checkpoints = Checkpoints(folder / own.name, writes=is_main_process())
    checkpoints.begin()
    return Training(own.plan, splits, progress, checkpoints, earlier=earlier, keeps_weights=keeps_weights)


def _naming(progress: Progress, name: str) -> Progress:
    """Return a progress that says whose tasks these are."""
    return lambda task, done, total: progress(f"{name}: {task}", done, total)


def _right(training: Training, share: float) -> NDArray[np.float64]:
    """Return each held-out image's probability of its class after a share of the steps: 0, where they diverged."""
    try:
        look = training.look(share)
    except NotFiniteError:
        return np.zeros(sum(len(phase.held_out) for phase in training.phases))
    probabilities: NDArray[np.float64] = softmax(look.logits)[np.arange(len(look.labels)), look.labels]
    return probabilities


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, Work())
