"""Divide images with sets of labels into parts that have the same share of every class.

This is iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, "On the stratification of multi-label data",
algorithm 1): the rarest class is divided first, because its images leave the least choice. Units are divided, not
images: a group is one unit, so that no part divides it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def divide(
    labels: "NDArray[np.integer]", shares: Sequence[float], seed: int, groups: "NDArray[np.str_] | None" = None
) -> "NDArray[np.intp]":
    """Return the part of each image, (n_images,), numbered from 0.

    Args:
        labels: sets of labels, (n_images, num_classes) of 0 and 1.
        shares: share of the images that each part is to have; they add up to 1.
        seed: seed of the order in which equal units are taken, and of ties.
        groups: group of each image (n_images,), which no part divides; None: each image is a unit.
    """
    generator = np.random.default_rng(seed)
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(units.max()) + 1
    # Number of images of each class in each unit; the last column counts all images, with and without labels.
    content = np.zeros((count, labels.shape[1] + 1))
    np.add.at(content, units, np.column_stack([labels, np.ones(len(labels))]))
    # wanted[j, k]: how many further images of class k part j is to get.
    wanted = np.outer(np.asarray(shares), content.sum(axis=0))
    part = np.full(count, -1, dtype=np.intp)
    order = generator.permutation(count)
    while (left := order[part[order] < 0]).size:
        images = content[left].sum(axis=0)
        # The class with the fewest images left; units without any label come last, by their number of images.
        present = np.flatnonzero(images[:-1] > 0)
        chosen = int(present[np.argmin(images[present])]) if present.size else labels.shape[1]
        for unit in left[content[left, chosen] > 0]:
            # Where this class is wanted most; of equal ones, where images are wanted most, and then by chance.
            need = np.stack([generator.random(len(shares)), wanted[:, -1], wanted[:, chosen]])
            own = int(np.lexsort(need)[-1])
            part[unit] = own
            wanted[own] -= content[unit]
    return part[units]
