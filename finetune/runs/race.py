"""Carry out a race: train the candidates to each rung, drop the unlikely ones, and return the winner."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data import ImageSplits
from finetune.decide.candidates import RUNGS
from finetune.decide.choice import settle
from finetune.decide.contest import make_contest
from finetune.decide.planned_run import PlannedRun
from finetune.decide.planning import make_plan
from finetune.decide.race import compete
from finetune.ensemble.members import begin_member, name_tasks
from finetune.predict.metrics import softmax
from finetune.processes import from_main_process
from finetune.progress import Progress
from finetune.training import TrainingDivergedError, TrainingState, evaluate_at
from finetune.training.evaluation import HeldOutPredictions
from finetune.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class RacedMembers:
    """The trainings that remain to be finished, after a race or without one."""

    members: tuple[PlannedRun, ...]
    """Planned runs to train: the winner, or all members if there was no race."""
    winner: TrainingState | None
    """Paused training of the winner; None if there was no race."""
    work: Work
    """Images decoded, sent forward and sent backward by the candidates that lost."""
    seconds: float
    """Wall time of the candidates that lost, in seconds."""


def run_race(leading: PlannedRun, splits: ImageSplits, folder: Path, progress: Progress) -> RacedMembers:
    """Train the racing candidates from rung to rung, until one candidate or no further rung is left.

    Args:
        leading: the planned run whose choice names the racing candidates.
        splits: labelled images; the test split is not used.
        folder: folder in which each training keeps its checkpoints, under its name.
        progress: called with the work in progress.
    """
    choice, recipe, evidence = leading.choice, leading.recipe, leading.evidence
    contest = make_contest(choice.candidates, evidence, recipe)
    planned = {}
    for name in choice.racing:
        own = choice.led_by(name)
        planned[name] = replace(leading, choice=own, plan=make_plan(recipe, evidence, own))
    racers: dict[str, TrainingState] = {}

    def evaluate(rung: int, places: list[int]) -> NDArray[np.float64]:
        found = []
        for name in contest.named(places):
            if name not in racers:
                racers[name] = begin_member(planned[name], splits, folder, name_tasks(progress, name))
            elsewhere = sum(racer.seconds for other, racer in racers.items() if other != name)
            racers[name], right = _train_to(racers[name], RUNGS[rung], elsewhere)
            found.append(right)
        # Processes may differ in the last digit; the main process decides for all of them.
        return from_main_process(lambda: np.stack(found))

    entered = [contest.names.index(name) for name in choice.racing]
    ended = compete(contest, entered, evaluate)
    winner = contest.names[ended.winner]
    state = racers.pop(winner, None) or begin_member(planned[winner], splits, folder, progress)
    seconds = sum(lost.seconds for lost in racers.values())
    won = replace(leading, choice=settle(choice, ended, evidence), plan=state.plan)
    return RacedMembers(
        members=(won,),
        winner=replace(state, spent_elsewhere=seconds),
        work=sum((lost.work for lost in racers.values()), Work()),
        seconds=seconds,
    )


def _train_to(state: TrainingState, share: float, spent_elsewhere: float) -> tuple[TrainingState, NDArray[np.float64]]:
    """Train a candidate to a fraction of its steps; return each held-out image's probability of its class.

    If the candidate diverges, its probabilities (n_images,) are 0, so that it drops out of the race.
    """
    try:
        state, found = evaluate_at(replace(state, spent_elsewhere=spent_elsewhere), share)
    except TrainingDivergedError as error:
        return error.state, np.zeros(sum(len(phase.held_out) for phase in state.material.phases))
    return state, _right(found)


def _right(found: HeldOutPredictions) -> NDArray[np.float64]:
    """Return the probability of the right class of each held-out image, (n_images,)."""
    probabilities: NDArray[np.float64] = softmax(found.logits)[np.arange(len(found.labels)), found.labels]
    return probabilities
