"""What is believed of how accurate each candidate would be, and what follows: whom to race, to drop, to train.

A belief is a normal distribution over the candidates' accuracies. A prior makes it, short trainings that are judged on
the same images sharpen it, and the candidate to train is the cheapest one that is expected to be good enough.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from finetune.recipe import Preference

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE: dict[Preference, float] = {"accuracy": 0.0, "balanced": 0.01, "speed": 0.02}
"""How far below the best a candidate may be expected to be, by what is preferred, in accuracy."""

PRICE: dict[Preference, float] = {"accuracy": 0.0025, "balanced": 0.01, "speed": 0.02}
"""Least gain in accuracy that training more than one candidate must promise, to race or to average them: no less than
what the preference gives up for cost."""

RUNGS = (1 / 3, 2 / 3)
"""Shares of the steps at which those who race are looked at."""

DISCREPANCY = (0.02, 0.012)
"""Standard deviation of how differently candidates go on from each rung, in accuracy."""

FINALISTS = 3
"""Most candidates in a race."""

LEAST_PARTNER = 0.01
"""How far below the likely best another one may be expected to be, to be averaged with it, in accuracy."""

LEAST_CHANCE = 0.1
"""Of being the one to pick, to be raced."""

SPREAD = 0.06
"""Variance over images of how the probabilities of two candidates differ, before it is known."""

DRAWS = 4000
"""Of the candidates' accuracies, to see what is likely."""

UNFINISHED = 0.3
"""Standard deviation of what all unfinished trainings lack alike: only their differences say something."""


MEASURED = 0
"""Place of the linear probe, which needs no race: its accuracy was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """How accurate each candidate would be: a normal distribution."""

    mean: "NDArray[np.float64]"
    """(n_candidates,), top-1 accuracies."""
    covariance: "NDArray[np.float64]"
    """(n_candidates, n_candidates)"""

    def draws(self) -> "NDArray[np.float64]":
        """Return accuracies (DRAWS, n_candidates) that are likely, the same ones each time."""
        # A root by eigenvalues, for a covariance may be singular: what was measured exactly varies no more.
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        normal = np.random.default_rng(0).standard_normal((DRAWS, len(self.mean)))
        drawn: NDArray[np.float64] = self.mean + normal @ root.T
        return drawn


def update(belief: Belief, raced: Sequence[int], right: "NDArray[np.floating]", discrepancy: float) -> Belief:
    """Return the belief after unfinished trainings were judged on the same held-out images, by Bayes' rule.

    The probability of the right class is in the mean as large as the accuracy, where it is calibrated, and varies less
    over images. The same images are hard for all candidates, which the covariance knows; what all unfinished
    trainings lack alike says nothing.

    Args:
        belief: before.
        raced: indices of the candidates that were trained.
        right: (n_raced, n_images), the probability of each image's class.
        discrepancy: standard deviation of how differently candidates go on from here to the test images.
    """
    left = list(raced)
    noise = np.atleast_2d(np.cov(right)) / right.shape[1] + discrepancy**2 * np.eye(len(left)) + UNFINISHED**2
    cross = belief.covariance[:, left]
    gain = np.linalg.solve(cross[left] + noise, cross.T).T
    return Belief(
        mean=belief.mean + gain @ (right.mean(axis=1) - belief.mean[left]),
        covariance=belief.covariance - gain @ cross.T,
    )


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


def expected_gain(belief: Belief, raced: Sequence[int], noise: "NDArray[np.float64]") -> float:
    """Return how much more accurate the best is expected to be after a measurement than before it (the knowledge
    gradient, Frazier et al. 2008).

    Args:
        belief: before.
        raced: which candidates would be measured.
        noise: (n_raced, n_raced), the covariance of what would be measured.
    """
    cross = belief.covariance[:, list(raced)]
    spread = cross @ np.linalg.solve(cross[list(raced)] + noise, cross.T)
    later = Belief(mean=belief.mean, covariance=(spread + spread.T) / 2)
    return float(later.draws().max(axis=1).mean() - belief.mean.max())


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """How a race went."""

    belief: Belief
    """About all candidates, afterwards."""
    left: tuple[tuple[int, ...], ...]
    """Who was left before it and after each rung; the first of the last ones won."""
    looks: "tuple[NDArray[np.float64], ...]"
    """What was seen at each rung."""

    @property
    def winner(self) -> int:
        """The candidate to train to the end."""
        return self.left[-1][0]


def compete(
    belief: Belief,
    costs: Sequence[float],
    tolerance: float,
    entered: Sequence[int],
    look: "Callable[[int, list[int]], NDArray[np.float64]]",
) -> Race:
    """Return how a race goes: at each rung those leave that will hardly be picked, until one is left or no rung is.

    Args:
        belief: about all candidates, before.
        costs: of all.
        tolerance: in accuracy.
        entered: who races; the linear probe may be among them and is not looked at.
        look: trains some candidates up to a rung (its number is given) and returns the probability (n, n_images) of
            each held-out image's class.
    """
    left, looks = [tuple(entered)], []
    for rung, discrepancy in enumerate(DISCREPANCY):
        trained = [place for place in left[-1] if place != MEASURED]
        if len(trained) < 2:
            break
        looks.append(look(rung, trained))
        belief = update(belief, trained, looks[-1], discrepancy)
        left.append(finalists(belief, costs, tolerance, left[-1]))
        if len(left[-1]) == 1:
            break
    return Race(belief=belief, left=tuple(left), looks=tuple(looks))


def is_worth_racing(belief: Belief, raced: Sequence[int], num_held: int, price: float) -> bool:
    """Return whether looking at the first rung is expected to gain enough.

    Args:
        belief: before.
        raced: who would race, without the linear probe.
        num_held: images that they would be judged on.
        price: least gain, in accuracy.
    """
    if len(raced) < 2:
        return False
    noise = (SPREAD / num_held + DISCREPANCY[0] ** 2) * np.eye(len(raced)) + UNFINISHED**2
    return expected_gain(belief, raced, noise) >= price
