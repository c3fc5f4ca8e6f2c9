"""Measure how a linear probe improves with the number of its training images."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from finetune.data import Together, stratified_folds
from finetune.data.label_sets import rarest_class
from finetune.predict.linear_probe import FOLDS, HeadPath, fitting
from finetune.predict.set_metrics import drawn_precisions, mean_average_precision

CURVE_SHARES = (0.25, 0.5)
"""Shares of a fold's training images at which a learning curve is measured, in addition to all of them."""

DRAWN_IMAGES = 1000
"""Approximate product of the number of images and the number of draws of each share of a learning curve, so that few
images are drawn several times."""

MOST_DRAWS = 5
"""Largest number of draws of each share."""


def learning_curve(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    seed: int,
    inverse_regularization: float,
    groups: Together | None = None,
    folds: int = FOLDS,
) -> NDArray[np.float64]:
    """Return how often each held-out image is labelled wrongly by heads fitted to fewer images.

    The folds are those of `cross_validate`. A quarter and a half of each fold's training images are drawn, the same
    share of every class, several times where there are few images.

    Args:
        features: features of the images (n_images, width).
        labels: classes of the images (n_images,).
        num_classes: number of classes.
        seed: seed of the folds and of the draws.
        inverse_regularization: inverse regularization C of every head.
        groups: group of each image (n_images,), or ties; neither is divided between training and held-out images.
        folds: number of folds.

    Returns:
        Share of wrong labels for each share in `CURVE_SHARES` and image, (2, n_images) in 0 .. 1.
    """
    parts = stratified_folds(labels, folds, seed, groups)
    # The mean over the draws: each image is held out by one fold, so it gets `draws` predictions for each share.
    wrong = np.zeros((len(CURVE_SHARES), len(labels)))
    for share, _, held, logits in _held_out_logits(features, labels, num_classes, seed, inverse_regularization, parts):
        found: NDArray[np.bool_] = logits.argmax(axis=1) != labels[held]
        wrong[share, held] += found / _num_draws(len(labels))
    return wrong


def images_drawn(labels: NDArray[np.int64], seed: int, groups: Together | None = None) -> list[float]:
    """Return the mean number of images that a head of the learning curve is fitted to: with each share in
    `CURVE_SHARES`, and with all of a fold's training images.

    At least one image of every class is drawn, so that of classes with few images a larger share is.

    Args:
        labels: classes of the images (n_images,), or sets of labels (n_images, num_classes).
        seed: seed of the folds.
        groups: group of each image (n_images,), or ties; neither is divided between training and held-out images.
    """
    kinds = rarest_class(labels)
    sizes = [np.bincount(kinds[train]) for train, _ in stratified_folds(labels, FOLDS, seed, groups)]
    return [float(np.mean([np.ceil(share * size).sum() for size in sizes])) for share in (*CURVE_SHARES, 1.0)]


def curve_of_sets(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    seed: int,
    inverse_regularization: float,
    groups: Together | None = None,
    folds: int = FOLDS,
) -> tuple[list[float], float, float]:
    """Return the learning curve of sets of labels: the mean average precision with a quarter, a half and all of each
    fold's training images, and the exponent b of `1 - mAP ~ images ** -b` with its standard error.

    Args:
        features: features of the images (n_images, width).
        labels: sets of labels (n_images, num_classes).
        logits: held-out logits with all training images (n_images, num_classes).
        seed: seed of the folds and of the draws.
        inverse_regularization: inverse regularization C of every head.
        groups: group of each image (n_images,), or ties; neither is divided between training and held-out images.
        folds: number of folds.
    """
    parts = stratified_folds(labels, folds, seed, groups)
    draws = _num_draws(len(labels))
    scores = np.zeros((len(CURVE_SHARES), draws, *labels.shape), dtype=np.float32)
    num_classes = labels.shape[1]
    for share, draw, held, own in _held_out_logits(features, labels, num_classes, seed, inverse_regularization, parts):
        scores[share, draw, held] = own
    accuracy = [float(np.mean([mean_average_precision(own, labels) for own in each])) for each in scores]
    # b = log(E1 / E2) / log(factor) with E = 1 - mAP, at least half an image's share, over the same bootstrap samples.
    few, all_images = drawn_precisions(scores[0, 0], labels), drawn_precisions(logits, labels)
    least = 0.5 / len(labels)
    slopes = np.log(np.maximum(1.0 - few, least) / np.maximum(1.0 - all_images, least)) / math.log(1 / CURVE_SHARES[0])
    return [*accuracy, mean_average_precision(logits, labels)], float(slopes.mean()), float(slopes.std())


def _num_draws(num_images: int) -> int:
    """Return the number of draws of each share."""
    return min(MOST_DRAWS, max(1, round(DRAWN_IMAGES / num_images)))


def _held_out_logits(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    seed: int,
    inverse_regularization: float,
    parts: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> Iterator[tuple[int, int, NDArray[np.intp], NDArray[np.float32]]]:
    """Yield share, draw, held-out images and their logits of each head that is fitted to some of a fold's images."""
    kinds = rarest_class(labels)  # of images with sets of labels, the share is that of every rarest class
    tasks = [
        (share, draw, fold)
        for share in range(len(CURVE_SHARES))
        for draw in range(_num_draws(len(labels)))
        for fold in range(len(parts))
    ]

    def predict(task: tuple[int, int, int]) -> NDArray[np.float32]:
        share, _, fold = task
        indices, held = parts[fold]
        # A generator for each task, so that the draws do not depend on the order of the threads.
        generator = np.random.default_rng((seed, *task))
        order = generator.permutation(indices)
        classes = [order[kinds[order] == kind] for kind in np.unique(kinds[indices])]
        taken = np.concatenate([own[: math.ceil(CURVE_SHARES[share] * len(own))] for own in classes])
        head = HeadPath(features[taken], labels[taken], num_classes, balanced=False).at(inverse_regularization)
        return head.logits(features[held])

    with fitting(), ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for (share, draw, fold), logits in zip(tasks, threads.map(predict, tasks), strict=True):
            yield share, draw, parts[fold][1], logits


def error_slope(before: NDArray[np.floating], after: NDArray[np.floating], factor: float) -> tuple[float, float]:
    """Return the exponent b of the power law `errors ~ images ** -b` and its standard error.

    Args:
        before: share of wrong labels for each image, (n_images,) in 0 .. 1.
        after: share of wrong labels for each image with `factor` times the training images, (n_images,) in 0 .. 1.
        factor: ratio of the numbers of training images, above 1.
    """
    count = len(before)
    # Half an error is added to both sums (as for log odds, Haldane 1956), so that no logarithm is infinite.
    first, last = (float(wrong.sum()) + 0.5 for wrong in (before, after))
    # b = log(E1 / E2) / log(factor) with the sums of errors E1, E2. Delta method: the relative error of a sum is that
    # of its mean, and both sums are over the same images, so the differences are taken image by image. The terms
    # 0.5 / E^2 stand for the half errors.
    relative = before * (count / first) - after * (count / last)
    error = math.sqrt(float(relative.var()) / count + 0.5 / first**2 + 0.5 / last**2)
    return math.log(first / last) / math.log(factor), error / math.log(factor)
