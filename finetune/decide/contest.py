"""Choose among candidates: which one to pick, or which two to average, given a belief about their accuracies.

A candidate's place is its index in the contest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finetune.decide.belief import PROBE_PLACE, Belief
from finetune.decide.candidates import Candidate
from finetune.decide.evidence import Evidence
from finetune.decide.prior import PRIOR, believe
from finetune.recipe import Preference, Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

FREE_SECONDS = 300.0
"""Training time that costs nothing, in seconds: nobody gives up accuracy to save less than five minutes."""

DOUBLING: dict[Preference, float] = {"accuracy": 0.0, "balanced": 0.01, "speed": 0.01}
"""Accuracy that a doubling of the time beyond `FREE_SECONDS` must gain, by preference; under `speed` only networks are
compared by it."""

LOSS = 0.02
"""Accuracy that `speed` may lose, compared with the most accurate candidate."""

RISK = 0.4
"""Largest probability with which `speed` may lose more than `LOSS`. With 0.1 it trained as long as `balanced`, because
the belief is that wide (experiments/log.md, 2026-11-29)."""

LEAST_CHANCE = 0.1
"""Smallest probability of being more accurate than the pick with which a second candidate is averaged with it."""

MOST_BEHIND = 0.02
"""Largest expected loss of accuracy, compared with the pick, of the second candidate of an average."""

RULES: dict[Preference, str] = {
    "accuracy": "accuracy: the most accurate, whatever the time",
    "balanced": "balanced: five minutes are free; beyond them, a doubling of the time must gain a point",
    "speed": "speed: the cheapest that probably loses no more than 2 points",
}
"""Rule of each preference, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The candidates to choose between, the belief about them, and the preference that makes the rule."""

    names: tuple[str, ...]
    """Names of the candidates, the linear probe first. The candidate with random weights does not take part."""
    belief: Belief
    """Belief about the accuracies of the candidates."""
    seconds: tuple[float, ...]
    """Expected training time of each candidate, in seconds."""
    prefer: Preference
    """Preference between accuracy and time."""

    def pick(self, places: Sequence[int] | None = None) -> int:
        """Return the place of the candidate to train, by the rule of the preference (`RULES`).

        Args:
            places: places of the candidates to choose between; None: all.
        """
        left = list(range(len(self.names))) if places is None else list(places)
        seconds = np.array([self.seconds[place] for place in left])
        belief = self.belief.among(left)
        if self.prefer == "speed":
            # P(a_best - a_c > LOSS) over the draws, where `best` has the highest expected accuracy. It is 0 for `best`
            # itself, so there is always one to pick.
            best = belief.draws[:, [int(belief.mean.argmax())]]
            good = (best - belief.draws > LOSS).mean(axis=0) <= RISK
        else:
            worth = utility(belief.mean, seconds, self.prefer)
            good = worth == worth.max()
        return left[int(np.where(good, seconds, np.inf).argmin())]

    def believed(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Return candidates, in the same order, with the expectations and chances of this contest; candidates that do
        not take part are unchanged."""
        chances, intervals = self.chances(), self.belief.intervals
        known = {
            name: {
                "expected_top1": round(float(self.belief.mean[place]), 4),
                "expected_top1_error": round(float(self.belief.draws[:, place].std()), 4),
                "expected_interval": [round(float(end), 4) for end in intervals[place]],
                "chance": round(float(chances[place]), 2),
            }
            for place, name in enumerate(self.names)
        }
        return tuple(candidate.changed(**known.get(candidate.name, {})) for candidate in candidates)

    def chances(self) -> "NDArray[np.float64]":
        """Return the probability that each candidate is the most accurate one, (n_candidates,)."""
        # Each draw has one most accurate candidate; a candidate's chance is its share of the draws.
        best = self.belief.draws.argmax(axis=1)
        return np.bincount(best, minlength=len(self.names)) / len(best)

    def partner(self, place: int, places: Sequence[int] | None = None) -> int | None:
        """Return the place of the candidate to average the pick with, or None: the most accurate one of the others, as
        far as is expected, if it is nearly as accurate as the pick and may well be more accurate.

        Over image sets the mean of two such candidates is more accurate than either of them
        (docs/explanation/decisions.md).

        Args:
            place: the place of the pick.
            places: places of the candidates to choose between; None: all.
        """
        # The two rates of `full`, or `full` and `partial`, err on different images. A brief training would lower the
        # mean, and the linear probe is not averaged with anything.
        mean = self.belief.mean
        left = range(len(self.names)) if places is None else places
        others = [each for each in left if each not in {place, PROBE_PLACE}]
        best = max(others, key=lambda other: mean[other], default=PROBE_PLACE)
        is_close = mean[best] >= mean[place] - MOST_BEHIND
        is_open = (self.belief.draws[:, best] > self.belief.draws[:, place]).mean() >= LEAST_CHANCE
        return best if PROBE_PLACE not in {place, best} and is_close and is_open else None


def utility(
    accuracies: "NDArray[np.float64]", seconds: "NDArray[np.float64]", prefer: Preference
) -> "NDArray[np.float64]":
    """Return accuracies less the price of time, (n_candidates,).

    Args:
        accuracies: expected accuracy of each candidate, 0 .. 1.
        seconds: expected time of each candidate, in seconds.
        prefer: preference, which sets the price.
    """
    # U = a - DOUBLING log2(max(t, FREE_SECONDS) / FREE_SECONDS)
    doublings = np.log2(np.maximum(seconds, FREE_SECONDS) / FREE_SECONDS)
    return accuracies - DOUBLING[prefer] * doublings


def make_contest(candidates: Sequence[Candidate], evidence: Evidence, recipe: Recipe) -> Contest:
    """Return the contest between candidates."""
    # The grid has too few trainings from random weights to support a belief.
    entered = [candidate for candidate in candidates if candidate.strategy != "scratch"]
    names = tuple(candidate.name for candidate in entered)
    return Contest(
        names=names,
        belief=believe(PRIOR, evidence, names),
        seconds=tuple(candidate.expected_seconds for candidate in entered),
        prefer=recipe.prefer,
    )
