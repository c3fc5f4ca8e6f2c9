"""Read the history of a training, and put its losses on a common scale.

The scale of train losses does not depend on label smoothing, mixing and class weights: 0 is the smallest possible loss,
and 1 is the loss of the best constant answer, the class frequencies.
"""

import math
from collections.abc import Sequence
from statistics import median

import numpy as np

from finetune.decide.class_weights import balanced_weights
from finetune.decide.evidence import Evidence
from finetune.decide.plan import MOST_WEIGHT, Plan
from finetune.history import Row
from finetune.recipe import Mixing

BANDS: dict[str, tuple[float, float]] = {"head": (1e-6, 2e-2), "backbone": (1e-5, 3e-3), "random": (1e-4, 3e-2)}
"""Usual update-to-weight ratios (norm of a step's change over the norm of the weights) of the head, of pretrained
stages, and of random ones. Rules of thumb are 1e-3 for a head and 1e-5 to 1e-4 for a backbone near its domain. Good
trainings with this library's own rates have 4e-5 (stem) to 1.4e-3 in a backbone and 2e-4 to 5e-3 in a head
(docs/guides/when-a-run-went-wrong.md), so each band ends well above that. A head that starts as a linear probe may have
large weights and may hardly change."""

MIXED_ENTROPY: dict[Mixing, float] = {"none": 0.0, "mixup": 0.23, "cutmix": 0.5}
"""Mean entropy of the mixed labels of two images of different classes, for mixing weights from Beta(0.2, 0.2) (mixup)
and from Beta(1, 1) (cutmix), in nats."""


class Curve:
    """The learning curve of the first training in a history: the only training, or the first fold."""

    def __init__(self, history: Sequence[Row], plan: Plan, evidence: Evidence) -> None:
        """Read a history with at least one step; `plan` and `evidence` are those of the training."""
        self.plan = plan
        self.evidence = evidence
        self.rows = [row for row in history if row["phase"] == history[0]["phase"]]
        self.evaluations = [row for row in self.rows if "seen_loss" in row]
        """Rows with an evaluation on held-out images, in their order."""
        self.rates = [float(row["learning_rate"]) for row in self.rows]
        self.constant, self.least = _constant_loss(plan, evidence), _least_loss(plan, evidence)
        span = max(self.constant - self.least, 1e-9)
        self.losses = [(float(row["train_loss"]) - self.least) / span for row in self.rows]
        """Train loss of each step, on the scale: 0 the smallest possible, 1 that of the best constant answer."""
        self.ratios = peak_ratios(self.rows)

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.rows)

    def part(self, start: float, end: float) -> list[float]:
        """Return the train losses, on the scale, between two fractions of the steps."""
        first = min(int(start * len(self)), len(self) - 1)
        return self.losses[first : max(int(end * len(self)), first + 1)]

    def unscaled(self, loss: float) -> float:
        """Return a train loss in nats, given on the scale."""
        return self.least + loss * (self.constant - self.least)


def peak_ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Return the median update-to-weight ratio of each stage while the rate was at least half of its peak."""
    peak = max(float(row["learning_rate"]) for row in rows)
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items() if float(row["learning_rate"]) >= 0.5 * peak else ():
            if key.startswith("update_ratio:") and float(value) > 0:  # 0: the step was left out
                found.setdefault(key.partition(":")[2], []).append(float(value))
    return {stage: median(values) for stage, values in found.items()}


def band(stage: str, plan: Plan) -> tuple[float, float]:
    """Return the lowest and the highest usual update-to-weight ratio of a stage."""
    if plan.weights == "random":
        return BANDS["random"]
    return BANDS["head" if stage == "head" else "backbone"]


def entropy(evidence: Evidence) -> float:
    """Return the log-loss of the best constant answer, in nats; for sets of labels, summed over the classes."""
    if evidence.has_sets:
        return sum(_binary_entropy(share) for share in _shares(evidence))
    # H = -sum p log p over the frequencies p of the classes.
    total = sum(evidence.class_counts.values())
    return -sum(count / total * math.log(count / total) for count in evidence.class_counts.values() if count)


def _constant_loss(plan: Plan, evidence: Evidence) -> float:
    """Return the train loss of the best constant answer, in nats: the entropy of the smoothed, weighted labels."""
    if evidence.has_sets:
        return _constant_loss_of_sets(plan, evidence)
    # q = (1 - s) p + s / K with the label smoothing s and K classes; class weights make the p nearly equal.
    counts = list(evidence.class_counts.values())
    frequencies = [count / sum(counts) for count in counts]
    if plan.imbalance == "class_weights":
        weights = balanced_weights(np.asarray(counts)).tolist()
        frequencies = [weight * share for weight, share in zip(weights, frequencies, strict=True)]
    smoothed = [(1 - plan.label_smoothing) * share + plan.label_smoothing / len(counts) for share in frequencies]
    return -sum(share * math.log(share) for share in smoothed if share > 0)


def _least_loss(plan: Plan, evidence: Evidence) -> float:
    """Return the smallest possible train loss, of a network that predicts the smoothed and mixed label of every image,
    in nats."""
    if evidence.has_sets:
        # Every smoothed label has the entropy of s / 2, and mixing blurs those that two images do not share.
        differing = sum(2 * share * (1 - share) for share in _shares(evidence))
        smoothed = evidence.num_classes * _binary_entropy(plan.label_smoothing / 2)
        return smoothed + MIXED_ENTROPY[plan.augmentation.mixing] * differing
    # The entropy of a smoothed label (1 - s + s / K for the class, s / K for each other one), plus the entropy of a
    # mixed label for the fraction of pairs with different classes, 1 - sum p^2.
    others = plan.label_smoothing / evidence.num_classes
    right = 1 - plan.label_smoothing + others
    least = -right * math.log(right) - ((evidence.num_classes - 1) * others * math.log(others) if others else 0.0)
    same = sum((count / sum(evidence.class_counts.values())) ** 2 for count in evidence.class_counts.values())
    return least + MIXED_ENTROPY[plan.augmentation.mixing] * (1.0 - same)


def _constant_loss_of_sets(plan: Plan, evidence: Evidence) -> float:
    """Return the train loss of the best constant answers to all labels, in nats."""
    total = 0.0
    for share in _shares(evidence):
        # With weight w of images with the label, w p log q + (1 - p) log(1 - q) is largest at q = w p / (w p + 1 - p).
        target = (1 - plan.label_smoothing) * share + plan.label_smoothing / 2
        weight = 1.0
        if plan.imbalance == "class_weights" and share:
            weight = min(max((1 - share) / share, 1 / MOST_WEIGHT), MOST_WEIGHT)
        mass = weight * target + 1 - target
        total += mass * _binary_entropy(weight * target / mass)
    return total


def _shares(evidence: Evidence) -> list[float]:
    """Return the share of the images that have each label."""
    return [count / evidence.num_images for count in evidence.class_counts.values()]


def _binary_entropy(share: float) -> float:
    """Return the entropy of a label that a share of the images has, in nats."""
    if not 0.0 < share < 1.0:
        return 0.0
    return -share * math.log(share) - (1 - share) * math.log(1 - share)
