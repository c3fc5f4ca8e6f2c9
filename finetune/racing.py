"""Short trainings of several candidates, judged on the same held-out images; the winner goes on from where it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.evidence import Work
from finetune.features import Progress, no_progress
from finetune.images import ImageSplits
from finetune.plan import Plan
from finetune.probing import softmax
from finetune.selection import DISCREPANCY, RUNGS, Belief, finalists, measured, update
from finetune.training import Checkpoints, Look, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Racer:
    """A candidate in a race."""

    candidate: int
    """Its place in the belief."""
    name: str
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a race ended."""

    winner: Racer
    training: Training
    """The winner's, to be finished."""
    belief: Belief
    """About all candidates, with what the race showed."""
    story: tuple[str, ...]
    """A sentence for each rung."""
    work: Work
    """Of those who lost."""
    seconds: float
    """What they took."""


def race(
    racers: Sequence[Racer],
    belief: Belief,
    costs: Sequence[float],
    tolerance: float,
    splits: ImageSplits,
    folder: Path,
    progress: Progress = no_progress,
) -> Outcome:
    """Train all racers to a rung, drop those that will hardly be picked, and so on until one is left or no rung is.

    An interrupted race goes on from `folder`.

    Args:
        racers: of the candidates, those who race, with plans that hold out the same images.
        belief: about all candidates, before.
        costs: of all candidates.
        tolerance: how far below the best a candidate may be expected to be, in accuracy.
        splits: labelled images; the test split is not looked at.
        folder: where each keeps its checkpoints, under its name.
        progress: told what is going on.

    Raises:
        NotFiniteError: a training diverged.
    """
    trainings = {racer.candidate: _begin(racer, splits, folder, progress) for racer in racers}
    names = {racer.candidate: racer.name for racer in racers}
    left = tuple(names)
    story = []
    for share, discrepancy in zip(RUNGS, DISCREPANCY, strict=True):
        looks = [trainings[number].look(share) for number in left]
        right = np.stack([_right(look) for look in looks])
        belief = update(belief, measured(left, right, discrepancy, is_finished=False))
        stay = finalists(belief, costs, tolerance, left)
        story.append(_sentence(share, [names[number] for number in left], looks, [names[number] for number in stay]))
        left = stay
        if len(left) == 1:
            break
    winner = next(racer for racer in racers if racer.candidate == left[0])
    lost = [training for number, training in trainings.items() if number != winner.candidate]
    return Outcome(
        winner=winner,
        training=trainings[winner.candidate],
        belief=belief,
        story=tuple(story),
        work=sum((training.work for training in lost), Work()),
        seconds=sum(training.seconds for training in lost),
    )


def _begin(racer: Racer, splits: ImageSplits, folder: Path, progress: Progress) -> Training:
    checkpoints = Checkpoints(folder / racer.name)
    checkpoints.begin()

    def told(task: str, done: int, total: int) -> None:
        progress(f"{racer.name}: {task}", done, total)

    return Training(racer.plan, splits, told, checkpoints)


def _right(look: Look) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = softmax(look.logits)[np.arange(len(look.labels)), look.labels]
    return probabilities


def _sentence(share: float, names: Sequence[str], looks: Sequence[Look], stay: Sequence[str]) -> str:
    top1 = [float((look.logits.argmax(axis=1) == look.labels).mean()) for look in looks]
    figures = ", ".join(f"{name} {100 * value:.1f} %" for name, value in zip(names, top1, strict=True))
    ends = f"{stay[0]} goes on" if len(stay) == 1 else f"{', '.join(stay)} go on"
    return f"after {100 * share:.0f} % of the steps: {figures} of {len(looks[0].labels)} images; {ends}"
