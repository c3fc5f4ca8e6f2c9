"""What a training makes of the images that it holds out, and whether it did harm."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.history import Row
from finetune.predict.metrics import log_losses, softmax
from finetune.predict.model import fit_temperature
from finetune.recipe import Metric

SURE = 3.0
"""Standard errors beyond which a difference is not chance: harm is looked for after every training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutPredictions:
    """What a training makes of the images that it holds out, at some step."""

    members: NDArray[np.intp]
    """Their indices, ascending, among the training images followed by the validation images."""
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    """(n_members, num_classes)"""
    probe: NDArray[np.float32] | None = None
    """The same of the linear probe that the training started from, where it did, after the last step."""


class Evaluation:
    """Looks at held-out images on the way of a training, and at some that it trains on, in the same manner: plain, with
    the averaged weights and without label smoothing. So the gap between them is that of memory alone."""

    def __init__(
        self,
        judge: Callable[[NDArray[np.intp]], NDArray[np.float32]],
        labels: NDArray[np.int64],
        held_out: NDArray[np.intp],
        seen: NDArray[np.intp],
    ) -> None:
        """Hold what is judged.

        Args:
            judge: returns the logits (n_images, num_classes) of the images with these indices.
            labels: of all images.
            held_out: indices of the images that the training does not see.
            seen: indices of some that it does.
        """
        self._judge = judge
        self._labels = labels
        self._held_out = held_out
        self._seen = seen
        self._losses = np.zeros(0)

    def evaluate(self) -> tuple[float, float]:
        """Return the log-loss and the top-1 accuracy on the held-out images."""
        self._losses, top1 = self._look(self._held_out)
        return float(self._losses.mean()), top1

    def details(self) -> Row:
        """Return how sure the last evaluation is, and what the same weights make of images that they were trained
        on."""
        losses, top1 = self._look(self._seen)
        return {
            "validation_loss_error": float(self._losses.std() / np.sqrt(len(self._losses))),
            "validation_images": len(self._losses),
            "seen_loss": float(losses.mean()),
            "seen_top1": top1,
        }

    def _look(self, members: NDArray[np.intp]) -> tuple[NDArray[np.float64], float]:
        scores, labels = self._judge(members), self._labels[members]
        return log_losses(softmax(scores), labels), float((scores.argmax(axis=1) == labels).mean())


def is_worse(
    trained: NDArray[np.float32], before: NDArray[np.float32], labels: NDArray[np.int64], metric: Metric
) -> bool:
    """Return whether a training did harm: three standard errors more log-loss, and as many more errors, on the same
    held-out images.

    Args:
        trained: logits (n, num_classes) after it.
        before: of the linear probe that it started from.
        labels: (n,).
        metric: balanced_accuracy gives every class the same weight.
    """
    if len(labels) < 2:
        return False
    weights = np.full(len(labels), 1.0 / len(labels))
    if metric == "balanced_accuracy":
        classes, counts = np.unique(labels, return_counts=True)
        weights = 1.0 / (counts[np.searchsorted(classes, labels)] * len(classes))
    scaled = [scores / fit_temperature(scores, labels) for scores in (trained, before)]
    losses = [log_losses(softmax(scores), labels) for scores in scaled]
    errors = [(scores.argmax(axis=1) != labels).astype(np.float64) for scores in scaled]
    for after, first in (losses, errors):
        more = after - first
        mean = float((weights * more).sum())
        if mean <= SURE * float(np.sqrt((weights**2 * (more - mean) ** 2).sum())):
            return False
    return True
