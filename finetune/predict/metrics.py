"""How good predictions are, with the uncertainty that so few images leave."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from finetune.recipe import Metric
from finetune.value import FrozenModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

CALIBRATION_BINS = 15
"""Equal-width bins of the calibration error (Guo et al. 2017, section 2, use 15)."""


class ClassMetrics(FrozenModel):
    """How one class fares."""

    name: str
    precision: float
    recall: float
    f1: float
    num_images: int


class Metrics(FrozenModel):
    """How good predictions on one split are."""

    num_images: int
    top1: float
    """Share of images whose most probable class is right."""
    top1_interval: tuple[float, float]
    """95 % Wilson interval of `top1`."""
    balanced_accuracy: float
    """Mean recall over the classes that the split has."""
    log_loss: float
    """Mean negative log-probability of the right class, in nats."""
    calibration_error: float
    """Expected calibration error: mean gap between confidence and accuracy over 15 bins."""
    per_class: list[ClassMetrics]


def score(probabilities: "NDArray[np.floating]", labels: "NDArray[np.integer]", class_names: list[str]) -> Metrics:
    """Return the metrics of `probabilities` (n_images, n_classes) against `labels` (n_images,).

    Raises:
        ValueError: no images, or shapes that do not fit each other.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    if probabilities.shape != (len(labels), len(class_names)) or len(labels) == 0:
        raise ValueError(f"{probabilities.shape} probabilities for {len(labels)} labels of {len(class_names)} classes")
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    interval = binomtest(int(right.sum()), len(labels)).proportion_ci(0.95, method="wilson")
    precision, recall, f1, counts = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(class_names)), zero_division=0.0
    )
    return Metrics(
        num_images=len(labels),
        top1=float(right.mean()),
        top1_interval=(float(interval.low), float(interval.high)),
        balanced_accuracy=float(recall[counts > 0].mean()),
        log_loss=float(log_losses(probabilities, labels).mean()),
        calibration_error=_calibration_error(probabilities.max(axis=1), right),
        per_class=[
            ClassMetrics(name=name, precision=float(p), recall=float(r), f1=float(f), num_images=int(n))
            for name, p, r, f, n in zip(class_names, precision, recall, f1, counts, strict=True)
        ],
    )


def metric_value(metric: Metric, predicted: "NDArray[np.integer]", labels: "NDArray[np.integer]") -> float:
    """Return `metric` of the predicted classes (n_images,)."""
    right = predicted == labels
    if metric == "top1":
        return float(right.mean())
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def metric_error(metric: Metric, predicted: "NDArray[np.integer]", labels: "NDArray[np.integer]") -> float:
    """Return the standard error of `metric`, from the binomial variance of each class.

    One image is added to each count's right and wrong side (Agresti & Coull), so that no error is 0.
    """

    def variance(right: "NDArray[np.bool_]") -> float:
        share = (right.sum() + 1.0) / (len(right) + 2.0)
        return float(share * (1.0 - share) / len(right))

    right = predicted == labels
    if metric == "top1":
        return math.sqrt(variance(right))
    variances = [variance(right[labels == label]) for label in np.unique(labels)]
    return float(np.sum(variances) ** 0.5 / len(variances))


def log_losses(probabilities: "NDArray[np.floating]", labels: "NDArray[np.integer]") -> "NDArray[np.float64]":
    """Return each image's negative log-probability of its own class, (n,): 27.6 at most, which is that of 1e-12."""
    right = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1.0)
    losses: NDArray[np.float64] = -np.log(right.astype(np.float64))
    return losses


def _calibration_error(confidence: "NDArray[np.floating]", right: "NDArray[np.bool_]") -> float:
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(CALIBRATION_BINS)]
    return float(np.sum(gaps) / len(right))


def softmax(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return probabilities (n, num_classes)."""
    shifted = np.asarray(scores, dtype=np.float64)
    shifted = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def log_loss(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the mean negative log-probability of the right class."""
    return float(log_losses(softmax(scores), labels).mean())
