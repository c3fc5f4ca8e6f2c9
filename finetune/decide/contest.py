"""Choose among candidates: which to pick, to race, or to average, given a belief about their accuracies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from finetune.recipe import Preference

if TYPE_CHECKING:
    from numpy.typing import NDArray

from finetune.decide.belief import MEASURED, Belief
from finetune.decide.candidates import Candidate, believe_all
from finetune.decide.evidence import Evidence
from finetune.recipe import Recipe

TOLERANCE: dict[Preference, float] = {"accuracy": 0.0, "balanced": 0.01, "speed": 0.02}
"""How far below the best a candidate may be expected to be, by what is preferred, in accuracy."""


PRICE: dict[Preference, float] = {"accuracy": 0.0025, "balanced": 0.01, "speed": 0.02}
"""Least gain in accuracy that training more than one candidate must promise, to race or to average them: no less than
what the preference gives up for cost."""


FINALISTS = 3
"""Most candidates in a race."""


LEAST_PARTNER = 0.01
"""How far below the likely best another one may be expected to be, to be averaged with it, in accuracy."""


LEAST_CHANCE = 0.1
"""Of being the one to pick, to be raced."""


def pick(accuracies: "NDArray[np.float64]", costs: Sequence[float], tolerance: float) -> "NDArray[np.intp]":
    """Return the cheapest candidate that is within a tolerance of the best, for each row of accuracies.

    Args:
        accuracies: (..., n_candidates).
        costs: of each candidate; equal ones go by accuracy.
        tolerance: in accuracy.
    """
    good = accuracies >= accuracies.max(axis=-1, keepdims=True) - tolerance
    order = np.where(good, np.asarray(costs, dtype=np.float64), np.inf)
    cheapest = order == order.min(axis=-1, keepdims=True)
    chosen: NDArray[np.intp] = np.where(cheapest, accuracies, -np.inf).argmax(axis=-1)
    return chosen


def chances(belief: Belief, costs: Sequence[float], tolerance: float) -> "NDArray[np.float64]":
    """Return the probability that each candidate is the one to pick, were its accuracy known."""
    chosen = pick(belief.draws(), costs, tolerance)
    return np.bincount(chosen, minlength=len(costs)) / len(chosen)


def finalists(
    belief: Belief, costs: Sequence[float], tolerance: float, among: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the candidate to pick by what is believed, then those that may well turn out to be it.

    Args:
        belief: about all candidates.
        costs: of each.
        tolerance: in accuracy.
        among: those that are left; None: all.
    """
    left = list(range(len(costs))) if among is None else list(among)
    own = Belief(mean=belief.mean[left], covariance=belief.covariance[np.ix_(left, left)])
    likely = chances(own, [costs[number] for number in left], tolerance)
    best = int(pick(own.mean, [costs[number] for number in left], tolerance))
    others = [int(place) for place in np.argsort(-likely) if place != best and likely[place] >= LEAST_CHANCE]
    return tuple(left[place] for place in (best, *others[: FINALISTS - 1]))


def partner(belief: Belief, costs: Sequence[float], place: int, price: float) -> int | None:
    """Return whom to average a likely best candidate with where picking one is a gamble: the cheapest that is expected
    to be nearly as good and may well turn out to be the better one; None where nobody is.

    Over image sets the mean of two is about as accurate as the better one of each (docs/selector.md), so that it
    promises what knowing the better one would.

    Args:
        belief: about all candidates.
        costs: of each.
        place: of the likely best.
        price: least gain over it, in accuracy.
    """
    if place == MEASURED:
        return None
    others = [
        other
        for other in range(len(costs))
        if other not in {place, MEASURED}
        and belief.mean[other] >= belief.mean[place] - LEAST_PARTNER
        and gain_of_two(belief, place, other) >= price
    ]
    return min(others, key=lambda other: costs[other], default=None)


def gain_of_two(belief: Belief, place: int, other: int) -> float:
    """Return how much more accurate the better one of two candidates is expected to be than the one at `place` (Clark
    1961); exactly, for draws would err by a tenth of the price."""
    behind = float(belief.mean[place] - belief.mean[other])
    variance = float(np.array([1.0, -1.0]) @ belief.covariance[np.ix_([place, other], [place, other])] @ [1.0, -1.0])
    ahead = NormalDist(-behind, math.sqrt(max(variance, 1e-12)))
    return ahead.variance * ahead.pdf(0.0) - behind * (1.0 - ahead.cdf(0.0))


LEAST_STEPS = 0.5
"""Share of its usual steps that a time budget must leave a candidate: it would not be what is believed of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The candidates that a choice is made between, and what counts in it."""

    names: tuple[str, ...]
    """The linear probe first; random weights do not take part."""
    belief: Belief
    """Of how accurate each would be."""
    costs: tuple[float, ...]
    """Expected seconds of each."""
    tolerance: float
    """How far below the best one may be expected to be, in accuracy."""

    def named(self, places: Sequence[int]) -> tuple[str, ...]:
        """Return the names of some places."""
        return tuple(self.names[place] for place in places)


def make_contest(candidates: Sequence[Candidate], evidence: Evidence, recipe: Recipe) -> Contest:
    """Return the contest between candidates, before any of them is trained."""
    entered = [candidate for candidate in candidates if candidate.strategy != "scratch"]
    entered.sort(key=lambda candidate: candidate.name != "linear_probe")
    names = tuple(candidate.name for candidate in entered)
    return Contest(
        names=names,
        belief=believe_all(names, evidence),
        costs=tuple(candidate.expected_seconds for candidate in entered),
        tolerance=TOLERANCE[recipe.prefer],
    )


def _is_affordable(candidate: Candidate) -> bool:
    """Return whether the time budget leaves enough steps."""
    return candidate.name == "linear_probe" or candidate.share_of_steps >= LEAST_STEPS


def most_seconds(names: Sequence[str], candidates: Sequence[Candidate]) -> float:
    """Return what a race and the training of its winner take at most: all others stay until the last rung."""
    raced = [candidate for candidate in candidates if candidate.name in names and candidate.name != "linear_probe"]
    lost = sum(candidate.race_seconds for candidate in raced)
    return max((candidate.expected_seconds + lost - candidate.race_seconds for candidate in raced), default=0.0)
