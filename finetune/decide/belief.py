"""Represent the belief about the candidates' accuracies as a normal distribution, and update it by Bayes' rule.

A prior gives the first belief. Short trainings, evaluated on the same held-out images, make it more certain.
"""

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

SHARED_DEFICIT = 0.3
"""Std of the accuracy deficit that all unfinished trainings share; large, so that only differences between them
count."""

PROBE_PLACE = 0
"""Place (index) of the linear probe in a belief. The probe is not raced, because its accuracy was measured."""


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


def update(belief: Belief, raced: Sequence[int], right: "NDArray[np.floating]", discrepancy: float) -> Belief:
    """Return the belief after unfinished trainings were evaluated on the same held-out images.

    The mean probability of the right class estimates the accuracy of a calibrated network, with less variance over
    images than the fraction of hits has. An image is often hard or easy for all candidates, so the errors of the
    estimates are correlated; `np.cov` measures the correlation.

    Args:
        belief: belief before the evaluation.
        raced: places of the candidates that were trained.
        right: probability of the right class of each image, (n_raced, n_images).
        discrepancy: std, between candidates, of the improvement that is left until the end of the training, in
            accuracy.
    """
    left = list(raced)
    # Noise of the measured means y: N = cov(images) / n_images + discrepancy^2 I + SHARED_DEFICIT^2 (all ones). The
    # last term adds the same unknown offset to every candidate.
    noise = np.atleast_2d(np.cov(right)) / right.shape[1] + discrepancy**2 * np.eye(len(left)) + SHARED_DEFICIT**2
    # Conditioning of a normal distribution (Rasmussen & Williams 2006, eq. 2.23 and 2.24), with r the raced ones:
    # K = S[:, r] (S[r, r] + N)^-1, mean' = mean + K (y - mean[r]), S' = S - K S[r, :].
    cross = belief.covariance[:, left]
    gain = np.linalg.solve(cross[left] + noise, cross.T).T
    return Belief(
        mean=belief.mean + gain @ (right.mean(axis=1) - belief.mean[left]),
        covariance=belief.covariance - gain @ cross.T,
    )


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


def expected_gain(belief: Belief, raced: Sequence[int], noise: "NDArray[np.float64]") -> float:
    """Return the expected gain of a measurement: how much more accurate the pick is after it than before it (the
    knowledge gradient of Frazier et al. 2008).

    Args:
        belief: belief before the measurement.
        raced: places of the candidates that would be measured.
        noise: covariance of the measurement's errors, (n_raced, n_raced).
    """
    # After the measurement the means are N(mean, C) with C = S[:, r] (S[r, r] + N)^-1 S[r, :], and the gain is
    # E max(mean') - max(mean). C is symmetric up to rounding; eigenvalues need it to be so exactly.
    cross = belief.covariance[:, list(raced)]
    spread = cross @ np.linalg.solve(cross[list(raced)] + noise, cross.T)
    later = Belief(mean=belief.mean, covariance=(spread + spread.T) / 2)
    return float(later.draws().max(axis=1).mean() - belief.mean.max())
