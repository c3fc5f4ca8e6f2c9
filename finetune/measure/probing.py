"""Evaluate linear probes on frozen features: accuracy, learning curve, corrections of class imbalance, chirality."""

import numpy as np
from numpy.typing import NDArray

from finetune.data import Together
from finetune.data.label_sets import has_sets
from finetune.data.splitting import are_in_small_classes, part_of
from finetune.decide.evidence import LearningCurve, ProbeResult
from finetune.predict.linear_probe import ProbeFolds, cross_validate
from finetune.predict.links import log_loss
from finetune.predict.metrics import accuracy_error_of, accuracy_of, metric_value
from finetune.predict.probe_curve import curve_of_sets, error_slope, images_drawn, learning_curve
from finetune.recipe import METRIC_OF_COSTS, METRIC_OF_SETS, Metric

CHIRALITY_REGULARIZATION = 1e-3
"""Inverse regularization of the classifier that distinguishes images from their mirrored copies: the regularization is
strong, because the difference is faint."""

LEAST_GROWTH = 1.5
"""Smallest ratio of the most to the fewest images of a learning curve from which its slope is measured."""

UNKNOWN_SLOPE = 1.0
"""Standard error of a slope that was not measured: that of most image sets is known better without it."""


def evaluate_probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: Together | None,
    num_classes: int,
    metric: Metric,
    seed: int,
) -> ProbeResult:
    """Return the cross-validated result of a linear probe.

    Args:
        features: features of the images (n_images, width).
        labels: classes of the images (n_images,), or sets of labels (n_images, num_classes).
        groups: group of each image (n_images,), or ties; neither is divided between training and held-out images.
        num_classes: number of classes.
        metric: metric of the choice; unless it is `top1` or `mean_cost`, answers to unequal classes are compared, too.
        seed: seed of the folds.
    """
    # The only image of a class cannot be held out, and says nothing about the probe.
    divisible = np.flatnonzero(~are_in_small_classes(labels))
    if len(divisible) < len(labels):
        features, labels, groups = features[divisible], labels[divisible], part_of(groups, divisible)
    folds = cross_validate(features, labels, num_classes, seed, groups)
    # What is expected of candidates is a top-1 accuracy, or a mean average precision, where images have sets of labels.
    own: Metric = METRIC_OF_SETS if has_sets(labels) else "top1"
    accuracy = accuracy_of(own, folds.logits, labels)
    needs_none = metric in {"top1", METRIC_OF_COSTS}
    return ProbeResult(
        accuracy=round(accuracy, 4),
        accuracy_error=round(accuracy_error_of(own, folds.logits, labels), 4),
        balanced_accuracy=round(accuracy_of("balanced_accuracy", folds.logits, labels), 4),
        log_loss=round(log_loss(folds.logits, labels), 4),
        inverse_regularization=folds.inverse_regularization,
        answers={"none": 0.0} if needs_none else _corrections(features, labels, folds, groups, seed),
        curve=_curve(features, labels, folds, groups, seed),
    )


def chirality(features: NDArray[np.float32], mirrored: NDArray[np.float32], seed: int) -> float:
    """Return the share of pairs in which a linear classifier recognises the mirrored copy of an image by its features.

    Chirality is the property that mirrored images can be distinguished from real ones ("Visual Chirality", Lin et al.
    2020). Networks are trained to predict the same class for both, so their predictions show little of it. Their
    features still differ where the images have a left and a right.

    Args:
        features: features of the images (n, width).
        mirrored: features of their mirrored copies (n, width), in the same order.
        seed: seed of the folds.

    Returns:
        Share in 0 .. 1: 0.5 is chance.
    """
    count = len(features)
    both = np.concatenate([features, mirrored])
    side = np.repeat(np.arange(2), count)
    # Both images of a pair are one group: the classifier that scores them was fitted to neither.
    pair = np.tile(np.arange(count), 2).astype(str)
    scores = cross_validate(both, side, 2, seed, pair, inverse_regularizations=(CHIRALITY_REGULARIZATION,)).logits
    looks_mirrored = scores[:, 1] - scores[:, 0]
    return round(float((looks_mirrored[count:] > looks_mirrored[:count]).mean()), 3)


def _curve(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: ProbeFolds,
    groups: Together | None,
    seed: int,
) -> LearningCurve:
    """Return the accuracy of the probe with a quarter, a half, and all of each fold's training images."""
    fewest, half, most = images_drawn(labels, seed, groups)
    counts = (round(fewest), round(half), round(most))
    if has_sets(labels):
        precisions, slope, error = curve_of_sets(
            features, labels, folds.logits, seed, folds.inverse_regularization, groups
        )
        return LearningCurve(
            num_images=counts,
            accuracy=tuple(round(each, 4) for each in precisions),
            slope=round(slope, 3),
            slope_error=round(error, 3),
        )
    # A quarter of one or two images of a class is one image: such a curve would be flat whatever more images gain.
    if most < LEAST_GROWTH * fewest:
        accuracy = round(accuracy_of("top1", folds.logits, labels), 4)
        return LearningCurve(num_images=counts, accuracy=(accuracy,) * 3, slope=0.0, slope_error=UNKNOWN_SLOPE)
    fewer = learning_curve(features, labels, folds.logits.shape[1], seed, folds.inverse_regularization, groups)
    wrong = np.stack([*fewer, folds.logits.argmax(axis=1) != labels])
    slope, error = error_slope(wrong[0], wrong[-1], most / fewest)
    return LearningCurve(
        num_images=counts,
        accuracy=tuple(round(1.0 - float(row.mean()), 4) for row in wrong),
        slope=round(slope, 3),
        slope_error=round(error, 3),
    )


def _corrections(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: ProbeFolds,
    groups: Together | None,
    seed: int,
) -> dict[str, float]:
    """Return the held-out balanced accuracy, or mean average precision, with each correction for classes of unequal
    size, by its name."""
    if has_sets(labels):
        strength = (folds.inverse_regularization,)
        weighted = cross_validate(features, labels, labels.shape[1], seed, groups, strength, balanced=True)
        both = {"none": folds.logits, "class_weights": weighted.logits}
        return {name: round(accuracy_of(METRIC_OF_SETS, own, labels), 4) for name, own in both.items()}
    counts = np.bincount(labels, minlength=folds.logits.shape[1])
    # Logit adjustment: f_k(x) - log p_k predicts as if all classes were equally frequent (Menon et al. 2021).
    prior = np.log(np.maximum(counts, 1) / counts.sum())
    scores = {"none": folds.logits, "logit_adjustment": folds.logits - prior}
    return {
        name: round(metric_value("balanced_accuracy", score.argmax(axis=1), labels), 4)
        for name, score in scores.items()
    }
