"""Carry out a race: train the candidates to each rung and return the winner."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data import ImageSplits
from finetune.decide.candidates import RUNGS
from finetune.decide.choice import settle
from finetune.decide.contest import make_contest
from finetune.decide.members import PlannedRun
from finetune.decide.planning import make_plan
from finetune.decide.race import compete
from finetune.ensemble.members import _begin, _naming
from finetune.errors import DivergenceError
from finetune.predict.metrics import softmax
from finetune.processes import from_main_process
from finetune.progress import Progress
from finetune.training import Training
from finetune.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class RacedMembers:
    """What is to be finished."""

    members: tuple[PlannedRun, ...]
    """Decided: what is trained, after the race where there was one."""
    winner: Training | None
    """Of the race, to go on from where it paused."""
    work: Work
    """Of those who lost it."""
    seconds: float
    """What they took."""


def _race(leading: PlannedRun, splits: ImageSplits, folder: Path, progress: Progress) -> RacedMembers:
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
    return RacedMembers(
        members=(won,), winner=training, work=_sum(lost.work for lost in trainings.values()), seconds=seconds
    )


def _right(training: Training, share: float) -> NDArray[np.float64]:
    """Return each held-out image's probability of its class after a share of the steps: 0, where they diverged."""
    try:
        look = training.look(share)
    except DivergenceError:
        return np.zeros(sum(len(phase.held_out) for phase in training.phases))
    probabilities: NDArray[np.float64] = softmax(look.logits)[np.arange(len(look.labels)), look.labels]
    return probabilities


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, Work())
