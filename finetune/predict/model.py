"""Trained models, and the one way in which they predict."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset as ImageTable
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import nn

from finetune.data import Pixels, table_of_paths
from finetune.data.batches import PlainImages
from finetune.decide.plan import Plan
from finetune.history import Row
from finetune.network.forward import forward_all, logits
from finetune.predict.metrics import Metrics, log_loss, score, softmax
from finetune.progress import Progress, no_progress
from finetune.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What a model makes of the images that it was judged on."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    """(n_images, n_classes)"""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """What predicts, and how it came about."""

    plan: Plan
    class_names: tuple[str, ...]
    temperature: float
    """Logits are divided by it before the softmax (Guo et al. 2017)."""
    history: tuple[Row, ...] = ()
    validation: Metrics | None = None
    """On images that the network, before any refit, was not trained on."""
    held_out: HeldOut | None = None
    """The same images."""
    test: Metrics | None = None
    """On the test split, where there is one."""
    work: Work = field(default_factory=Work)
    seconds: float = 0.0
    """What the training took."""
    note: str = ""
    """What a person must know of how it came about."""

    @abstractmethod
    def probabilities(self, table: ImageTable, progress: Progress = no_progress) -> NDArray[np.float64]:
        """Return the class probabilities (n_images, n_classes) of a table with an `image` column."""

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


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Predictor):
    """A network that was trained by a plan, with all that prediction needs."""

    network: nn.Module
    rejected: str = ""
    """Why the training was rejected; empty where it was kept. The network of a rejected training is a linear probe."""

    def probabilities(self, table: ImageTable, progress: Progress = no_progress) -> NDArray[np.float64]:
        """Return the class probabilities (n_images, n_classes) of a table with an `image` column."""
        scores = scores_of(self.network, Pixels(table, self.plan.preprocessing.shorter_side), self.plan, None, progress)
        return softmax(scores.reshape(len(table), len(self.class_names)) / self.temperature)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Predictor):
    """Models whose probabilities are averaged: where one errs, another often does not (Dietterich 2000)."""

    members: tuple[TrainedModel, ...]

    def probabilities(self, table: ImageTable, progress: Progress = no_progress) -> NDArray[np.float64]:
        """Return the class probabilities (n_images, n_classes) of a table with an `image` column."""
        return self.combined([member.probabilities(table, progress) for member in self.members])

    def combined(self, parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the ensemble's probabilities (n_images, n_classes) of its members'."""
        return softmax(_log_mean(parts) / self.temperature)


def scores_of(
    network: nn.Module,
    pixels: Pixels,
    plan: Plan,
    members: Sequence[int] | None = None,
    progress: Progress = no_progress,
) -> NDArray[np.float32]:
    """Return a network's logits (n, num_classes) of images (of `members`) in the plan's manner: with test-time flips,
    the logarithms of the mean probabilities of each image and its mirrored copy."""

    def send(mirrored: bool) -> NDArray[np.float32]:
        images = PlainImages(pixels, plan.preprocessing, mirrored)
        return forward_all(network, images, plan.preprocessing, plan.forward, logits, progress, members)

    if not plan.test_time_flips:
        return send(mirrored=False)
    return _log_mean([softmax(send(mirrored)) for mirrored in (False, True)]).astype(np.float32)


def average(members: Sequence[TrainedModel]) -> Predictor:
    """Return the ensemble of models that were judged on the same images, or the model itself where it is alone.

    Where folds are averaged with the training of all images, the first member, each of them was trained on images that
    the others held out: the average is judged by what each image's own fold made of it, which is less than it can do.

    Raises:
        ValueError: some were judged on other images, or on none.
    """
    if len(members) == 1:
        return members[0]
    temperature, together = _judged([member.held_out for member in members], bool(members[-1].plan.fold))
    return Ensemble(
        members=tuple(members),
        plan=members[0].plan,
        class_names=members[0].class_names,
        temperature=temperature,
        history=tuple({"member": number, **row} for number, member in enumerate(members, 1) for row in member.history),
        validation=score(together.probabilities, together.labels, list(members[0].class_names)),
        held_out=together,
        work=sum((member.work for member in members), Work()),
        seconds=sum(member.seconds for member in members),
        note="; ".join(f"member {number}: {member.note}" for number, member in enumerate(members, 1) if member.note),
    )


def _judged(held: Sequence[HeldOut | None], are_folds: bool) -> tuple[float, HeldOut]:
    """Return the temperature of an average, and what it makes of the held-out images."""
    first = held[0]
    if first is not None and are_folds:
        return 1.0, first
    if first is None or any(other is None or not np.array_equal(other.labels, first.labels) for other in held):
        raise ValueError("members of an ensemble must be judged on the same held-out images")
    scores = _log_mean([other.probabilities for other in held if other is not None])
    temperature = fit_temperature(scores, first.labels)
    return temperature, HeldOut(labels=first.labels, probabilities=softmax(scores / temperature))


def _log_mean(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the logarithm of the mean probabilities, which takes a temperature as logits do."""
    logs: NDArray[np.float64] = np.log(np.clip(np.mean(parts, axis=0), 1e-12, None))
    return logs


def fit_temperature(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the temperature that gives held-out logits (n, num_classes) the least log-loss, between 0.1 and 10."""
    found = minimize_scalar(
        lambda log_t: log_loss(scores / np.exp(log_t), labels), bounds=(-2.3, 2.3), method="bounded"
    )
    return float(np.exp(found.x))
