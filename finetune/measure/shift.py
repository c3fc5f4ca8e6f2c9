"""Measure how much accuracy a linear classifier loses on groups that it has not seen, and look for such groups.

The loss is that of a cross-validation that never divides a group, compared with one that holds out as many random
images of every class in every fold: the training sets have the same sizes and classes, so that only the groups differ.

The search uses a ridge classifier, because one matrix gives all its cross-validations. With the kernel
K = Z Z^T / d + 1 of standardised features Z (n, d), G = (K + r I)^-1 and one-hot targets Y (n, num_classes), the
residuals of held-out images b are (G_bb)^-1 (G Y)_b, exactly those of a ridge regression without these images.

Whether groups matter is tested by the squared residuals: they see small shifts that change few labels. Whether they
matter enough is decided by the accuracy.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from finetune.data import ImageSplits, groups_by_rule, labels_of, paths_of, stratified_folds, stratified_subset
from finetune.data.grouping import EXIF, candidate_rules, describe_rule
from finetune.data.label_sets import has_sets, rarest_class
from finetune.data.splitting import are_in_small_classes
from finetune.decide.evidence import GroupFinding
from finetune.predict.linear_probe import FOLDS, fit_head

SEARCHED = 1200
"""Largest number of images that are searched for groups."""

LEAST_IMAGES = 100
"""Smallest number of images that are searched: with fewer, differences are not nearly normal."""

RIDGE = 0.3
"""Regularisation r: of 0.003, 0.01, ... 1 the one with the best mean accuracy on the training images of 19 image sets
(experiments/log.md, 2026-11-29)."""

DRAWS = 5
"""Number of random cross-validations that a grouped one is compared with in the search."""

FALSE_ALARM = 0.01
"""Largest chance of a false alarm on one set of images, over all rules together, at which groups are reported."""

SURE = 0.001
"""Largest chance of a false alarm at which found groups are used, not only reported."""

LEAST_LOSS = 0.02
"""Smallest loss of accuracy that is reported: below it, candidates count as equally accurate under `prefer: speed`."""

LEAST_GROUPS = 3
"""Smallest number of groups."""

LEAST_SHARED = 0.2
"""Smallest share of the images that share their group with another image."""

Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]
"""Training and held-out indices of each fold."""

Errors = Callable[[Folds], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Function that cross-validates a classifier; it returns whether each image is labelled wrongly, and its loss, each
(n_images,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Difference between images of known groups and images of unseen groups, for one classifier."""

    random_accuracy: float
    """Cross-validated accuracy if random images are held out, 0 .. 1."""
    grouped_accuracy: float
    """Cross-validated accuracy if whole groups are held out, 0 .. 1."""
    error: float
    """Standard error of the difference of the accuracies, paired over images."""
    z: float
    """Increase of the mean loss on unseen groups, in its standard errors, paired over images."""

    @property
    def lost(self) -> float:
        """Accuracy that is lost on unseen groups."""
        return self.random_accuracy - self.grouped_accuracy

    def is_clear(self, num_rules: int, false_alarm: float = FALSE_ALARM) -> bool:
        """Return whether the loss is large enough to matter, and more than chance.

        Args:
            num_rules: number of rules that were compared.
            false_alarm: largest chance that any of them has such a loss if groups mean nothing.
        """
        # A one-sided test, Bonferroni-corrected for the number of rules.
        return self.lost >= LEAST_LOSS and self.z > -NormalDist().inv_cdf(false_alarm / num_rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """The groups of the measured images."""

    rule: str
    """Rule that gives the groups, as in a recipe."""
    groups: NDArray[np.str_]
    """Group of each image, (n_images,)."""
    used: bool
    """Whether no split and no fold divides these groups."""


def known_groups(splits: ImageSplits, groups: NDArray[np.str_] | None) -> Grouping | None:
    """Return the given groups (n_images,) of the measured images; None if there are none."""
    return None if groups is None else Grouping(rule=splits.group_rule or "column", groups=groups, used=True)


def find_groups(
    features: NDArray[np.float32], splits: ImageSplits, indices: NDArray[np.intp], seed: int
) -> Grouping | None:
    """Return the groups that matter most clearly; None if no rule loses clearly more than chance.

    Args:
        features: features of the measured images (n_images, width).
        splits: the images.
        indices: index of each measured image among the training images, (n_images,).
        seed: seed of the draws and the folds.
    """
    if len(indices) < LEAST_IMAGES:
        return None
    labels = labels_of(splits.train)[indices]
    divisible = np.flatnonzero(~are_in_small_classes(labels))
    paths = paths_of(splits.train.select(indices))
    names = [splits.class_names[label] for label in labels]
    chosen = divisible[stratified_subset(labels[divisible], max(SEARCHED, 2 * len(np.unique(labels))), seed)]
    errors = ridge_errors(features[chosen], labels[chosen])
    some_paths, some_names = [paths[row] for row in chosen], [names[row] for row in chosen]
    compared = list(compare_rules(labels[chosen], errors, some_paths, some_names, seed))
    clear = [(rule, shift) for rule, shift in compared if shift.is_clear(len(compared))]
    if not clear:
        return None
    rule, shift = max(clear, key=lambda pair: pair[1].z)
    groups = groups_by_rule(rule, paths, names)
    if None in groups:  # more images were measured than searched
        return None
    return Grouping(rule=rule, groups=np.asarray(groups, dtype=str), used=shift.is_clear(len(compared), SURE))


def compare_rules(
    labels: NDArray[np.int64], errors: Errors, paths: Sequence[str], names: Sequence[str], seed: int
) -> Iterator[tuple[str, Shift]]:
    """Yield each rule that may tell groups apart, and the loss on its groups.

    Args:
        labels: classes of the images (n_images,).
        errors: function that cross-validates a classifier.
        paths: file of each image.
        names: name of each image's class.
        seed: seed of the draws and the folds.
    """
    num_classes = len(np.unique(labels))
    for rule, groups in _distinct(paths, names):
        folds = stratified_folds(labels, FOLDS, seed, groups) if _is_plausible(labels, groups) else []
        # A class that is missing from the training of a fold would be lost for another reason than its groups.
        if folds and all(len(np.unique(labels[train])) == num_classes for train, _ in folds):
            yield rule, compare(labels, folds, errors, DRAWS, seed)


def measure_groups(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    grouping: Grouping,
    inverse_regularization: float,
    seed: int,
) -> GroupFinding:
    """Return both accuracies of the linear probe: on images like the training images, and on unseen groups.

    Args:
        features: features of the images (n_images, width).
        labels: classes of the images (n_images,), or sets of labels (n_images, num_classes).
        grouping: the groups of the images.
        inverse_regularization: inverse regularization C of the probe.
        seed: seed of the draws and the folds.
    """
    num_classes = labels.shape[1] if has_sets(labels) else int(labels.max()) + 1
    groups = grouping.groups
    # The only image of a class is in no fold.
    if (alone := are_in_small_classes(labels)).any():
        features, labels, groups = features[~alone], labels[~alone], groups[~alone]

    def errors(folds: Folds) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        wrong = np.zeros(len(labels))
        for train, held in folds:
            head = fit_head(features[train], labels[train], num_classes, inverse_regularization)
            logits = head.logits(features[held])
            wrong[held] = _missed(logits, labels[held]) if has_sets(labels) else logits.argmax(axis=1) != labels[held]
        return wrong, wrong

    shift = compare(rarest_class(labels), stratified_folds(labels, FOLDS, seed, groups), errors, 1, seed)
    return GroupFinding(
        rule=grouping.rule,
        description=describe_rule(grouping.rule),
        num_groups=len(np.unique(grouping.groups)),
        random_accuracy=round(shift.random_accuracy, 4),
        grouped_accuracy=round(shift.grouped_accuracy, 4),
        error=round(shift.error, 4),
        used=grouping.used,
    )


def _missed(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of labels that are wrong of those that each image has or is given, (n_images,).

    One less this share is the accuracy of sets (Godbole & Sarawagi 2004); it is 1 where both sets are empty.
    """
    given, right = logits > 0.0, labels > 0
    return np.asarray((given ^ right).sum(axis=1) / np.maximum((given | right).sum(axis=1), 1))


def compare(labels: NDArray[np.int64], folds: Folds, errors: Errors, draws: int, seed: int) -> Shift:
    """Return the difference between grouped folds and random folds of the same sizes and classes.

    Args:
        labels: classes of the images (n_images,).
        folds: folds that do not divide groups.
        errors: function that cross-validates a classifier.
        draws: number of random cross-validations.
        seed: seed of the draws.
    """
    fold_of = np.zeros(len(labels), dtype=np.intp)
    for number, (_, held) in enumerate(folds):
        fold_of[held] = number
    generator = np.random.default_rng(seed)
    drawn_errors = []
    for _ in range(draws):
        # Within each class, the images exchange their folds at random.
        drawn = fold_of.copy()
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            drawn[own] = fold_of[generator.permutation(own)]
        parts = [(np.flatnonzero(drawn != fold), np.flatnonzero(drawn == fold)) for fold in range(len(folds))]
        drawn_errors.append(np.stack(errors(parts)))
    random, grouped = np.mean(drawn_errors, axis=0), np.stack(errors(folds))
    # Variance of a mean of n paired differences, var / n, plus that of one draw of folds and of the mean of all draws.
    variance = (grouped - random).var(axis=1) / len(labels)
    if draws > 1:
        variance += np.mean(drawn_errors, axis=2).var(axis=0, ddof=1) * (1.0 + 1.0 / draws)
    error, loss_error = np.sqrt(variance)
    return Shift(
        random_accuracy=float(1.0 - random[0].mean()),
        grouped_accuracy=float(1.0 - grouped[0].mean()),
        error=float(error),
        z=float((grouped[1] - random[1]).mean() / max(loss_error, 1e-12)),
    )


def ridge_errors(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Errors:
    """Return a function that cross-validates a ridge classifier over any folds; its loss is the squared residual."""
    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-3 * float(features.std()) + 1e-12)
    kernel = (standard @ standard.T).astype(np.float64) / standard.shape[1]
    inverse = np.linalg.inv(kernel + 1.0 + RIDGE * np.eye(len(kernel)))
    targets = np.eye(int(labels.max()) + 1)[labels]
    weighted = inverse @ targets

    def errors(folds: Folds) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        residuals = np.zeros_like(targets)
        for _, held in folds:
            residuals[held] = np.linalg.solve(inverse[np.ix_(held, held)], weighted[held])
        wrong = (targets - residuals).argmax(axis=1) != labels
        return wrong.astype(np.float64), (residuals**2).sum(axis=1)

    return errors


def _distinct(paths: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.str_]]]:
    """Yield each candidate rule that gives every image a group, with the groups; of rules with the same groups the
    first one."""
    seen = set()
    few = range(0, len(paths), max(1, len(paths) // 10))
    for rule in candidate_rules(paths):
        # A few images show that most files have no EXIF, without opening all of them.
        if rule.startswith(EXIF) and None in groups_by_rule(rule, [paths[row] for row in few], names):
            continue
        found = groups_by_rule(rule, paths, names)
        groups = np.asarray([group or "" for group in found], dtype=str)
        _, first, members = np.unique(groups, return_index=True, return_inverse=True)
        partition = first[members].tobytes()  # each image's group by the first image of the group
        if None not in found and partition not in seen:
            seen.add(partition)
            yield rule, groups


def _is_plausible(labels: NDArray[np.int64], groups: NDArray[np.str_]) -> bool:
    """Return whether groups are neither too few nor too small to matter, and no class is one group."""
    _, members, counts = np.unique(groups, return_inverse=True, return_counts=True)
    in_class = [len(np.unique(members[labels == label])) for label in np.unique(labels)]
    return bool(
        len(counts) >= LEAST_GROUPS
        and counts.max() <= len(groups) / 2
        and (counts[members] > 1).mean() >= LEAST_SHARED
        and min(in_class) >= 2
    )
