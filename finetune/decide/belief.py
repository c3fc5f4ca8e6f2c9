"""Represent the belief about the candidates' accuracies as joint draws from a distribution with heavy tails."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS = 4000
"""Number of joint draws of all accuracies. The standard error of a probability p is sqrt(p (1 - p) / DRAWS), at most
0.008; expected accuracies are compared on the same draws, which makes their differences more exact."""

PROBE_PLACE = 0
"""Place (index) of the linear probe in a belief about all candidates."""

LEVEL = 0.9
"""Probability that an interval contains the accuracy."""


@dataclass(frozen=True, slots=True)
class Belief:
    """A joint distribution of the candidates' accuracies on new images."""

    draws: "NDArray[np.float64]"
    """Top-1 accuracies drawn from the distribution, (DRAWS, n_candidates), each in 0 .. 1."""

    @property
    def mean(self) -> "NDArray[np.float64]":
        """Expected top-1 accuracy of each candidate, (n_candidates,)."""
        expected: NDArray[np.float64] = self.draws.mean(axis=0)
        return expected

    @property
    def intervals(self) -> "NDArray[np.float64]":
        """Lowest and highest accuracy of each candidate's interval of `LEVEL`, (n_candidates, 2)."""
        # (1 - LEVEL) / 2 of the draws are below an interval, and as many above it. The draws are skewed, so the mean is
        # not in the middle.
        ends: NDArray[np.float64] = np.quantile(self.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T
        return ends

    def among(self, places: Sequence[int]) -> "Belief":
        """Return the belief about some of the candidates, in the order of `places`."""
        return Belief(self.draws[:, list(places)])
