"""Count which classes are taken for which, and put the classes into orders that show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

MOST_CLASSES = 40
"""Largest number of classes that a confusion matrix shows one by one."""

SHOWN_CLASSES = 30
"""Number of classes with the most errors that a matrix of more classes shows; the others share a row and a column."""

OTHERS = "all other classes"
"""Name of the row and the column of the other classes."""


class Pair(NamedTuple):
    """Two classes that are taken for each other."""

    first: int
    """Index of the class that is taken for the other one more often."""
    second: int
    """Index of the other class."""
    forth: int
    """Number of images of the first class that are taken for the second one."""
    back: int
    """Number of images of the second class that are taken for the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionMatrix:
    """How many images of each class are taken for which class."""

    names: tuple[str, ...]
    """Names of the rows and columns."""
    counts: NDArray[np.int64]
    """Number of images of the class of the row that are taken for the class of the column, (n, n)."""
    orders: dict[str, list[int]]
    """Ways to order the classes, by the name of the order: the position of each class."""


def count_confusions(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Return how many images of each class (row) are taken for each class (column), (num_classes, num_classes)."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def make_matrix(counts: NDArray[np.int64], names: Sequence[str], are_grades: bool = False) -> ConfusionMatrix:
    """Return the matrix to show: all classes, or those with the most errors where there are many.

    Args:
        counts: number of images of the class of the row that are taken for the class of the column, (n, n).
        names: names of the n classes.
        are_grades: whether the classes are grades in their order.
    """
    shown = list(names)
    if len(names) > MOST_CLASSES:
        # An error belongs to two classes: the right one and the predicted one.
        wrong = counts - np.diag(np.diag(counts))
        kept = np.sort(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:SHOWN_CLASSES])
        # A matrix G with G[k, place of class k] = 1 sums the rows and columns of the other classes: G^T counts G.
        gathered = np.zeros((len(names), SHOWN_CLASSES + 1), dtype=np.int64)
        gathered[:, -1] = 1
        gathered[kept] = np.eye(SHOWN_CLASSES + 1, dtype=np.int64)[:-1]
        counts = gathered.T @ counts @ gathered
        shown = [*(names[place] for place in kept), OTHERS]
    errors = counts.sum(axis=1) - np.diag(counts)
    orders = {"by grade": list(range(len(shown)))} if are_grades else {}
    orders |= {
        "confused classes together": _neighbours(counts),
        "most errors first": list(np.argsort(-errors, kind="stable")),
        "by name": sorted(range(len(shown)), key=lambda place: (shown[place] == OTHERS, shown[place])),
    }
    positions = {name: [order.index(place) for place in range(len(shown))] for name, order in orders.items()}
    return ConfusionMatrix(names=tuple(shown), counts=counts, orders=positions)


def most_confused(counts: NDArray[np.int64], most: int) -> list[Pair]:
    """Return the pairs of classes that are taken for each other most often, at most `most` of them."""
    wrong = counts - np.diag(np.diag(counts))
    both = np.triu(wrong + wrong.T)
    pairs = []
    for place in np.argsort(-both, axis=None, kind="stable")[:most]:
        one, other = (int(index) for index in np.unravel_index(place, both.shape))
        if both[one, other]:
            first, second = (one, other) if wrong[one, other] >= wrong[other, one] else (other, one)
            pairs.append(Pair(first, second, int(wrong[first, second]), int(wrong[second, first])))
    return pairs


def _neighbours(counts: NDArray[np.int64]) -> list[int]:
    """Return an order of the classes in which those that are taken for each other are neighbours."""
    if len(counts) < 3:
        return list(range(len(counts)))
    # Average linkage over d = 1 - s, with s the larger share of one class's images that are taken for the other one;
    # of the orders of its leaves, the one with the least sum of distances (Bar-Joseph et al. 2001).
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    distances = 1.0 - np.maximum(shares, shares.T)
    np.fill_diagonal(distances, 0.0)
    condensed = squareform(distances, checks=False)
    return [int(place) for place in leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))]
