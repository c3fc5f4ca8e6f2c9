"""Score answers that weigh costs: their mean cost, and the agreement of grades, with bootstrap intervals."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from finetune.decide.answers import AnswerRule, best_answers
from finetune.predict.bootstrap import draw_samples, interval_of
from finetune.predict.intervals import wilson_interval
from finetune.value import FrozenModel, is_none

Interval = tuple[float, float]


class GradeMetrics(FrozenModel):
    """How well the answers agree with the right grades."""

    quadratic_weighted_kappa: float
    """Cohen's kappa with quadratic weights (Cohen 1968): 1 is full agreement, and 0 that of chance."""
    quadratic_weighted_kappa_interval: Interval
    """95 % bootstrap interval of `quadratic_weighted_kappa`."""
    mean_absolute_error: float
    """Mean distance of the answers from the right grades, in grades."""
    mean_absolute_error_interval: Interval
    """95 % bootstrap interval of `mean_absolute_error`."""


class AnswerQuality(FrozenModel):
    """The quality of one kind of answers."""

    accuracy: float
    """Share of images whose answer is right."""
    accuracy_interval: Interval
    """95 % interval of `accuracy` (Wilson)."""
    mean_cost: float
    """Mean cost of the answers; where no costs were given, the mean squared distance from the right grades."""
    mean_cost_interval: Interval
    """95 % bootstrap interval of `mean_cost`; it has no width where all images have the same cost."""
    grades: Annotated[GradeMetrics | None, Field(exclude_if=is_none)] = None
    """Agreement with the right grades; left out where the classes have no order."""


class AnswerMetrics(FrozenModel):
    """Metrics of the answers of least expected cost, and of the most probable classes for comparison."""

    least_costly: AnswerQuality
    """The answers that the model gives."""
    most_probable: AnswerQuality
    """The most probable classes."""


def score_answers(probabilities: NDArray[np.floating], labels: NDArray[np.integer], rule: AnswerRule) -> AnswerMetrics:
    """Return the metrics of the answers by a rule, and of the most probable classes.

    Args:
        probabilities: predicted probabilities (n_images, n_classes).
        labels: right classes (n_images,).
        rule: the rule by which the answers follow from the probabilities.
    """
    kinds = (best_answers(probabilities, rule), best_answers(probabilities, None))
    first, second = (_quality(answers, labels, rule) for answers in kinds)
    return AnswerMetrics(least_costly=first, most_probable=second)


def weighted_kappas(
    answers: NDArray[np.integer], labels: NDArray[np.integer], weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the quadratic weighted kappa on samples of the images, (n_samples,); 0 where all grades of a sample are
    one.

    Args:
        answers: grades that were given (n_images,).
        labels: right grades (n_images,).
        weights: how often each image is in each sample, (n_samples, n_images).
    """
    shares = weights.astype(np.float64) / weights.sum(axis=1, keepdims=True)
    given, right = answers.astype(np.float64), labels.astype(np.float64)
    # kappa = 1 - E (a - b)^2 / E (a' - b')^2, where a' and b' are independent and distributed as answers a and labels
    # b; the latter is var a + var b + (mean a - mean b)^2.
    observed = shares @ (given - right) ** 2
    means = [shares @ each for each in (given, right)]
    variances = [shares @ each**2 - mean**2 for each, mean in zip((given, right), means, strict=True)]
    chance = variances[0] + variances[1] + (means[0] - means[1]) ** 2
    return np.where(chance > 1e-12, 1.0 - observed / np.maximum(chance, 1e-12), 0.0)


def _quality(answers: NDArray[np.integer], labels: NDArray[np.integer], rule: AnswerRule) -> AnswerQuality:
    """Return the quality of answers (n_images,)."""
    weights = draw_samples(len(labels))
    hits = int((answers == labels).sum())
    cost, cost_interval = _mean(rule.costs_of(answers, labels), weights)
    grades = None
    if rule.order is not None:
        whole = np.ones((1, len(labels)))
        distance, distance_interval = _mean(np.abs(answers - labels), weights)
        grades = GradeMetrics(
            quadratic_weighted_kappa=float(weighted_kappas(answers, labels, whole)[0]),
            quadratic_weighted_kappa_interval=interval_of(weighted_kappas(answers, labels, weights)),
            mean_absolute_error=distance,
            mean_absolute_error_interval=distance_interval,
        )
    return AnswerQuality(
        accuracy=hits / len(labels),
        accuracy_interval=wilson_interval(hits, len(labels)),
        mean_cost=cost,
        mean_cost_interval=cost_interval,
        grades=grades,
    )


def _mean(values: NDArray[np.generic], weights: NDArray[np.float32]) -> tuple[float, Interval]:
    """Return the mean of values (n_images,), with its bootstrap interval."""
    own = values.astype(np.float64)
    return float(own.mean()), interval_of(weights.astype(np.float64) @ own / len(own))
