"""A trained model and the one way in which it predicts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset as ImageTable
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import nn

from finetune.batches import PlainImages
from finetune.evidence import Work
from finetune.features import Progress, forward_all, logits, no_progress
from finetune.images import Pixels, table_of_paths
from finetune.metrics import Metrics
from finetune.plan import Plan
from finetune.probing import log_loss, softmax

Row = dict[str, float | int | str]
"""A line of a training's history."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A network that was trained by a plan, with all that prediction needs."""

    network: nn.Module
    plan: Plan
    class_names: tuple[str, ...]
    temperature: float
    """Logits are divided by it before the softmax (Guo et al. 2017)."""
    history: tuple[Row, ...] = ()
    validation: Metrics | None = None
    """On images that the network, before any refit, was not trained on."""
    test: Metrics | None = None
    """On the test split, where there is one."""
    work: Work = field(default_factory=Work)
    seconds: float = 0.0
    """What the training took."""
    note: str = ""
    """What a person must know of how it came about."""

    def probabilities(self, table: ImageTable, progress: Progress = no_progress) -> NDArray[np.float64]:
        """Return the class probabilities (n_images, n_classes) of a table with an `image` column."""
        preprocessing = self.plan.preprocessing
        images = PlainImages(Pixels(table, preprocessing.shorter_side), preprocessing)
        scores = forward_all(self.network, images, preprocessing, self.plan.forward, logits, progress)
        return softmax(scores.reshape(len(table), len(self.class_names)) / self.temperature)

    def predict_proba(self, paths: Sequence[str | Path]) -> NDArray[np.float64]:
        """Return the class probabilities (n_paths, n_classes) of image files.

        Raises:
            DataError: a file that can not be read as an image.
        """
        return self.probabilities(table_of_paths([str(path) for path in paths]))

    def predict(self, paths: Sequence[str | Path]) -> list[str]:
        """Return the most probable class name of each image file.

        Raises:
            DataError: a file that can not be read as an image.
        """
        return [self.class_names[best] for best in self.predict_proba(paths).argmax(axis=1)]


def fit_temperature(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the temperature that gives held-out logits (n, num_classes) the least log-loss, between 0.1 and 10."""
    found = minimize_scalar(
        lambda log_t: log_loss(scores / np.exp(log_t), labels), bounds=(-2.3, 2.3), method="bounded"
    )
    return float(np.exp(found.x))
