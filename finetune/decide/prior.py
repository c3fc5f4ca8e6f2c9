"""Form the belief about each candidate's accuracy before any of them is trained, from a grid of earlier trainings.

A candidate makes a fraction of the linear probe's errors. The logarithm of this fraction is modelled as linear in four
features of the evidence. Its uncertainty is correlated between candidates: on an image set where one gains much, so do
the others.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.decide.belief import Belief
from finetune.decide.evidence import Evidence
from finetune.value import FrozenModel


class Prior(FrozenModel):
    """A linear model of `log(errors of a candidate / errors of the linear probe)` for several candidates."""

    candidates: tuple[str, ...]
    """Names of the candidates. The linear probe is not among them, because it is measured."""
    coefficients: tuple[tuple[float, ...], ...]
    """Coefficients of the model's features (see `features`) for each candidate, (n_candidates, n_features)."""
    covariance: tuple[tuple[float, ...], ...]
    """Covariance, over image sets, of the candidates' deviations from the model, in log errors, (n_candidates,
    n_candidates)."""


PRIOR = Prior.load(Path(__file__).with_name("prior.json"))
"""Prior that `experiments/strategy_report.py` fitted to the grid of trainings of EfficientNet-Lite0 at 128 px."""

GRID_SIZES = (5.0, 400.0)
"""Fewest and most images per class in the grid. Outside of this range, the model is evaluated at the nearer end of the
range."""

UNCALIBRATED_VARIANCE = 2.25
"""Factor on the covariance for networks without a fitted scale of the domain similarity."""


def features(images_per_class: float, similarity: float, probe_error: float) -> tuple[float, ...]:
    """Return the features of the linear model: a constant, and three numbers that are 0 in the middle of the grid.

    Args:
        images_per_class: mean number of training images per class.
        similarity: domain similarity, 0 (far) .. 1 (near).
        probe_error: error rate of the linear probe, 0 .. 1.
    """
    images_per_class = min(max(images_per_class, GRID_SIZES[0]), GRID_SIZES[1])
    return (1.0, math.log10(images_per_class / 20.0), similarity - 0.5, math.log(max(probe_error, 0.002) / 0.2))


def believe(prior: Prior, evidence: Evidence) -> Belief:
    """Return the belief about the linear probe and the prior's candidates, in this order."""
    error = max(1.0 - evidence.probe_accuracy, 0.002)
    if not evidence.similarity_calibrated:
        prior = prior.changed(covariance=(UNCALIBRATED_VARIANCE * np.asarray(prior.covariance)).tolist())
    return belief_of(
        prior,
        features(evidence.images_per_class, evidence.domain_similarity, error),
        error,
        evidence.probe_accuracy_error,
    )


def belief_of(prior: Prior, known: Sequence[float], error: float, error_deviation: float) -> Belief:
    """Return the belief about the linear probe and the prior's candidates, in this order.

    Args:
        prior: the linear model.
        known: features of the image set, as from `features`.
        error: error rate of the linear probe, 0 .. 1.
        error_deviation: standard error of that error rate.
    """
    # Shares r_i = exp(B_i x), with r_0 = 1 for the linear probe; errors e_i = e_0 r_i.
    shares = np.exp(np.asarray(prior.coefficients) @ np.asarray(known))
    ratios = np.concatenate([[1.0], shares])
    # To first order (delta method), with C the covariance of the log shares and s the standard error of e_0:
    # cov(e_i, e_j) = e_i e_j C_ij + s^2 r_i r_j.
    of_shares = np.zeros((len(ratios), len(ratios)))
    of_shares[1:, 1:] = np.asarray(prior.covariance)
    errors = error * ratios
    covariance = of_shares * np.outer(errors, errors) + error_deviation**2 * np.outer(ratios, ratios)
    return Belief(mean=1.0 - errors, covariance=covariance)
