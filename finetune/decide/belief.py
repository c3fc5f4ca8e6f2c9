"""What is believed of how accurate each candidate would be, and what follows: whom to race, to drop, to train.

A belief is a normal distribution over the candidates' accuracies. A prior makes it, short trainings that are judged on
the same images sharpen it, and the candidate to train is the cheapest one that is expected to be good enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
