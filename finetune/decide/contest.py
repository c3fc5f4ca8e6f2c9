"""Choose among candidates: which one to pick, and which two to average, given a belief about their accuracies.

A candidate's place is its index in the contest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from finetune.decide.belief import PROBE_PLACE, Belief, gain_of_two
from finetune.decide.candidates import Candidate, believe_all
from finetune.decide.evidence import Evidence
from finetune.recipe import Preference, Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE: dict[Preference, float] = {"accuracy": 0.0, "balanced": 0.01, "speed": 0.02}
"""Largest expected loss of accuracy, compared with the best candidate, for which a cheaper candidate is picked; for
each preference."""

PRICE = 0.0025
"""Smallest expected gain in accuracy for which a second candidate is trained and averaged with the pick."""

MOST_BEHIND = 0.01
"""Largest expected loss of accuracy, compared with the pick, of the second candidate of an average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The candidates to choose between, the belief about them, and the rule of the choice.

    The rule: pick the cheapest candidate whose accuracy is within the tolerance of the best one's.
    """

    names: tuple[str, ...]
    """Names of the candidates, the linear probe first. The candidate with random weights does not take part."""
    belief: Belief
    """Belief about the accuracies of the candidates."""
    costs: tuple[float, ...]
    """Expected training time of each candidate, in seconds."""
    tolerance: float
    """Largest expected loss of accuracy of the pick, compared with the best candidate."""

    def named(self, places: Sequence[int]) -> tuple[str, ...]:
        """Return the names of the candidates at some places."""
        return tuple(self.names[place] for place in places)

    def among(self, places: Sequence[int]) -> "Contest":
        """Return the contest between some of the candidates, in the order of `places`."""
        costs = tuple(self.costs[place] for place in places)
        return replace(self, names=self.named(places), belief=self.belief.among(places), costs=costs)

    def pick(self) -> int:
        """Return the place of the candidate to pick, by the expected accuracies."""
        return int(pick(self.belief.mean, self.costs, self.tolerance))

    def chances(self) -> "NDArray[np.float64]":
        """Return the probability that each candidate is the right pick, (n_candidates,)."""
        # Monte Carlo: the rule is applied to each draw of all accuracies, as if they were the true ones. With 4,000
        # of them, the standard error of a probability p is sqrt(p (1 - p) / 4,000), at most 0.008.
        chosen = pick(self.belief.draws(), self.costs, self.tolerance)
        return np.bincount(chosen, minlength=len(self.costs)) / len(chosen)

    def partner(self, place: int, price: float) -> int | None:
        """Return the place of the candidate to average the pick with, or None: the cheapest one that is expected to be
        nearly as accurate as the pick and may well be more accurate.

        Over image sets the mean of two is about as accurate as the better one of each pair
        (docs/explanation/decisions.md), so the gain of averaging is estimated by the gain of knowing which one is
        better.

        Args:
            place: the place of the pick.
            price: smallest expected gain over the pick, in accuracy.
        """
        if place == PROBE_PLACE:
            return None
        # The mean of the belief bounds how much worse the second one may be, and its covariance enters the gain: two
        # candidates that succeed and fail on the same image sets have nothing to gain from each other.
        others = [
            other
            for other in range(len(self.costs))
            if other not in {place, PROBE_PLACE}
            and self.belief.mean[other] >= self.belief.mean[place] - MOST_BEHIND
            and gain_of_two(self.belief, place, other) >= price
        ]
        return min(others, key=lambda other: self.costs[other], default=None)

    def believed(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Return candidates, in the same order, with the expectations and chances of this contest; candidates that do
        not take part are unchanged."""
        # The expectation is the belief's mean, its error the square root of the covariance's diagonal.
        chances = self.chances()
        known = {
            name: {
                "expected_top1": round(float(self.belief.mean[place]), 4),
                "expected_top1_error": round(float(self.belief.covariance[place, place]) ** 0.5, 4),
                "chance": round(float(chances[place]), 2),
            }
            for place, name in enumerate(self.names)
        }
        return tuple(candidate.changed(**known.get(candidate.name, {})) for candidate in candidates)


def make_contest(candidates: Sequence[Candidate], evidence: Evidence, recipe: Recipe) -> Contest:
    """Return the contest between candidates."""
    # The prior was learned from a grid of trainings, which has too few trainings from random weights to support a
    # belief.
    entered = [candidate for candidate in candidates if candidate.strategy != "scratch"]
    entered.sort(key=lambda candidate: candidate.name != "linear_probe")
    names = tuple(candidate.name for candidate in entered)
    return Contest(
        names=names,
        belief=believe_all(names, evidence),
        costs=tuple(candidate.expected_seconds for candidate in entered),
        tolerance=TOLERANCE[recipe.prefer],
    )


def pick(accuracies: "NDArray[np.float64]", costs: Sequence[float], tolerance: float) -> "NDArray[np.intp]":
    """Return the index of the cheapest option whose accuracy is within a tolerance of the best, for each row.

    Args:
        accuracies: (..., n_options).
        costs: cost of each option, (n_options,); of equally cheap options the most accurate is picked.
        tolerance: largest loss of accuracy for a lower cost, 0 .. 1.
    """
    # good = {i: a_i >= max(a) - tolerance}; the pick has the least cost in `good`, and among those the most accuracy.
    good = accuracies >= accuracies.max(axis=-1, keepdims=True) - tolerance
    order = np.where(good, np.asarray(costs, dtype=np.float64), np.inf)
    cheapest = order == order.min(axis=-1, keepdims=True)
    chosen: NDArray[np.intp] = np.where(cheapest, accuracies, -np.inf).argmax(axis=-1)
    return chosen
