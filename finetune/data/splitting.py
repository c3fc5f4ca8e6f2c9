"""Deterministic splits: stratified by class, and never through a group."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from finetune.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def stratified_holdout(
    labels: "NDArray[np.integer]", fraction: float, seed: int, groups: "NDArray[np.str_] | None" = None
) -> tuple["NDArray[np.intp]", "NDArray[np.intp]"]:
    """Return the sorted indices that stay and those held out, about `fraction` of each class.

    Without groups at least one image of each class is on either side; groups stay whole.

    Raises:
        DataError: too few groups to hold one out.
    """
    if groups is not None:
        folds = _group_folds(labels, max(2, round(1 / fraction)), seed, groups)
        return min(folds, key=lambda fold: abs(len(fold[1]) - fraction * len(labels)))
    generator = np.random.default_rng(seed)
    held: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held.extend(members[: min(max(1, round(len(members) * fraction)), len(members) - 1)])
    mask = np.zeros(len(labels), dtype=bool)
    mask[held] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def stratified_folds(
    labels: "NDArray[np.integer]", num_folds: int, seed: int, groups: "NDArray[np.str_] | None" = None
) -> list[tuple["NDArray[np.intp]", "NDArray[np.intp]"]]:
    """Return (train, held out) indices of each fold; fewer folds where the smallest class has fewer images.

    Every image is held out once. Groups stay whole.

    Raises:
        DataError: fewer groups than two folds need.
    """
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    num_folds = max(2, min(num_folds, smallest))
    if groups is None:
        splitter = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
        return list(splitter.split(np.zeros(len(labels)), labels))
    return _group_folds(labels, num_folds, seed, groups)


def even_sample(labels: "NDArray[np.integer]", most: int, seed: int) -> "NDArray[np.intp]":
    """Return sorted indices of at most `most` images, taken from the classes in turn."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:most])


def _group_folds(
    labels: "NDArray[np.integer]", num_folds: int, seed: int, groups: "NDArray[np.str_]"
) -> list[tuple["NDArray[np.intp]", "NDArray[np.intp]"]]:
    num_groups = len(np.unique(groups))
    if num_groups < 2:
        raise DataError("all images belong to one group, so no image can be held out; check the group column")
    splitter = StratifiedGroupKFold(min(num_folds, num_groups), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer images than folds is missing from some of them, as the person's groups have it.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(splitter.split(np.zeros(len(labels)), labels, groups))


def stratified_subset(labels: "NDArray[np.integer]", count: int, seed: int) -> "NDArray[np.intp]":
    """Return the sorted indices of `count` images, each class in proportion and with at least two images.

    Raises:
        DataError: `count` leaves less than two images for some class.
    """
    if count >= len(labels):
        return np.arange(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    if count < 2 * len(classes):
        raise DataError(
            f"a limit of {count} images leaves less than two for each of {len(classes)} classes; "
            f"use at least {2 * len(classes)}"
        )
    quotas = _quotas(sizes, count)
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _quotas(sizes: "NDArray[np.integer]", count: int) -> "NDArray[np.integer]":
    """Return how many of each class are taken: in proportion, at least 2, `count` in all."""
    exact = sizes * (count / sizes.sum())
    quotas: NDArray[np.integer] = np.minimum(np.maximum(np.floor(exact), 2), sizes).astype(int)
    while quotas.sum() != count:
        surplus = quotas - exact
        if quotas.sum() > count:
            quotas[np.argmax(np.where(quotas > 2, surplus, -np.inf))] -= 1
        else:
            quotas[np.argmin(np.where(quotas < sizes, surplus, np.inf))] += 1
    return quotas
