"""What a training made of the images that it held out, and whether it did harm."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.prediction import fit_temperature
from finetune.probing import softmax
from finetune.recipe import Metric

SURE = 3.0
"""Standard errors beyond which a difference is not chance: harm is looked for after every training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a training makes of the images that it holds out, at some step."""

    members: NDArray[np.intp]
    """Their indices, ascending, among the training images followed by the validation images."""
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    """(n_members, num_classes)"""
    blended: NDArray[np.float32] | None = None
    """The same of the weights nearer to the linear probe's (`Training.blend`), where asked for, after the last step."""
    probe: NDArray[np.float32] | None = None
    """The same of the linear probe that the training started from, where it did, after the last step."""


def is_worse(
    trained: NDArray[np.float32], before: NDArray[np.float32], labels: NDArray[np.int64], metric: Metric
) -> bool:
    """Return whether a training did harm: three standard errors more log-loss, and as many more errors, on the same
    held-out images.

    Args:
        trained: logits (n, num_classes) after it.
        before: of the linear probe that it started from.
        labels: (n,).
        metric: balanced_accuracy gives every class the same weight.
    """
    if len(labels) < 2:
        return False
    weights = np.full(len(labels), 1.0 / len(labels))
    if metric == "balanced_accuracy":
        classes, counts = np.unique(labels, return_counts=True)
        weights = 1.0 / (counts[np.searchsorted(classes, labels)] * len(classes))
    scaled = [scores / fit_temperature(scores, labels) for scores in (trained, before)]
    losses = [-np.log(softmax(scores)[np.arange(len(labels)), labels] + 1e-12) for scores in scaled]
    errors = [(scores.argmax(axis=1) != labels).astype(np.float64) for scores in scaled]
    for after, first in (losses, errors):
        more = after - first
        mean = float((weights * more).sum())
        if mean <= SURE * float(np.sqrt((weights**2 * (more - mean) ** 2).sum())):
            return False
    return True
