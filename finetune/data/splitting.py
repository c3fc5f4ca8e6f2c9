"""Choose the images to hold out: stratified by class, reproducible by the seed, and without dividing a group."""

import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from finetune.data.iterative import divide
from finetune.data.label_sets import has_sets, rarest_class
from finetune.errors import DataError


@dataclass(frozen=True, slots=True)
class Ties:
    """What keeps images on one side of every split: that they show one picture and, if there are any, groups."""

    groups: NDArray[np.str_] | None
    """Group of each image (n_images,), or None."""
    pictures: NDArray[np.int64]
    """Number of the picture that each image shows, (n_images,)."""

    def first_images(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.str_] | None]:
        """Return the first image of each picture (n_pictures,), the place of each image's picture among them
        (n_images,), and the group of each picture: pictures of one group, and groups with one picture, are together.
        """
        _, first, place = np.unique(self.pictures, return_index=True, return_inverse=True)
        if self.groups is None:
            return first, place, None
        _, group = np.unique(self.groups, return_inverse=True)
        # Pictures and groups are the nodes of a graph, and each image is an edge between its picture and its group.
        nodes = len(first) + int(group.max()) + 1
        edges = coo_matrix((np.ones(len(place)), (place, len(first) + group)), shape=(nodes, nodes))
        _, parts = connected_components(edges, directed=False)
        return first, place, parts[: len(first)].astype(str)


Together: TypeAlias = NDArray[np.str_] | Ties
"""What keeps images together: their groups, or ties."""


def part_of(together: Together | None, indices: NDArray[np.intp]) -> Together | None:
    """Return what keeps the images `indices` together."""
    if isinstance(together, Ties):
        groups = None if together.groups is None else together.groups[indices]
        return Ties(groups, together.pictures[indices])
    return None if together is None else together[indices]


LEAST_TO_HOLD_OUT = 2
"""Number of images that a class needs so that one can be held out: one is trained on."""


def are_in_small_classes(labels: NDArray[np.integer], least: int = LEAST_TO_HOLD_OUT) -> NDArray[np.bool_]:
    """Return whether each image (n_images,) is of a class with fewer than `least` images; of sets of labels, whether
    any of its labels is.

    Args:
        labels: class indices (n_images,), or sets of labels (n_images, num_classes).
        least: number of images from which a class is not small.
    """
    if has_sets(labels):
        small = labels.sum(axis=0) < least
        return np.asarray((labels[:, small] > 0).any(axis=1))
    return np.asarray(np.bincount(labels)[labels] < least)


def stratified_holdout(
    labels: NDArray[np.integer],
    fraction: float,
    seed: int,
    groups: Together | None = None,
    least: int = LEAST_TO_HOLD_OUT,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the sorted indices of the images that stay and of those that are held out.

    Groups and copies of one picture are not divided; with copies, the fraction is that of the pictures. Without groups,
    a class with two or more images (or pictures) has at least one on each side, unless images have sets of labels.
    Images of classes with fewer than `least` images stay, with their groups.

    Args:
        labels: class indices (n_images,), or sets of labels (n_images, num_classes).
        fraction: fraction of each class to hold out, approximately.
        seed: seed of the draw.
        groups: group of each image (n_images,), ties, or None.
        least: number of images from which images of a class may be held out.

    Raises:
        DataError: there is only one group, or none that may be held out.
    """
    if isinstance(groups, Ties):
        first, place, own_groups = groups.first_images()
        return _of_images(place, stratified_holdout(labels[first], fraction, seed, own_groups, least))
    stay, free = _kept_and_free(labels, groups, least)
    if len(stay):
        own, held_out = _holdout(labels[free], fraction, seed, None if groups is None else groups[free])
        return np.sort(np.concatenate([stay, free[own]])), free[held_out]
    return _holdout(labels, fraction, seed, groups)


def _kept_and_free(
    labels: NDArray[np.integer], groups: NDArray[np.str_] | None, least: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the images that are always trained on, those of small classes and of their groups, and of
    all others.

    Raises:
        DataError: there are no others.
    """
    stay = are_in_small_classes(labels, least)
    if groups is not None:
        stay = np.isin(groups, groups[stay])
    if stay.all():
        where = "" if groups is None else ", or in a group with an image of such a class"
        raise DataError(
            f"no image can be held out: each is of a class with fewer than {least} images{where}; add images"
        )
    return np.flatnonzero(stay), np.flatnonzero(~stay)


def _holdout(
    labels: NDArray[np.integer], fraction: float, seed: int, groups: NDArray[np.str_] | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the sorted indices of the images that stay and of those that are held out, of any of these images."""
    if has_sets(labels):
        part = divide(labels, (1.0 - fraction, fraction), seed, _checked(groups))
        return np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    if groups is not None:
        # Make 1 / fraction folds, and take the one with the number of images nearest to the fraction.
        folds = _group_folds(labels, max(2, round(1 / fraction)), seed, groups)
        return min(folds, key=lambda fold: abs(len(fold[1]) - fraction * len(labels)))
    generator = np.random.default_rng(seed)
    held_out: list[int] = []
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        # At least one image is held out, and at least one stays.
        held_out.extend(own[: min(max(1, round(len(own) * fraction)), len(own) - 1)])
    mask = np.zeros(len(labels), dtype=bool)
    mask[held_out] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def stratified_folds(
    labels: NDArray[np.integer], num_folds: int, seed: int, groups: Together | None = None
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the (training, held-out) indices of each fold; every image is held out once, and neither groups nor
    copies of one picture are divided.

    If the smallest class has fewer than `num_folds` images, there are as many folds as it has images, but at least two.
    A class with one image does not count: its image, with its group, is trained on in every fold and never held out.

    Args:
        labels: class indices (n_images,), or sets of labels (n_images, num_classes).
        num_folds: number of folds.
        seed: seed of the draw.
        groups: group of each image (n_images,), ties, or None.

    Raises:
        DataError: there is only one group, or none that may be held out.
    """
    if isinstance(groups, Ties):
        first, place, own_groups = groups.first_images()
        return [_of_images(place, fold) for fold in stratified_folds(labels[first], num_folds, seed, own_groups)]
    stay, free = _kept_and_free(labels, groups, LEAST_TO_HOLD_OUT)
    if len(stay):
        parts = _any_folds(labels[free], num_folds, seed, None if groups is None else groups[free])
        return [(np.sort(np.concatenate([stay, free[train]])), free[held]) for train, held in parts]
    return _any_folds(labels, num_folds, seed, groups)


def _any_folds(
    labels: NDArray[np.integer], num_folds: int, seed: int, groups: NDArray[np.str_] | None
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the (training, held-out) indices of each fold, of any of these images."""
    if has_sets(labels):
        return _folds_of_sets(labels, num_folds, seed, groups)
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    num_folds = max(2, min(num_folds, smallest))  # every fold holds out an image of every class
    if groups is not None:
        return _group_folds(labels, num_folds, seed, groups)
    return _folds(StratifiedKFold(num_folds, shuffle=True, random_state=seed), labels)


def _of_images(
    place: NDArray[np.intp], parts: tuple[NDArray[np.intp], NDArray[np.intp]]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the images of both sides of a split of their pictures; `place` is the picture of each image."""
    stay, held_out = parts
    return np.flatnonzero(np.isin(place, stay)), np.flatnonzero(np.isin(place, held_out))


def _folds_of_sets(
    labels: NDArray[np.integer], num_folds: int, seed: int, groups: NDArray[np.str_] | None
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the (training, held-out) indices of each fold of images with sets of labels."""
    counts = labels.sum(axis=0)
    smallest = int(counts[counts > 0].min(initial=len(labels)))
    most = len(labels) if groups is None else len(np.unique(groups))
    num_folds = max(2, min(num_folds, smallest, most))
    part = divide(labels, [1.0 / num_folds] * num_folds, seed, _checked(groups))
    return [(np.flatnonzero(part != fold), np.flatnonzero(part == fold)) for fold in range(num_folds)]


def _checked(groups: NDArray[np.str_] | None) -> NDArray[np.str_] | None:
    """Return groups that can be divided.

    Raises:
        DataError: there is only one group.
    """
    if groups is not None and len(np.unique(groups)) < 2:
        raise DataError("all images belong to one group, so no image can be held out; check the group column")
    return groups


def even_sample(labels: NDArray[np.integer], most: int, seed: int) -> NDArray[np.intp]:
    """Return the sorted indices of at most `most` images, divided among the classes as equally as possible.

    An image with a set of labels counts for its rarest class.
    """
    labels = rarest_class(labels)
    # Each image gets its rank in a random order of its class. The images are then taken by rank: first one image of
    # each class, then a second one, and so on.
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        rank[own] = np.arange(len(own))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:most])


def _group_folds(
    labels: NDArray[np.integer], num_folds: int, seed: int, groups: NDArray[np.str_]
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return (training, held-out) indices of folds that do not divide groups."""
    _checked(groups)
    num_groups = len(np.unique(groups))
    return _folds(StratifiedGroupKFold(min(num_folds, num_groups), shuffle=True, random_state=seed), labels, groups)


def _folds(
    splitter: StratifiedKFold | StratifiedGroupKFold,
    labels: NDArray[np.integer],
    groups: NDArray[np.str_] | None = None,
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the (training, held-out) indices of the folds of a splitter."""
    with warnings.catch_warnings():
        # A class with fewer images than folds is missing from some folds; with groups this cannot be avoided.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(splitter.split(np.zeros(len(labels)), labels, groups))


def stratified_subset(labels: NDArray[np.integer], count: int, seed: int) -> NDArray[np.intp]:
    """Return the sorted indices of `count` images, in proportion to the sizes of the classes, and at least two of each
    class that has two. An image with a set of labels counts for its rarest class.

    Raises:
        DataError: `count` is less than two images per class.
    """
    if count >= len(labels):
        return np.arange(len(labels))
    labels = rarest_class(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    if count < (least := int(np.minimum(sizes, 2).sum())):
        raise DataError(
            f"a limit of {count} images leaves fewer than two for each of {len(classes)} classes; use at least {least}"
        )
    quotas = _quotas(sizes, count)
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _quotas(sizes: NDArray[np.integer], count: int) -> NDArray[np.integer]:
    """Return the number of images to take from each class: in proportion, at least 2 each, `count` in all.

    Quotas start from the exact proportions, rounded down. Then images are added or removed one at a time, each in the
    class with the quota that differs most from the exact one.
    """
    exact = sizes * (count / sizes.sum())
    quotas: NDArray[np.integer] = np.minimum(np.maximum(np.floor(exact), 2), sizes).astype(int)
    while quotas.sum() != count:
        surplus = quotas - exact
        if quotas.sum() > count:
            quotas[np.argmax(np.where(quotas > 2, surplus, -np.inf))] -= 1
        else:
            quotas[np.argmin(np.where(quotas < sizes, surplus, np.inf))] += 1
    return quotas
