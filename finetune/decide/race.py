"""Race candidates: train them for a part of their steps, update the belief, and drop those that are unlikely to be the
right pick."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from finetune.decide.belief import PROBE_PLACE, SHARED_DEFICIT, Belief, expected_gain, update
from finetune.decide.candidates import Candidate
from finetune.decide.contest import Contest

if TYPE_CHECKING:
    from numpy.typing import NDArray

DISCREPANCY = (0.02, 0.012)
"""Std, between candidates, of the improvement that is left from each rung to the end of the training, in accuracy."""

DIFFERENCE_VARIANCE = 0.06
"""Variance, over images, of the difference between two candidates' probabilities of the right class; assumed before any
candidate is evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """The course of a race."""

    contest: Contest
    """The contest after the race, with the updated belief about all candidates."""
    left: tuple[tuple[int, ...], ...]
    """Places of the candidates in the race before the first rung and after each rung. The first of the last entry is
    the winner."""
    evaluations: "tuple[NDArray[np.float64], ...]"
    """Probability of each held-out image's class for each candidate in the race, one array (n_raced, n_images) for each
    rung."""

    @property
    def winner(self) -> int:
        """Place of the candidate to train to the end."""
        return self.left[-1][0]

    @property
    def raced(self) -> tuple[int, ...]:
        """Places of the candidates that were trained and evaluated."""
        return tuple(place for place in self.left[0] if place != PROBE_PLACE)


def compete(
    contest: Contest, entered: Sequence[int], evaluate: "Callable[[int, list[int]], NDArray[np.float64]]"
) -> Race:
    """Return the course of a race: at each rung, the candidates that are unlikely to be the right pick drop out.

    The race ends after the last rung, or earlier when only one candidate is left, with or without the linear probe.

    Args:
        contest: contest before the race.
        entered: places of the candidates that race. The linear probe may be among them; it is not evaluated again.
        evaluate: function of a rung (0, 1, ...) and places that trains these candidates up to the rung and returns the
            probability of each held-out image's class, (n_places, n_images).
    """
    left, evaluations = [tuple(entered)], []
    for rung, discrepancy in enumerate(DISCREPANCY):
        trained = [place for place in left[-1] if place != PROBE_PLACE]
        if len(trained) < 2:
            break
        evaluations.append(evaluate(rung, trained))
        # Candidates that dropped out stay in the belief, which is updated for them, too: their accuracies are
        # correlated with those of the others.
        contest = replace(contest, belief=update(contest.belief, trained, evaluations[-1], discrepancy))
        left.append(contest.finalists(left[-1]))
        if len(left[-1]) == 1:
            break
    return Race(contest=contest, left=tuple(left), evaluations=tuple(evaluations))


def is_worth_racing(belief: Belief, raced: Sequence[int], num_evaluated: int, price: float) -> bool:
    """Return whether the evaluation at the first rung is expected to gain at least `price`.

    Args:
        belief: belief before the race.
        raced: places of the candidates that would race, without the linear probe.
        num_evaluated: number of held-out images that they would be evaluated on.
        price: smallest gain that is worth a race, in accuracy.
    """
    if len(raced) < 2:
        return False
    # The noise of `belief.update` before the images are seen: N = (v / n + discrepancy^2) I + SHARED_DEFICIT^2, where
    # the usual variance v of a difference stands for the measured covariance.
    noise = (DIFFERENCE_VARIANCE / num_evaluated + DISCREPANCY[0] ** 2) * np.eye(len(raced)) + SHARED_DEFICIT**2
    return expected_gain(belief, raced, noise) >= price


def most_seconds(names: Sequence[str], candidates: Sequence[Candidate]) -> float:
    """Return the longest time of a race and the training of its winner, in seconds, if no candidate drops out before
    the last rung.

    Args:
        names: names of the candidates that race; the linear probe may be among them and takes no time.
        candidates: all candidates.
    """
    raced = [candidate for candidate in candidates if candidate.name in names and candidate.name != "linear_probe"]
    # The maximum over all possible winners w: training time of w + sum of the others' race times.
    lost = sum(candidate.race_seconds for candidate in raced)
    return max((candidate.expected_seconds + lost - candidate.race_seconds for candidate in raced), default=0.0)
