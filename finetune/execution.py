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
from finetune.plan import make_plan
from finetune.prediction import TrainedModel, average
from finetune.probing import softmax
from finetune.processes import from_main_process, is_main_process
from finetune.recipe import Recipe
from finetune.recommendation import Offer, Option, recommend
from finetune.selection import RUNGS, compete
from finetune.strategy import choose_backbone, choose_strategy, make_contest, settle
from finetune.training import Checkpoints, Look, Training


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
        RecipeError: an ensemble of backbones that has one.
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
    return list_members(plan_choice(recipe, *chosen), [plan_choice(recipe, *other) for other in others])


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
    """What could have shipped, where an ensemble was asked for."""


def finish(begun: Begun, splits: ImageSplits, folder: Path, progress: Progress = no_progress) -> Finished:
    """Return what ships of trainings that were begun: all, but those that did harm; where all did, another candidate,
    if the choice has one. Of an ensemble that was asked for, what the held-out images recommend.

    The arguments and errors are those of `begin`.
    """
    trained, mixtures = _train_all(begun, splits, folder, progress)
    kept = [(own, model) for own, model in trained if not model.harm]
    leading = begun.members[0]
    fallback = leading.choice.fallback
    if not kept and fallback not in {"", *(own.choice.chosen.name for own in begun.members)}:
        choice = leading.choice.led_by(fallback)
        own = replace(leading, choice=choice, plan=make_plan(leading.recipe, leading.evidence, choice))
        training = _begin(own, splits, folder, _naming(progress, own.name))
        training.spend(begun.seconds + sum(model.seconds for _, model in trained))
        kept = [(own, training.finish())]
        trained = [*trained, *kept]
    kept = kept or trained[:1]  # a linear probe, for its training did harm, too
    if len(kept) < len(begun.members) or kept[0][0].choice.chosen.name != leading.choice.chosen.name:
        kept = _told(kept, trained)
    kept, options = _recommended(kept, mixtures)
    return Finished(
        members=tuple(own for own, _ in kept),
        models=tuple(model for _, model in kept),
        options=options,
        work=_sum((begun.work, *(model.work for _, model in trained))),
        seconds=sum(model.seconds for _, model in trained),
    )


def _train_all(
    begun: Begun, splits: ImageSplits, folder: Path, progress: Progress
) -> tuple[list[tuple[Decisions, TrainedModel]], dict[str, TrainedModel]]:
    """Train every member to its end; snapshots after the training that they go on from, unless it did harm.

    Returns:
        the members with their models; of an ensemble of one network, its first member with test-time flips where labels
        allow them, and the soup if it is better than the best member.
    """
    trained: list[tuple[Decisions, TrainedModel]] = []
    trainings: list[Training] = []
    is_one_network = begun.members[0].choice.ensemble.startswith(("seeds", "snapshots"))
    for own in begun.members:
        if own.plan.cycle and trained[0][1].harm:
            break
        told = _naming(progress, own.name) if len(begun.members) > 1 else progress
        earlier = trainings[0] if own.plan.cycle else None
        training = begun.winner or _begin(own, splits, folder, told, earlier, keeps_weights=is_one_network)
        trained.append((own, training.finish()))
        if not trained[-1][1].harm:
            trainings.append(training)
    mixtures: dict[str, TrainedModel] = {}
    if is_one_network and trainings:
        plan = trainings[0].plan
        if plan.augmentation.horizontal_flip and not plan.test_time_flips:
            mixtures["with test-time flips"] = trainings[0].with_flips()
        soup = trainings[0].soup(trainings[1:]) if len(trainings) > 1 and plan.strategy != "scratch" else None
        if soup is not None:
            mixtures["soup"] = soup
    return trained, mixtures


def _recommended(
    kept: list[tuple[Decisions, TrainedModel]], mixtures: Mapping[str, TrainedModel]
) -> tuple[list[tuple[Decisions, TrainedModel]], tuple[Option, ...]]:
    """Return what ships of an ensemble that was asked for, and what could have."""
    leading = kept[0][0]
    if not leading.choice.ensemble:
        return kept, ()
    seconds = [model.seconds for _, model in kept]
    latency = [1e3 / own.evidence.speed.forward_images_per_second for own, _ in kept]
    offers = [
        Offer(name=own.label, model=model, train_seconds=seconds[place], predict_milliseconds=latency[place])
        for place, (own, model) in enumerate(kept)
    ]
    ships = [[each] for each in kept]
    for name, model in mixtures.items():
        needed, passes = (seconds[0], 2) if model.plan.test_time_flips else (sum(seconds), 1)
        offers.append(Offer(name=name, model=model, train_seconds=needed, predict_milliseconds=passes * latency[0]))
        ships.append([(replace(leading, plan=model.plan), model)])
    mean = average([model for _, model in kept])
    offers.append(
        Offer(name=f"mean of {len(kept)}", model=mean, train_seconds=sum(seconds), predict_milliseconds=sum(latency))
    )
    ships.append(kept)
    options = recommend(offers)
    place = next(place for place, option in enumerate(options) if option.recommended)
    if len(ships[place]) > 1:
        return kept, options
    own, model = ships[place][0]
    return [(replace(own, choice=own.choice.changed(ensemble="", fallback="")), model)], options


def _told(
    kept: list[tuple[Decisions, TrainedModel]], trained: list[tuple[Decisions, TrainedModel]]
) -> list[tuple[Decisions, TrainedModel]]:
    """Return what ships, with a note of what does not."""
    shipped = [own.name for own, _ in kept]
    lost = [(own, model) for own, model in trained if own.name not in shipped]
    labels = [own.label for own, _ in kept]
    told = [f"training {own.label} did harm: {model.harm}" for own, model in lost]
    (leading, model), *rest = kept
    ships = f"{' and '.join(labels)} {'ships' if len(labels) == 1 else 'ship'} instead"
    note = "; ".join([*told, f"{ships}. {model.note}".rstrip()]) if told else model.note
    is_alone = len(kept) == 1
    choice = leading.choice.changed(
        members=() if is_alone else [own.choice.chosen.name for own, _ in kept if own.choice.members],
        ensemble="" if is_alone else leading.choice.ensemble,
        racing=(),
        fallback="",
    )
    return [(replace(leading, choice=choice), replace(model, note=note)), *rest]


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
            seen.append(_right(trainings[name].look(RUNGS[rung])))
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


def _right(look: Look) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = softmax(look.logits)[np.arange(len(look.labels)), look.labels]
    return probabilities


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, Work())
