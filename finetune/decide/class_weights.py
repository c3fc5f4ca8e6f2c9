"""Say from when on classes are of unequal size, and weigh them in the loss, within a bound."""

import numpy as np
from numpy.typing import NDArray

UNEQUAL = 5.0
"""Ratio of the largest class to the smallest from which accuracy hides the small classes: strategies are then compared
by balanced accuracy."""

MOST_RATIO = 100.0
"""Largest ratio of the weights of two classes. A class of a few images among thousands would otherwise outweigh the
rest of every batch that holds one of its images."""


def are_bounded(counts: NDArray[np.number]) -> bool:
    """Return whether the bound changes the weights of classes with these numbers of images, (num_classes,): the largest
    and the smallest differ by more than `MOST_RATIO`."""
    return bool(counts.max() > MOST_RATIO * counts[counts > 0].min())


def balanced_weights(counts: NDArray[np.number]) -> NDArray[np.floating]:
    """Return the weight of each class in the loss, (num_classes,), whose mean over the images is 1.

    A class of n_k of the n images has the weight n / (K n_k), where K is the number of classes with images, so that all
    classes weigh the same (scikit-learn's "balanced"). A class with fewer images than 1 / `MOST_RATIO` of those of the
    largest one is weighted as if it had that many. The weight of a class without images stands for nothing.

    Args:
        counts: number of images of each class, (num_classes,).
    """
    present = (counts > 0).sum()
    if not are_bounded(counts):
        return np.asarray(counts.sum() / np.maximum(counts, 1) / present)
    weights = 1.0 / np.maximum(counts, counts.max() / MOST_RATIO)
    return np.asarray(weights * (counts.sum() / (counts * weights).sum()))
