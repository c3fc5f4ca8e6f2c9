"""What to believe of each candidate's accuracy before any of them is trained, learned from a grid of trainings.

Each candidate removes a share of the linear probe's errors. Its logarithm is linear in four numbers of the evidence,
with an uncertainty that the candidates share in part: where one gains much, the others do.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.decide.belief import Belief
from finetune.decide.evidence import Evidence
from finetune.value import FrozenModel


class Prior(FrozenModel):
    """A linear model of `log(errors of a candidate / errors of the linear probe)`, for several candidates."""

    candidates: tuple[str, ...]
    """Without the linear probe, of which nothing needs to be believed: it is measured."""
    coefficients: tuple[tuple[float, ...], ...]
    """(n_candidates, n_features), of `features`."""
    covariance: tuple[tuple[float, ...], ...]
    """(n_candidates, n_candidates), of what the model leaves open."""


PRIOR = Prior.load(Path(__file__).with_name("prior.json"))
"""Fitted by `experiments/strategy_report.py` to the grid of EfficientNet-Lite0 at 128 px."""

SEEN = (5.0, 400.0)
"""Images per class of the grid: beyond, its nearest end speaks."""

UNCALIBRATED = 2.25
"""By what the variance of the shares grows for networks whose similarity has no scale of its own."""


def features(images_per_class: float, similarity: float, probe_error: float) -> tuple[float, ...]:
    """Return what the prior rests on: a constant, and three numbers that are about 0 in the middle of the grid."""
    images_per_class = min(max(images_per_class, SEEN[0]), SEEN[1])
    return (1.0, math.log10(images_per_class / 20.0), similarity - 0.5, math.log(max(probe_error, 0.002) / 0.2))


def believe(prior: Prior, evidence: Evidence) -> Belief:
    """Return the belief about the linear probe and the prior's candidates, in this order."""
    error = max(1.0 - evidence.probe_accuracy, 0.002)
    if not evidence.similarity_calibrated:
        prior = prior.changed(covariance=(UNCALIBRATED * np.asarray(prior.covariance)).tolist())
    return belief_of(
        prior,
        features(evidence.images_per_class, evidence.domain_similarity, error),
        error,
        evidence.probe_accuracy_error,
    )


def belief_of(prior: Prior, known: Sequence[float], error: float, error_deviation: float) -> Belief:
    """Return the belief where the linear probe makes so many errors, give or take a standard deviation."""
    shares = np.exp(np.asarray(prior.coefficients) @ np.asarray(known))
    ratios = np.concatenate([[1.0], shares])
    # To first order: errors are the probe's errors times a share, and both are uncertain.
    of_shares = np.zeros((len(ratios), len(ratios)))
    of_shares[1:, 1:] = np.asarray(prior.covariance)
    errors = error * ratios
    covariance = of_shares * np.outer(errors, errors) + error_deviation**2 * np.outer(ratios, ratios)
    return Belief(mean=1.0 - errors, covariance=covariance)
