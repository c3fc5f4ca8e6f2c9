"""Represent the belief about the candidates' accuracies as a normal distribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS = 4000
"""Number of joint draws of all accuracies from which probabilities are estimated."""

PROBE_PLACE = 0
"""Place (index) of the linear probe in a belief."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """A joint normal distribution of the candidates' accuracies."""

    mean: "NDArray[np.float64]"
    """Expected top-1 accuracy of each candidate, (n_candidates,)."""
    covariance: "NDArray[np.float64]"
    """Covariance of the accuracies, (n_candidates, n_candidates)."""

    def among(self, places: Sequence[int]) -> "Belief":
        """Return the belief about some of the candidates, in the order of `places`."""
        left = list(places)
        return Belief(mean=self.mean[left], covariance=self.covariance[np.ix_(left, left)])

    def draws(self) -> "NDArray[np.float64]":
        """Return accuracies drawn from the belief, (DRAWS, n_candidates), the same in every call."""
        # x = mean + R z with R R^T = covariance and z ~ N(0, I). The root R = V sqrt(diag(values)) comes from the
        # eigenvalues, not from Cholesky: an accuracy that is known exactly makes the covariance singular.
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        normal = np.random.default_rng(0).standard_normal((DRAWS, len(self.mean)))
        drawn: NDArray[np.float64] = self.mean + normal @ root.T
        return drawn


def gain_of_two(belief: Belief, place: int, other: int) -> float:
    """Return how much more accurate the better of two candidates is expected to be than the one at `place`.

    It is computed in closed form, because the error of `draws` would be a tenth of the smallest gain that is worth a
    second training.
    """
    # E max(0, D) for D = accuracy[other] - accuracy[place] ~ N(-behind, s^2) is s phi(behind / s) - behind
    # Phi(-behind / s) (Clark 1961); `pdf(0)` of the distribution of D is phi(behind / s) / s.
    behind = float(belief.mean[place] - belief.mean[other])
    difference = np.array([1.0, -1.0])
    variance = float(difference @ belief.among((place, other)).covariance @ difference)
    ahead = NormalDist(-behind, math.sqrt(max(variance, 1e-12)))
    return ahead.variance * ahead.pdf(0.0) - behind * (1.0 - ahead.cdf(0.0))
