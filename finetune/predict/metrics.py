"""Score predictions against labels, with the uncertainty that a small number of images leaves."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from finetune.data.label_sets import has_sets
from finetune.decide.answers import AnswerRule, best_answers
from finetune.errors import quoted_names
from finetune.predict.answer_metrics import AnswerMetrics, GradeMetrics, score_answers
from finetune.predict.intervals import wilson_interval
from finetune.predict.links import are_right, log_losses
from finetune.predict.set_metrics import (
    USUAL_THRESHOLD,
    SetMetrics,
    drawn_precisions,
    give_labels,
    mean_average_precision,
    score_sets,
)
from finetune.recipe import METRIC_OF_SETS, Metric
from finetune.value import FrozenModel, is_none, is_unset

CALIBRATION_BINS = 15
"""Number of equal-width bins of the calibration error (as in Guo et al. 2017)."""


class ClassMetrics(FrozenModel):
    """Metrics of one class."""

    name: str
    """Name of the class."""
    precision: float
    """Share of the images with this class as the answer that are of this class."""
    recall: float
    """Share of the images of this class with this class as the answer."""
    f1: float
    """Harmonic mean of precision and recall."""
    num_images: int
    """Number of images of this class."""


class Metrics(FrozenModel):
    """Metrics of the predictions on one split."""

    num_images: int
    """Number of images of the split."""
    top1: float
    """Share of images for which the most probable class is right; of images with sets of labels, of those with a label,
    for which it is one of them."""
    top1_interval: tuple[float, float]
    """Wilson interval of `top1`, at 95 %."""
    balanced_accuracy: float
    """Mean recall over the classes of the split."""
    log_loss: float
    """Mean negative log-probability of the right class, or of all labels, in nats per image."""
    calibration_error: float
    """Expected calibration error: mean gap between confidence and accuracy over 15 bins of the confidence."""
    per_class: list[ClassMetrics]
    """Metrics of each class, in the order of the classes; all 0 where it has no image in the split."""
    num_not_evaluated: Annotated[int, Field(exclude_if=is_unset)] = 0
    """Number of classes without an image in the split, which `balanced_accuracy` leaves out; left out if it is 0."""
    sets: Annotated[SetMetrics | None, Field(exclude_if=is_none)] = None
    """Metrics of sets of labels; left out where each image has one label."""
    answers: Annotated[AnswerMetrics | None, Field(exclude_if=is_none)] = None
    """Metrics of the answers of least expected cost; left out where the answer is the most probable class."""

    @property
    def grades(self) -> GradeMetrics | None:
        """Agreement of the answers with the right grades; None: the classes have no order."""
        return None if self.answers is None else self.answers.least_costly.grades

    @property
    def main(self) -> float:
        """Mean average precision of sets of labels, else top-1 accuracy."""
        return self.top1 if self.sets is None else self.sets.mean_average_precision

    @property
    def main_interval(self) -> tuple[float, float]:
        """95 % interval of `main`."""
        return self.top1_interval if self.sets is None else self.sets.mean_average_precision_interval


def score(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    class_names: list[str],
    thresholds: Sequence[float] | None = None,
    rule: AnswerRule | None = None,
) -> Metrics:
    """Return the metrics of probabilities against labels.

    Args:
        probabilities: predicted probabilities (n_images, n_classes).
        labels: right classes (n_images,), or sets of labels (n_images, n_classes).
        class_names: names of the classes.
        thresholds: probability from which each label of a set is given; None: one half.
        rule: rule by which the answers follow from the probabilities; None: the most probable class is the answer.

    Raises:
        ValueError: there are no images, or the shapes do not match.
    """
    # Slow to import, and a prediction without labels does not need it.
    from sklearn.metrics import precision_recall_fscore_support

    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    if probabilities.shape != (len(labels), len(class_names)) or len(labels) == 0:
        raise ValueError(f"{probabilities.shape} probabilities for {len(labels)} labels of {len(class_names)} classes")
    if has_sets(labels):
        return _score_sets(probabilities, labels, class_names, thresholds or [USUAL_THRESHOLD] * len(class_names))
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    # Each class is scored by the answers.
    precision, recall, f1, counts = precision_recall_fscore_support(
        labels, best_answers(probabilities, rule), labels=np.arange(len(class_names)), zero_division=0.0
    )
    return Metrics(
        num_images=len(labels),
        top1=float(right.mean()),
        top1_interval=wilson_interval(int(right.sum()), len(labels)),
        balanced_accuracy=metric_value("balanced_accuracy", predicted, labels),
        log_loss=float(log_losses(probabilities, labels).mean()),
        calibration_error=_calibration_error(probabilities.max(axis=1), right),
        num_not_evaluated=int((counts == 0).sum()),
        per_class=[
            ClassMetrics(name=name, precision=float(p), recall=float(r), f1=float(f), num_images=int(n))
            for name, p, r, f, n in zip(class_names, precision, recall, f1, counts, strict=True)
        ],
        answers=None if rule is None else score_answers(probabilities, labels, rule),
    )


def _score_sets(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    class_names: list[str],
    thresholds: Sequence[float],
) -> Metrics:
    """Return the metrics of sets of labels (n_images, n_classes)."""
    from sklearn.metrics import precision_recall_fscore_support

    given = give_labels(probabilities, thresholds)
    # Each class is scored by itself, at its own threshold.
    precision, recall, f1, counts = precision_recall_fscore_support(labels, given, average=None, zero_division=0.0)
    # Images without a label have no most probable class that could be right.
    right = are_right(probabilities, labels)
    # Each label of each image is an answer of its own, and certain of itself by the larger of p and 1 - p.
    confidence = np.maximum(probabilities, 1.0 - probabilities).reshape(-1)
    answers = ((probabilities >= USUAL_THRESHOLD) == (labels > 0)).reshape(-1)
    return Metrics(
        num_images=len(labels),
        top1=float(right.mean()) if len(right) else 0.0,
        top1_interval=wilson_interval(int(right.sum()), len(right)),
        balanced_accuracy=float(recall[counts > 0].mean()) if counts.any() else 0.0,
        log_loss=float(log_losses(probabilities, labels).mean()),
        calibration_error=_calibration_error(confidence, answers),
        num_not_evaluated=int((counts == 0).sum()),
        per_class=[
            ClassMetrics(name=name, precision=float(p), recall=float(r), f1=float(f), num_images=int(n))
            for name, p, r, f, n in zip(class_names, precision, recall, f1, counts, strict=True)
        ],
        sets=score_sets(probabilities, labels, class_names, thresholds),
    )


def describe_not_evaluated(metrics: Metrics, image: str = "image") -> str:
    """Return in one sentence how many classes have no image, and a few of them; "" if all have one.

    Args:
        metrics: metrics on some images.
        image: name of one of these images, such as "test image".
    """
    names = [row.name for row in metrics.per_class if not row.num_images]
    if not names:
        return ""
    verb = "has no {} and is" if len(names) == 1 else "have no {} and are"
    return f"{len(names)} of {len(metrics.per_class)} classes {verb.format(image)} not evaluated: {quoted_names(names)}"


def accuracy_of(metric: Metric, scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return an accuracy, in 0 .. 1, of logits (n_images, n_classes) against the labels: `metric`, or, where it is
    `mean_cost`, the top-1 accuracy."""
    if metric == METRIC_OF_SETS:
        return mean_average_precision(scores, labels)
    # Balanced accuracy of sets: the mean over the classes of the share of their images that get the label, those with a
    # logit above 0.
    if has_sets(labels):
        counts = labels.sum(axis=0)
        return float((((scores > 0.0) * labels).sum(axis=0) / np.maximum(counts, 1))[counts > 0].mean())
    return metric_value(metric, scores.argmax(axis=1), labels)


def accuracy_error_of(metric: Metric, scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the standard error of `accuracy_of`: by bootstrap for sets of labels, else from binomial variances."""
    if metric == METRIC_OF_SETS:
        # The standard deviation over bootstrap samples; as if one more image were wrong, so that it is never 0.
        return max(float(drawn_precisions(scores, labels).std()), 1.0 / (len(labels) + 2))
    return metric_error(metric, scores.argmax(axis=1), labels)


def metric_value(metric: Metric, predicted: NDArray[np.integer], labels: NDArray[np.integer]) -> float:
    """Return the balanced accuracy of the predicted classes (n_images,) against the labels (n_images,) if it is the
    metric, else their top-1 accuracy."""
    right = predicted == labels
    if metric != "balanced_accuracy":
        return float(right.mean())
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def metric_error(metric: Metric, predicted: NDArray[np.integer], labels: NDArray[np.integer]) -> float:
    """Return the standard error of `metric`, from the binomial variance of each class.

    Args:
        metric: `top1` or `balanced_accuracy`.
        predicted: predicted classes (n_images,).
        labels: right classes (n_images,).
    """

    def variance(right: NDArray[np.bool_]) -> float:
        # p (1 - p) / n with p = (k + 1) / (n + 2): one right and one wrong image are added, so that the error is never
        # 0 (after Agresti & Coull 1998).
        share = (right.sum() + 1.0) / (len(right) + 2.0)
        return float(share * (1.0 - share) / len(right))

    right = predicted == labels
    if metric == "top1":
        return math.sqrt(variance(right))
    # The mean of K independent recalls has the variance sum of var_k / K^2.
    variances = [variance(right[labels == label]) for label in np.unique(labels)]
    return float(np.sum(variances) ** 0.5 / len(variances))


def _calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error of predictions with these confidences (n_images,), each `right` or wrong.

    It is sum_b n_b / n |accuracy_b - confidence_b| over the bins (Guo et al. 2017, equation 3), here as
    sum_b |sum of confidences - number of right predictions| / n.
    """
    # Confidence 1 belongs to the last bin.
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(CALIBRATION_BINS)]
    return float(np.sum(gaps) / len(right))
