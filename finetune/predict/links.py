"""Say what a network's outputs mean: the probability of one class among all, or of each label by itself.

Labels of one class an image are class numbers (n,): softmax and cross-entropy. Sets of labels are rows of 0 and 1,
(n, num_classes): sigmoid and binary cross-entropy, summed over the classes, so that its gradient by a logit is p - y as
that of the cross-entropy is.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.data.label_sets import has_sets
from finetune.recipe import METRIC_OF_SETS, Metric

SMALLEST_PROBABILITY = 1e-12
"""Smallest probability whose logarithm is taken, so that one confident error costs 27.6 nats at most."""


class Link(Protocol):
    """The meaning of a network's outputs."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (n, num_classes) of logits (n, num_classes)."""
        ...

    def logits(self, probabilities: Tensor) -> Tensor:
        """Return logits (n, num_classes) of probabilities (n, num_classes)."""
        ...

    def train_losses(
        self, logits: Tensor, labels: Tensor, class_weights: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each image, in nats, and its weight in the sum, each (n,).

        Args:
            logits: logits of the images (n, num_classes).
            labels: their labels.
            class_weights: weight of each class (num_classes,); for sets, that of the images with the label.
            smoothing: label smoothing.
        """
        ...


class OneClass:
    """Each image is of one class: softmax."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax of logits (n, num_classes)."""
        return logits.softmax(dim=1)

    def logits(self, probabilities: Tensor) -> Tensor:
        """Return the logarithms of probabilities (n, num_classes)."""
        return probabilities.clamp(min=SMALLEST_PROBABILITY).log()

    def train_losses(
        self, logits: Tensor, labels: Tensor, class_weights: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of each image, and the weight of its class, each (n,)."""
        losses = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return losses, class_weights[labels]


class AnyLabels:
    """Each image has any number of labels: sigmoid, for each label by itself."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid of logits (n, num_classes)."""
        return logits.sigmoid()

    def logits(self, probabilities: Tensor) -> Tensor:
        """Return the log odds of probabilities (n, num_classes)."""
        return (
            probabilities.clamp(min=SMALLEST_PROBABILITY).log()
            - (1.0 - probabilities).clamp(min=SMALLEST_PROBABILITY).log()
        )

    def train_losses(
        self, logits: Tensor, labels: Tensor, class_weights: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Return the binary cross-entropy of each image, summed over the classes, and ones, each (n,)."""
        # sum_k -w_k y log p - (1 - y) log(1 - p), with labels y (1 - s) + s / 2 under the smoothing s.
        targets = labels.to(logits.dtype) * (1.0 - smoothing) + 0.5 * smoothing
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, targets, reduction="none", pos_weight=class_weights
        ).sum(dim=1)
        return losses, torch.ones_like(losses)


ONE_CLASS, ANY_LABELS = OneClass(), AnyLabels()


def link_of(metric: Metric) -> Link:
    """Return the meaning of the outputs of a model that is compared by a metric."""
    return ANY_LABELS if metric == METRIC_OF_SETS else ONE_CLASS


def link_for(labels: NDArray[np.integer]) -> Link:
    """Return the meaning of the outputs of a model of these labels."""
    return ANY_LABELS if has_sets(labels) else ONE_CLASS


def to_probabilities(link: Link, scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities (n, num_classes) of logits (n, num_classes), computed in float64."""
    # The result has the precision of the input, and logits are float32.
    probabilities: NDArray[np.float64] = link.probabilities(
        torch.from_numpy(np.asarray(scores, dtype=np.float64))
    ).numpy()
    return probabilities


def to_logits(link: Link, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return logits (n, num_classes) of probabilities (n, num_classes), computed in float64."""
    logs: NDArray[np.float64] = np.log(np.clip(probabilities, SMALLEST_PROBABILITY, None))
    return logs if link is ONE_CLASS else logs - np.log(np.clip(1.0 - probabilities, SMALLEST_PROBABILITY, None))


def softmax(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the softmax (n, num_classes) of logits (n, num_classes), computed in float64."""
    return to_probabilities(ONE_CLASS, scores)


def log_losses(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each image's log-loss, in nats (n_images,): the negative log-probability of its own class, at most 27.6,
    or of its labels, summed over the classes.

    Args:
        probabilities: predicted probabilities (n_images, n_classes).
        labels: right classes (n_images,), or sets of labels (n_images, n_classes).
    """
    if has_sets(labels):
        own = np.clip(np.where(labels > 0, probabilities, 1.0 - probabilities), SMALLEST_PROBABILITY, 1.0)
        return np.asarray(-np.log(own.astype(np.float64)).sum(axis=1))
    right = np.clip(probabilities[np.arange(len(labels)), labels], SMALLEST_PROBABILITY, 1.0)
    losses: NDArray[np.float64] = -np.log(right.astype(np.float64))
    return losses


def log_loss(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the mean log-loss, in nats.

    Args:
        scores: logits (n, num_classes).
        labels: right classes (n,), or sets of labels (n, num_classes).
    """
    return float(log_losses(to_probabilities(link_for(labels), scores), labels).mean())


def loss_of_unknown(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the mean log-loss of images with these logits (n, num_classes) and unknown labels: every class, or both
    answers to every label, are equally probable."""
    from scipy.special import logsumexp  # slow to import, and a prediction does not need it

    if has_sets(labels):
        # -(log p + log(1 - p)) / 2 = log(1 + exp(f)) - f / 2, summed over the classes.
        return float((np.logaddexp(0.0, scores) - scores / 2).sum(axis=1).mean())
    return float((logsumexp(scores, axis=1) - scores.mean(axis=1)).mean())


def are_right(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return whether the most probable class is right: the image's class, or one of its labels.

    Images without labels are left out.

    Args:
        scores: logits or probabilities (n, num_classes).
        labels: right classes (n,), or sets of labels (n, num_classes).
    """
    best = scores.argmax(axis=1)
    if not has_sets(labels):
        return np.asarray(best == labels)
    return np.asarray(labels[np.arange(len(labels)), best] > 0)[labels.any(axis=1)]


def share_right(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the share of images whose most probable class is right; 0 if no image has a label."""
    right = are_right(scores, labels)
    return float(right.mean()) if len(right) else 0.0


def are_all_right(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return whether the class of each image is right, or all of its labels are, at a probability of one half, (n,)."""
    if not has_sets(labels):
        return np.asarray(scores.argmax(axis=1) == labels)
    return np.asarray(((scores > 0.0) == (labels > 0)).all(axis=1))
