"""Choose among candidates: which one to pick, to race, or to average, given a belief about their accuracies."""

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
"""How far below the best a cheaper candidate may be expected to be and still be picked, in accuracy, for each
preference."""

PRICE: dict[Preference, float] = {"accuracy": 0.0025, "balanced": 0.01, "speed": 0.02}
"""Least expected gain in accuracy for which a second candidate is trained, to race it or to average it, for each
preference. No less than the tolerance: accuracy that the preference gives up for time is not bought back."""

MOST_FINALISTS = 3
"""Most candidates in a race."""

MOST_BEHIND = 0.01
"""How far below the pick the second candidate of an average may be expected to be, in accuracy."""

LEAST_CHANCE = 0.1
"""Least probability of being the right pick with which a candidate is raced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The candidates to choose between, with the belief about them and the rule of the choice.

    The rule: pick the cheapest candidate whose accuracy is within the tolerance of the best one's.
    """

    names: tuple[str, ...]
    """Names of the candidates, the linear probe first; random weights do not take part."""
    belief: Belief
    """Belief about their accuracies."""
    costs: tuple[float, ...]
    """Expected training time of each candidate, in seconds."""
    tolerance: float
    """How far below the best the pick may be expected to be, in accuracy."""

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

    def finalists(self, places: Sequence[int] | None = None) -> tuple[int, ...]:
        """Return the place of the candidate to pick, then the places of those that may well be the right pick instead,
        the most probable first.

        Args:
            places: the candidates that are left; None: all.
        """
        # Chances are those within the contest of the candidates that are left: what was dropped cannot be the pick.
        left = list(range(len(self.names))) if places is None else list(places)
        own = self.among(left)
        chances, best = own.chances(), own.pick()
        others = [int(place) for place in np.argsort(-chances) if place != best and chances[place] >= LEAST_CHANCE]
        return tuple(left[place] for place in (best, *others[: MOST_FINALISTS - 1]))

    def partner(self, place: int, price: float) -> int | None:
        """Return the place of the candidate to average the pick with: the cheapest one that is expected to be nearly as
        good and may well be better. None if there is none.

        Over image sets the mean of two is about as accurate as the better one of each pair
        (docs/explanation/decisions.md), so the gain of averaging is estimated by the gain of knowing which one is
        better.

        Args:
            place: the place of the pick.
            price: least expected gain over the pick, in accuracy.
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

    def believed(self, candidates: Sequence[Candidate], measured: Sequence[str] = ()) -> tuple[Candidate, ...]:
        """Return candidates with the expectations and chances of this contest; those that take no part stay as they
        are.

        Args:
            candidates: in any order, which is kept.
            measured: names of the candidates that a race has evaluated.
        """
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
        for name in measured:
            known[name]["basis"] = "measured"
        return tuple(candidate.changed(**known.get(candidate.name, {})) for candidate in candidates)


def make_contest(candidates: Sequence[Candidate], evidence: Evidence, recipe: Recipe) -> Contest:
    """Return the contest between candidates, before any of them is trained."""
    # The grid of trainings that the prior was learned from has too few from random weights to believe anything of them.
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
        costs: cost of each option, (n_options,); of equally cheap ones the most accurate is picked.
        tolerance: in accuracy.
    """
    # good = {i: a_i >= max(a) - tolerance}; the pick has the least cost in `good`, and among those the most accuracy.
    good = accuracies >= accuracies.max(axis=-1, keepdims=True) - tolerance
    order = np.where(good, np.asarray(costs, dtype=np.float64), np.inf)
    cheapest = order == order.min(axis=-1, keepdims=True)
    chosen: NDArray[np.intp] = np.where(cheapest, accuracies, -np.inf).argmax(axis=-1)
    return chosen
