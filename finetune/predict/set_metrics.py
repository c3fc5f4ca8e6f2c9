"""Score predicted sets of labels: average precision, F1 and exact matches, with bootstrap intervals, and thresholds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.predict.bootstrap import draw_samples, interval_of
from finetune.value import FrozenModel

USUAL_THRESHOLD = 0.5
"""Probability from which a label is given where there are too few images to find a better one."""

LEAST_POSITIVES = 10
"""Smallest number of held-out images with a label from which its threshold is found: with fewer, the best F1 is
chance."""


class ClassPrecision(FrozenModel):
    """How well one label is ranked."""

    name: str
    """Name of the class."""
    average_precision: float | None
    """Mean precision over the images with the label, ranked by its probability; None: no image has the label."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the average precision."""
    threshold: float
    """Probability from which the label is given."""


class SetMetrics(FrozenModel):
    """Metrics of predicted sets of labels."""

    mean_average_precision: float
    """Mean over the classes with images of their average precisions."""
    mean_average_precision_interval: tuple[float, float]
    """95 % bootstrap interval of `mean_average_precision`."""
    micro_f1: float
    """F1 over all pairs of an image and a label."""
    micro_f1_interval: tuple[float, float]
    """95 % bootstrap interval of `micro_f1`."""
    macro_f1: float
    """Mean F1 of the classes with images."""
    macro_f1_interval: tuple[float, float]
    """95 % bootstrap interval of `macro_f1`."""
    exact_match: float
    """Share of images of which every label is right."""
    exact_match_interval: tuple[float, float]
    """95 % bootstrap interval of `exact_match`."""
    num_without: int
    """Number of images without any label."""
    per_class: list[ClassPrecision]
    """Average precision and threshold of each class, in the order of the classes."""


def give_labels(probabilities: NDArray[np.floating], thresholds: Sequence[float]) -> NDArray[np.bool_]:
    """Return which labels are given: those whose probability (n, num_classes) is at least its threshold."""
    return np.asarray(probabilities >= np.asarray(thresholds))


def score_sets(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    class_names: Sequence[str],
    thresholds: Sequence[float],
) -> SetMetrics:
    """Return the metrics of probabilities (n, num_classes) against sets of labels (n, num_classes) of 0 and 1."""
    present = labels.sum(axis=0) > 0
    given: NDArray[np.bool_] = give_labels(probabilities, thresholds)
    weights = draw_samples(len(labels))
    one = np.ones((1, len(labels)), dtype=np.float32)
    precisions, drawn = (average_precisions(probabilities, labels, each) for each in (one, weights))
    micro, macro, exact = _f1_and_matches(given, labels, one)
    micro_drawn, macro_drawn, exact_drawn = _f1_and_matches(given, labels, weights)
    return SetMetrics(
        mean_average_precision=float(_mean_over_classes(precisions)[0]),
        mean_average_precision_interval=interval_of(_mean_over_classes(drawn)),
        micro_f1=float(micro[0]),
        micro_f1_interval=interval_of(micro_drawn),
        macro_f1=float(macro[0]),
        macro_f1_interval=interval_of(macro_drawn),
        exact_match=float(exact[0]),
        exact_match_interval=interval_of(exact_drawn),
        num_without=int((~labels.any(axis=1)).sum()),
        per_class=[
            ClassPrecision(
                name=name,
                average_precision=float(precisions[0, place]) if present[place] else None,
                interval=interval_of(drawn[:, place]) if present[place] else None,
                threshold=float(thresholds[place]),
            )
            for place, name in enumerate(class_names)
        ],
    )


def mean_average_precision(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the mean average precision of logits or probabilities (n, num_classes) against sets of labels."""
    one = np.ones((1, len(labels)), dtype=np.float32)
    return float(_mean_over_classes(average_precisions(scores, labels, one))[0])


def drawn_precisions(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the mean average precision on each of the bootstrap samples, the same at each call, (n_samples,)."""
    return _mean_over_classes(average_precisions(scores, labels, draw_samples(len(labels))))


def average_precisions(
    scores: NDArray[np.floating], labels: NDArray[np.integer], weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the average precision of each class on samples of the images, (n_samples, num_classes); NaN if there are
    no images.

    AP = sum_i y_i w_i P_i / sum_i y_i w_i, with P_i the precision among the images that score at least as high as image
    i (scikit-learn's definition, without interpolation).

    Args:
        scores: logits or probabilities (n, num_classes).
        labels: sets of labels (n, num_classes) of 0 and 1.
        weights: how often each image is in each sample, (n_samples, n).
    """
    found = np.full((len(weights), labels.shape[1]), np.nan)
    for place in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-scores[:, place], kind="stable")
        ordered, own = scores[order, place], labels[order, place] > 0
        # Equal scores share the precision at the last of them.
        ends = np.searchsorted(-ordered, -ordered[own], side="right") - 1
        counted = weights[:, order]
        hits = counted[:, own]
        seen, right = np.cumsum(counted, axis=1)[:, ends], np.cumsum(counted * own, axis=1)[:, ends]
        total = hits.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(seen > 0, right / seen, 0.0)
            found[:, place] = (hits * precision).sum(axis=1) / total
    return found


def find_thresholds(probabilities: NDArray[np.float64], labels: NDArray[np.integer]) -> tuple[float, ...]:
    """Return for each class the probability from which the label is given, with the best F1 on held-out images.

    A class with fewer than `LEAST_POSITIVES` images keeps `USUAL_THRESHOLD`.

    Args:
        probabilities: held-out probabilities (n, num_classes).
        labels: sets of labels (n, num_classes) of 0 and 1.
    """
    found = []
    for own, right in zip(probabilities.T, (labels > 0).T, strict=True):
        if right.sum() < LEAST_POSITIVES:
            found.append(USUAL_THRESHOLD)
            continue
        order = np.argsort(-own, kind="stable")
        ordered, hits = own[order], np.cumsum(right[order])
        # With the k most probable images: F1 = 2 TP / (k + number of images with the label).
        f1 = 2.0 * hits / (np.arange(1, len(own) + 1) + right.sum())
        f1[:-1][ordered[:-1] == ordered[1:]] = -1.0  # a threshold takes all images of equal probability
        best = int(f1.argmax())
        below = ordered[best + 1] if best + 1 < len(ordered) else 0.0
        found.append(float((ordered[best] + below) / 2))
    return tuple(found)


def _mean_over_classes(precisions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the classes that have images in a sample; 0 if none has."""
    known = ~np.isnan(precisions)
    return np.asarray(np.where(known, precisions, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1))


def _f1_and_matches(
    given: NDArray[np.bool_], labels: NDArray[np.integer], weights: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return micro F1, macro F1 over the classes with images, and the share of exact matches, each (n_samples,)."""
    right = labels > 0
    hits, named, there = (weights @ part.astype(np.float32) for part in (given & right, given, right))
    # F1 = 2 TP / (TP + FP + TP + FN); 0 where nothing is given and nothing is there.
    each = 2.0 * hits / np.maximum(named + there, 1e-9)
    micro = 2.0 * hits.sum(axis=1) / np.maximum(named.sum(axis=1) + there.sum(axis=1), 1e-9)
    macro = np.where(there > 0, each, 0.0).sum(axis=1) / np.maximum((there > 0).sum(axis=1), 1)
    exact = weights @ (given == right).all(axis=1).astype(np.float32) / weights.sum(axis=1)
    return micro.astype(np.float64), macro.astype(np.float64), exact.astype(np.float64)
