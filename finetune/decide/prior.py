"""Form the belief about each candidate's accuracy before any of them is trained, from a grid of earlier trainings.

On new images, a candidate makes a multiple of the errors that the linear probe makes in its cross-validation. The
logarithm of this multiple is modelled as linear in a few features of the evidence, with three deviations that differ
from image set to image set and have heavy tails: sets differ more than images do.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune.decide.belief import DRAWS, Belief
from finetune.decide.evidence import Evidence
from finetune.value import FrozenModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

FREEDOM = 4
"""Degrees of freedom of the deviations' t distributions. With 4, one set in 90 deviates by more than 4 scales; of a
normal distribution, one in 16,000."""


class Prior(FrozenModel):
    """A model of `log(errors of a candidate on new images / cross-validated errors of the linear probe)`.

    log share of candidate c = coefficients_c . features + shift T1 + depth_c gain T2 + own T3c, where T1, T2 and T3c
    are independent and follow a t distribution with `FREEDOM` degrees of freedom.
    """

    candidates: tuple[str, ...]
    """Names of the candidates, the linear probe first."""
    coefficients: tuple[tuple[float, ...], ...]
    """Coefficients of the model's features (see `features`) for each candidate, (n_candidates, n_features)."""
    depth: tuple[float, ...]
    """Gain of each candidate over the linear probe relative to the mean gain, in log errors; 0 for the probe."""
    shift: float
    """Scale of the deviation that all candidates share: new images are harder, or easier, than held-out ones."""
    gain: float
    """Scale of the deviation of the gain of fine-tuning, which grows with a candidate's depth."""
    own: float
    """Scale of the deviation of a single candidate."""


PRIOR = Prior.load(Path(__file__).with_name("prior.json"))
"""Prior that `experiments/strategy_report.py` fitted to the grid of trainings of EfficientNet-Lite0 at 128 px."""

GRID_SIZES = (5.0, 400.0)
"""Fewest and most images per class in the grid. Outside of this range, the model is evaluated at the nearer end of the
range."""

UNCALIBRATED = 1.5
"""Factor on the scales of the deviations for networks without a fitted scale of the domain similarity."""

GROUPED = 1.5
"""Factor on the scales of the deviations where new images are of unseen groups: on the sets with known groups,
fine-tuning gained from 0 to 35 points over a probe that was evaluated on unseen groups."""

LEAST_ERROR = 0.002
"""Smallest error rate of the linear probe that the model is evaluated at."""


def features(images_per_class: float, similarity: float) -> tuple[float, ...]:
    """Return the features of the linear model: a constant, and two numbers that are 0 in the middle of the grid.

    Args:
        images_per_class: mean number of training images per class.
        similarity: domain similarity, 0 (far) .. 1 (near).
    """
    images_per_class = min(max(images_per_class, GRID_SIZES[0]), GRID_SIZES[1])
    return (1.0, math.log10(images_per_class / 20.0), similarity - 0.5)


def believe(prior: Prior, evidence: Evidence, names: Sequence[str]) -> Belief:
    """Return the belief about some of the prior's candidates, in the order of `names`."""
    error = max(1.0 - evidence.probe_accuracy, LEAST_ERROR)
    known = features(evidence.images_per_class, evidence.domain_similarity)
    # The grid was trained with one label per image: for sets of labels, 1 - mAP takes the place of the errors.
    factor = 1.0 if evidence.similarity_calibrated and not evidence.has_sets else UNCALIBRATED
    if evidence.groups is not None and evidence.groups.used:
        factor *= GROUPED
    guessing = 1.0 / evidence.chance if evidence.has_sets else evidence.num_classes
    belief = belief_of(prior, known, error, evidence.probe_accuracy_error, guessing, factor)
    return belief.among([prior.candidates.index(name) for name in names])


def belief_of(
    prior: Prior, known: Sequence[float], error: float, error_deviation: float, num_classes: float, factor: float = 1.0
) -> Belief:
    """Return the belief about all of the prior's candidates.

    Args:
        prior: the model.
        known: features of the image set, as from `features`.
        error: cross-validated error rate of the linear probe, 0 .. 1.
        error_deviation: standard error of that error rate.
        num_classes: number of classes, which sets the accuracy of guessing; for sets of labels, one over that accuracy.
        factor: factor on the scales of the deviations.
    """
    random = np.random.default_rng(0)
    count = len(prior.candidates)
    shared = random.standard_t(FREEDOM, (DRAWS, 2))
    own = random.standard_t(FREEDOM, (DRAWS, count))
    depth = np.asarray(prior.depth)
    # Deviations in log errors, (DRAWS, n_candidates). All candidates share T1 and T2, so their accuracies rise and fall
    # together, and the differences between candidates vary less.
    deviation = prior.shift * shared[:, :1] + prior.gain * shared[:, 1:] * depth + prior.own * own
    # Errors of the linear probe: the cross-validation measured them with an error of its own.
    errors = np.clip(error + error_deviation * random.standard_normal((DRAWS, 1)), LEAST_ERROR, 1.0)
    drawn: NDArray[np.float64] = errors * np.exp(
        np.asarray(prior.coefficients) @ np.asarray(known) + factor * deviation
    )
    # No candidate is expected to be worse than guessing one of K classes: its errors are at most 1 - 1 / K.
    return Belief(1.0 - np.minimum(drawn, 1.0 - 1.0 / num_classes))
