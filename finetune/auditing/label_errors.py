"""Find labels that are probably wrong, by the probabilities of a probe that was not fitted to the image.

Confident learning ("Confident Learning: Estimating Uncertainty in Dataset Labels", Northcutt et al. 2021), as cleanlab
implements it, with one more condition: the given label must be improbable by itself.
"""

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from finetune.predict.linear_probe import cross_validate
from finetune.predict.links import softmax

IMPROBABLE = 0.01
"""Largest probability of a given label that is reported as wrong. Of six sets as published, 0.4 % of the images are
reported then, and of labels that were swapped 48 %; with 0.02 it is 0.9 % and 55 % (experiments/log.md, 2026-11-29)."""

MISSING = "labels were not checked, because cleanlab is not installed; install it: pip install 'finetune-images[audit]'"
"""Sentence that is printed without cleanlab."""


def can_check_labels() -> bool:
    """Return whether cleanlab is installed."""
    return find_spec("cleanlab") is not None


def held_out_probabilities(
    features: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, groups: NDArray[np.str_] | None
) -> NDArray[np.float64]:
    """Return the cross-validated probabilities of a linear probe, (n_images, num_classes).

    Args:
        features: features of the images (n_images, width).
        labels: given classes of the images (n_images,).
        num_classes: number of classes.
        groups: group of each image (n_images,), which no fold divides; None: there are no groups.
    """
    probabilities: NDArray[np.float64] = softmax(
        cross_validate(features, labels, num_classes, 0, groups).logits.astype(np.float64)
    )
    return probabilities


def find_label_errors(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the indices of the images whose label is probably wrong, the surest first.

    Args:
        probabilities: held-out probabilities (n_images, num_classes).
        labels: given classes of the images (n_images,).
    """
    from cleanlab.filter import find_label_issues

    # A class without images would have no threshold.
    present, labels = np.unique(labels, return_inverse=True)
    probabilities = probabilities[:, present] / probabilities[:, present].sum(axis=1, keepdims=True)
    if len(present) < 2:
        return np.zeros(0, dtype=np.intp)
    suspected = find_label_issues(labels, probabilities, filter_by="both", n_jobs=1)
    own = probabilities[np.arange(len(labels)), labels]
    found = np.flatnonzero(suspected & (own <= IMPROBABLE))
    return found[np.argsort(own[found], kind="stable")]
