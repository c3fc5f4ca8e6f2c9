"""From a choice to the training of what was chosen; where it is not sure, short trainings race, and the winner goes
on."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.evidence import Evidence, Work
from finetune.features import Progress, no_progress
from finetune.images import ImageSplits
from finetune.plan import Plan, make_plan
from finetune.probing import softmax
from finetune.processes import from_main_process, is_main_process
from finetune.recipe import Recipe
from finetune.selection import RUNGS, compete
from finetune.strategy import Choice, make_contest, settle
from finetune.training import Checkpoints, Look, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a race ended."""

    choice: Choice
    """Decided."""
    plan: Plan
    training: Training
    """Of the plan; where it raced, it goes on from there."""
    work: Work
    """Of those who lost."""
    seconds: float
    """What they took."""


def race(
    recipe: Recipe,
    evidence: Evidence,
    choice: Choice,
    splits: ImageSplits,
    folder: Path,
    progress: Progress = no_progress,
) -> Outcome:
    """Train those that race to a rung, drop those that will hardly be picked, and so on until one is left.

    An interrupted race goes on from `folder` and ends as it would have.

    Args:
        recipe: what was asked.
        evidence: what was measured.
        choice: says who races.
        splits: labelled images; the test split is not looked at.
        folder: where each racer keeps its checkpoints, under its name.
        progress: told what is going on.

    Raises:
        NotFiniteError: a training diverged.
    """
    contest = make_contest(choice.candidates, evidence, recipe)
    plans = {name: make_plan(recipe, evidence, choice.led_by(name)) for name in choice.racing}
    trainings: dict[str, Training] = {}

    def look(rung: int, places: list[int]) -> NDArray[np.float64]:
        seen = []
        for name in contest.named(places):
            if name not in trainings:
                trainings[name] = _begin(plans[name], name, splits, folder, progress)
            seen.append(_right(trainings[name].look(RUNGS[rung])))
        # Processes may differ in the last digit, and must not differ in what they decide.
        return from_main_process(lambda: np.stack(seen))

    entered = [contest.names.index(name) for name in choice.racing]
    ended = compete(contest.belief, contest.costs, contest.tolerance, entered, look)
    winner = contest.names[ended.winner]
    training = trainings.pop(winner, None) or _begin(plans[winner], winner, splits, folder, progress)
    settled = settle(choice, contest, ended, evidence)
    return Outcome(
        choice=settled,
        plan=plans[winner],
        training=training,
        work=_sum(lost.work for lost in trainings.values()),
        seconds=sum(lost.seconds for lost in trainings.values()),
    )


def _begin(plan: Plan, name: str, splits: ImageSplits, folder: Path, progress: Progress) -> Training:
    checkpoints = Checkpoints(folder / name, writes=is_main_process())
    checkpoints.begin()

    def told(task: str, done: int, total: int) -> None:
        progress(f"{name}: {task}", done, total)

    return Training(plan, splits, told, checkpoints)


def _right(look: Look) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = softmax(look.logits)[np.arange(len(look.labels)), look.labels]
    return probabilities


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, Work())
