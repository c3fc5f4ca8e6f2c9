"""Evaluate a training on its held-out images, and compare it with the linear probe that it started from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.data.label_sets import has_sets
from finetune.decide.answers import AnswerRule, best_answers
from finetune.history import Row
from finetune.predict.links import ONE_CLASS, link_for, log_losses, share_right, to_probabilities
from finetune.predict.metrics import accuracy_of
from finetune.predict.model import fit_temperature
from finetune.predict.set_metrics import drawn_precisions, mean_average_precision
from finetune.recipe import METRIC_OF_COSTS, METRIC_OF_SETS, Metric

STANDARD_ERRORS = (2.0, 1.0)
"""Numbers of standard errors by which a training must be worse than its linear probe to be rejected: in log-loss, and
in errors. Few held-out images say little about errors, and much about log-loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutPredictions:
    """Logits of a training's held-out images at a step of its schedule."""

    indices: NDArray[np.intp]
    """Ascending indices of the held-out images, among the training images followed by the validation images."""
    labels: NDArray[np.int64]
    """Classes of the held-out images, (n_members,), or sets of labels, (n_members, num_classes)."""
    logits: NDArray[np.float32]
    """Logits of the trained network, (n_members, num_classes)."""
    probe: NDArray[np.float32] | None = None
    """Logits of the linear probe that the training started from, (n_members, num_classes); None before the last step
    and for a training from random weights."""


class Evaluation:
    """Evaluate a network during its training on held-out images, and on a sample of its training images.

    Both are evaluated in the same way: without augmentation, with the averaged weights, and without label smoothing.
    So the gap between their losses is due to memorisation alone.
    """

    def __init__(
        self,
        logits_of: Callable[[NDArray[np.intp]], NDArray[np.float32]],
        labels: NDArray[np.int64],
        held_out: NDArray[np.intp],
        seen: NDArray[np.intp],
    ) -> None:
        """Hold the images to evaluate.

        Args:
            logits_of: returns the network's logits (n, num_classes) of the images with these indices (n,).
            labels: classes of all images, (n_images,), or sets of labels, (n_images, num_classes).
            held_out: indices of the images that the training does not see, (n_held_out,).
            seen: indices of a sample of the training images, (n_seen,).
        """
        self._logits_of = logits_of
        self._labels = labels
        self._held_out = held_out
        self._seen = seen
        self._losses = np.zeros(0)

    def evaluate(self) -> tuple[float, float]:
        """Return the log-loss, in nats, and the top-1 accuracy on the held-out images."""
        self._losses, top1 = self._evaluate_on(self._held_out)
        return float(self._losses.mean()), top1

    def details(self) -> Row:
        """Return the standard error of the last evaluation's log-loss, and the log-loss and accuracy of the same
        weights on the sample of training images."""
        losses, top1 = self._evaluate_on(self._seen)
        # The standard error of a mean of n independent losses: std / sqrt(n).
        return {
            "validation_loss_error": float(self._losses.std() / np.sqrt(len(self._losses))),
            "validation_images": len(self._losses),
            "seen_loss": float(losses.mean()),
            "seen_top1": top1,
        }

    def _evaluate_on(self, indices: NDArray[np.intp]) -> tuple[NDArray[np.float64], float]:
        """Return the log-loss of each image, (n,), and the top-1 accuracy."""
        logits, labels = self._logits_of(indices), self._labels[indices]
        return log_losses(to_probabilities(link_for(labels), logits), labels), share_right(logits, labels)


def is_worse(
    trained: NDArray[np.float32],
    before: NDArray[np.float32],
    labels: NDArray[np.int64],
    metric: Metric,
    rule: AnswerRule | None = None,
) -> bool:
    """Return whether a training ended worse than its linear probe, by log-loss and by errors on held-out images, or by
    the costs of answers to them.

    Both must be worse by more than `STANDARD_ERRORS` of the paired difference.

    Args:
        trained: logits (n, num_classes) after the training.
        before: logits (n, num_classes) of the linear probe that it started from.
        labels: classes (n,), or sets of labels (n, num_classes).
        metric: metric of the plan; balanced_accuracy gives every class the same weight.
        rule: rule of the plan by which the answers follow from the probabilities.
    """
    if len(labels) < 2:
        return False
    if has_sets(labels):
        return _are_sets_worse(trained, before, labels)
    weights = np.full(len(labels), 1.0 / len(labels))
    # Balanced: with K classes, an image of class k weighs 1 / (n_k * K), so that every class weighs 1 / K.
    if metric == "balanced_accuracy":
        classes, counts = np.unique(labels, return_counts=True)
        weights = 1.0 / (counts[np.searchsorted(classes, labels)] * len(classes))
    # Both are compared at their own temperature (Guo et al. 2017), so that overconfidence alone does not count.
    scaled = [logits / fit_temperature(logits, labels) for logits in (trained, before)]
    losses = [log_losses(to_probabilities(ONE_CLASS, logits), labels) for logits in scaled]
    errors = [(logits.argmax(axis=1) != labels).astype(np.float64) for logits in scaled]
    if metric == METRIC_OF_COSTS:
        errors = [_costs(logits, labels, rule) for logits in scaled]
    for (after, first), limit in zip((losses, errors), STANDARD_ERRORS, strict=True):
        # Paired, because the images are the same. With d_i the difference on image i, and weights v_i that add up to 1:
        # mean = sum_i v_i * d_i, and its standard error is sqrt(sum_i v_i^2 * (d_i - mean)^2).
        more = after - first
        mean = float((weights * more).sum())
        if mean <= limit * float(np.sqrt((weights**2 * (more - mean) ** 2).sum())):
            return False
    return True


def describe_comparison(
    trained: NDArray[np.float32],
    before: NDArray[np.float32],
    labels: NDArray[np.int64],
    metric: Metric,
    rule: AnswerRule | None = None,
) -> str:
    """Return how good a training and its linear probe are by the metric of the plan, in words.

    Args:
        trained: logits (n, num_classes) after the training.
        before: logits (n, num_classes) of the linear probe that it started from.
        labels: classes (n,), or sets of labels (n, num_classes).
        metric: metric of the plan.
        rule: rule of the plan by which the answers follow from the probabilities.
    """
    if metric == METRIC_OF_COSTS:
        costs = (mean_cost(each, labels, rule) for each in (trained, before))
        return "its answers to held-out images cost {:.3f} on average, and {:.3f} before".format(*costs)
    metric = METRIC_OF_SETS if has_sets(labels) else metric
    now, then = (100 * accuracy_of(metric, each, labels) for each in (trained, before))
    if metric == "top1":
        return f"{now:.1f} % of the held-out images are right after it, {then:.1f} % before it"
    return f"its {metric.replace('_', ' ')} is {now:.1f} % on held-out images, and was {then:.1f} % before"


def mean_cost(logits: NDArray[np.float32], labels: NDArray[np.int64], rule: AnswerRule | None) -> float:
    """Return the mean cost of the answers, at the temperature of these images.

    Args:
        logits: logits (n, num_classes).
        labels: right classes (n,).
        rule: rule by which the answers follow from the probabilities.
    """
    return float(_costs(logits / fit_temperature(logits, labels), labels, rule).mean())


def _costs(scaled: NDArray[np.float32], labels: NDArray[np.int64], rule: AnswerRule | None) -> NDArray[np.float64]:
    """Return the cost of the answer for each image, (n,), given calibrated logits (n, num_classes)."""
    if rule is None:
        raise ValueError("the metric mean_cost needs a rule")
    return rule.costs_of(best_answers(to_probabilities(ONE_CLASS, scaled), rule), labels)


def _are_sets_worse(trained: NDArray[np.float32], before: NDArray[np.float32], labels: NDArray[np.int64]) -> bool:
    """Return whether a training of sets of labels ended worse, by log-loss and by mean average precision.

    The error of the difference of the latter is that over bootstrap samples, the same for both.
    """
    scaled = [logits / fit_temperature(logits, labels) for logits in (trained, before)]
    after, first = (log_losses(to_probabilities(link_for(labels), logits), labels) for logits in scaled)
    more = after - first
    lost = mean_average_precision(before, labels) - mean_average_precision(trained, labels)
    drawn = drawn_precisions(before, labels) - drawn_precisions(trained, labels)
    differences = ((float(more.mean()), float(more.std() / np.sqrt(len(more)))), (lost, float(drawn.std())))
    return all(mean > limit * error for (mean, error), limit in zip(differences, STANDARD_ERRORS, strict=True))
