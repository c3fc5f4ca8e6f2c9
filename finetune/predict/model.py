"""Predict with trained models: one network, or an ensemble of several."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from finetune.data import Pixels
from finetune.data.batches import PlainImages
from finetune.data.label_sets import has_sets, names_in
from finetune.data.paths import listed
from finetune.decide.answers import AnswerRule, best_answers
from finetune.decide.plan import Plan
from finetune.history import Row
from finetune.network.forward import forward_all, forward_files, logits
from finetune.network.head import recorded_features
from finetune.predict.files import FileRows, on_common_files, rows_of_files
from finetune.predict.links import Link, link_for, link_of, log_loss, loss_of_unknown, to_logits, to_probabilities
from finetune.predict.metrics import Metrics, score
from finetune.predict.set_metrics import find_thresholds, give_labels
from finetune.progress import Progress, no_progress
from finetune.reading import Reading
from finetune.work import Work

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Labels and predictions of images that a model was evaluated on and that its training did not see."""

    labels: NDArray[np.int64]
    """Right class of each image, (n_images,), or its set of labels, (n_images, n_classes)."""
    probabilities: NDArray[np.float64]
    """Predicted probabilities (n_images, n_classes)."""


@dataclass(frozen=True, kw_only=True)
class Predictor(ABC):
    """A model that predicts, with the record of its training."""

    plan: Plan
    """Plan by which the model was trained; of an ensemble, the plan of its first member."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the probabilities."""
    temperature: float
    """Divisor of the logits before the softmax, for calibration (Guo et al. 2017)."""
    thresholds: tuple[float, ...] | None = None
    """Probability from which each label is given, (n_classes,); None: each image has one, the most probable class."""
    history: tuple[Row, ...] = ()
    """Evaluations during the training, in order."""
    validation: Metrics | None = None
    """Metrics on the held-out images, measured before any refit, which then trains on these images, too."""
    held_out: HeldOut | None = None
    """Predictions of the held-out images, made before any refit."""
    test: Metrics | None = None
    """Metrics on the test split; None if there is no test split."""
    tested: HeldOut | None = None
    """Predictions of the test images; None if there is no test split."""
    work: Work = field(default_factory=Work)
    """Images sent forward and backward during the training."""
    seconds: float = 0.0
    """Wall time of the training, in seconds."""
    note: str = ""
    """Remark about the training, which is printed with the results; empty if there is nothing to remark."""

    @abstractmethod
    def label(self, chunks: Iterator[list[str]], with_features: bool = False) -> Iterator[FileRows]:
        """Yield the class probabilities (k, n_classes) of the files of each chunk that can be read; `with_features`,
        the features follow them, (k, n_classes + width)."""

    @abstractmethod
    def features(self, chunks: Iterator[list[str]]) -> Iterator[FileRows]:
        """Yield the inputs of the head, float32 (k, width), for the files of each chunk that can be read; those of an
        ensemble's members are joined."""

    @abstractmethod
    def features_of(self, table: "Dataset", progress: Progress = no_progress) -> NDArray[np.float32]:
        """Return the features (n_images, width) of a table with an `image` column, as `features` does of files."""

    @property
    def link(self) -> Link:
        """Meaning of the networks' outputs."""
        return link_of(self.plan.metric)

    @property
    def rule(self) -> AnswerRule | None:
        """Rule by which the answer follows from the probabilities; None: it is the most probable class, or every label
        that reaches its threshold."""
        return self.plan.answers

    @property
    def reading(self) -> Reading:
        """How the values in an image file become 8-bit channels."""
        return self.plan.preprocessing.reading

    @abstractmethod
    def probabilities(self, table: "Dataset", progress: Progress = no_progress) -> NDArray[np.float64]:
        """Return the class probabilities (n_images, n_classes) of a table with an `image` column."""

    def predict_proba(self, paths: Sequence[str | Path]) -> NDArray[np.float64]:
        """Return the class probabilities (n_paths, n_classes) of image files.

        Raises:
            DataError: a file cannot be read as an image.
        """
        return rows_of_files(self.label, listed(paths)).reshape(len(paths), len(self.class_names))

    def predict(self, paths: Sequence[str | Path]) -> list[Any]:
        """Return the answer for each image file: the name of the most probable class, or of the one with the least
        expected cost, or the tuple of the names of all its labels.

        Raises:
            DataError: a file cannot be read as an image.
        """
        probabilities = self.predict_proba(paths)
        if self.thresholds is not None:
            return [names_in(row, self.class_names) for row in give_labels(probabilities, self.thresholds)]
        return [self.class_names[best] for best in best_answers(probabilities, self.rule)]

    def embed(self, paths: Sequence[str | Path]) -> NDArray[np.float32]:
        """Return the features of image files, the inputs of the head: (n_paths, width).

        Raises:
            DataError: a file cannot be read as an image.
        """
        return rows_of_files(self.features, listed(paths))


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Predictor):
    """A network that was trained by a plan, with everything that a prediction needs."""

    network: nn.Module
    """Trained network, with a head of the classes."""
    rejected: str = ""
    """Reason why the training was rejected, which makes `network` its linear probe; empty if it was not rejected."""

    def probabilities(self, table: "Dataset", progress: Progress = no_progress) -> NDArray[np.float64]:
        """Return the class probabilities (n_images, n_classes) of a table with an `image` column."""
        pixels = Pixels(table, self.plan.preprocessing.shorter_side, self.reading)
        scores = scores_of(self.network, pixels, self.plan, None, progress)
        return self.calibrated(scores.reshape(len(table), len(self.class_names)))

    def calibrated(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the class probabilities of logits, both (n_images, n_classes)."""
        return to_probabilities(self.link, scores / self.temperature)

    def label(self, chunks: Iterator[list[str]], with_features: bool = False) -> Iterator[FileRows]:
        """Yield the class probabilities (k, n_classes) of the files of each chunk that can be read, and the features of
        the unmirrored images if they are asked for."""
        plan, count = self.plan, len(self.class_names)
        recorded = recorded_features(self.network, with_logits=True) if with_features else nullcontext(logits)
        with recorded as compute:
            for found in forward_files(
                self.network, plan.preprocessing, plan.forward, compute, chunks, plan.test_time_flips
            ):
                views = [found.rows[:, view, -count:] for view in range(found.rows.shape[1])]
                scores = over_views(views, self.link).reshape(len(views[0]), count)
                probabilities = self.calibrated(scores)
                rows = np.hstack([probabilities, found.rows[:, 0, :-count]]) if with_features else probabilities
                yield FileRows(rows, found.reasons, found.kinds)

    def features_of(self, table: "Dataset", progress: Progress = no_progress) -> NDArray[np.float32]:
        """Return the features (n_images, width) of a table with an `image` column."""
        plan = self.plan
        images = PlainImages(Pixels(table, plan.preprocessing.shorter_side, self.reading), plan.preprocessing)
        with recorded_features(self.network) as compute:
            return forward_all(self.network, images, plan.preprocessing, plan.forward, compute, progress)

    def features(self, chunks: Iterator[list[str]]) -> Iterator[FileRows]:
        """Yield the inputs of the head, float32 (k, width), for the files of each chunk that can be read."""
        with recorded_features(self.network) as compute:
            for found in forward_files(self.network, self.plan.preprocessing, self.plan.forward, compute, chunks):
                yield FileRows(found.rows[:, 0], found.reasons, found.kinds)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Predictor):
    """Models that predict the mean of their probabilities, because they err on different images (Dietterich 2000)."""

    members: tuple[TrainedModel, ...]
    """Trained models whose probabilities are averaged."""

    def label(self, chunks: Iterator[list[str]], with_features: bool = False) -> Iterator[FileRows]:
        """Yield the class probabilities (k, n_classes) of the files of each chunk that can be read, and the joined
        features of the members if they are asked for."""
        own, count = tee(chunks, len(self.members)), len(self.class_names)
        parts = [member.label(mine, with_features) for member, mine in zip(self.members, own, strict=True)]
        for found in zip(*parts, strict=True):
            rows, reasons = on_common_files(found)
            probabilities = self.combined([part[:, :count] for part in rows])
            yield FileRows(np.hstack([probabilities, *(part[:, count:] for part in rows)]), reasons, found[0].kinds)

    def features_of(self, table: "Dataset", progress: Progress = no_progress) -> NDArray[np.float32]:
        """Return the joined features (n_images, width) of a table with an `image` column."""
        return np.hstack([member.features_of(table, progress) for member in self.members])

    def features(self, chunks: Iterator[list[str]]) -> Iterator[FileRows]:
        """Yield the joined features of the members, float32 (k, width), for the files that can be read."""
        own = tee(chunks, len(self.members))
        parts = [member.features(mine) for member, mine in zip(self.members, own, strict=True)]
        for found in zip(*parts, strict=True):
            rows, reasons = on_common_files(found)
            yield FileRows(np.concatenate(rows, axis=1), reasons, found[0].kinds)

    def probabilities(self, table: "Dataset", progress: Progress = no_progress) -> NDArray[np.float64]:
        """Return the class probabilities (n_images, n_classes) of a table with an `image` column."""
        return self.combined([member.probabilities(table, progress) for member in self.members])

    def combined(self, parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the ensemble's probabilities (n_images, n_classes) from those of its members, each of this shape."""
        return to_probabilities(self.link, _logits_of_mean(parts, self.link) / self.temperature)


def scores_of(
    network: nn.Module,
    pixels: Pixels,
    plan: Plan,
    indices: Sequence[int] | None = None,
    progress: Progress = no_progress,
) -> NDArray[np.float32]:
    """Return a network's logits of images, with the plan's preprocessing and test-time flips.

    With test-time flips, the logits are the logarithms of the mean probabilities of each image and its mirrored copy.

    Args:
        network: the network, on its device.
        pixels: the images.
        plan: the plan that fixes the preprocessing and the settings of forward passes.
        indices: indices of the images (n,); all images by default.
        progress: called with the number of images done.

    Returns:
        Logits (n, num_classes).
    """

    def send(mirrored: bool) -> NDArray[np.float32]:
        images = PlainImages(pixels, plan.preprocessing, mirrored)
        return forward_all(network, images, plan.preprocessing, plan.forward, logits, progress, indices)

    views = [send(mirrored) for mirrored in ((False, True) if plan.test_time_flips else (False,))]
    return over_views(views, link_of(plan.metric))


def over_views(views: Sequence[NDArray[np.float32]], link: Link) -> NDArray[np.float32]:
    """Return the logits (n, num_classes) from those of each view: of one view its own, else those of the mean
    probabilities."""
    if len(views) == 1:
        return views[0]
    return _logits_of_mean([to_probabilities(link, view) for view in views], link).astype(np.float32)


def average(members: Sequence[TrainedModel]) -> Predictor:
    """Return the ensemble of models that were evaluated on the same images; a single model is returned unchanged.

    In an ensemble of folds, each member was trained on images that other members held out; the first one was trained
    on all images. Each image is therefore evaluated by the prediction of the one fold that held it out. This
    underestimates the ensemble.

    Raises:
        ValueError: the models were evaluated on different images, or on none.
    """
    if len(members) == 1:
        return members[0]
    temperature, together = _evaluate([member.held_out for member in members], bool(members[-1].plan.fold))
    labels = together.labels
    thresholds = find_thresholds(together.probabilities, labels) if has_sets(labels) else None
    return Ensemble(
        members=tuple(members),
        plan=members[0].plan,
        class_names=members[0].class_names,
        temperature=temperature,
        thresholds=thresholds,
        history=tuple({"member": number, **row} for number, member in enumerate(members, 1) for row in member.history),
        validation=score(together.probabilities, labels, list(members[0].class_names), thresholds, members[0].rule),
        held_out=together,
        work=sum((member.work for member in members), Work()),
        seconds=sum(member.seconds for member in members),
        note="; ".join(f"member {number}: {member.note}" for number, member in enumerate(members, 1) if member.note),
    )


def _evaluate(held: Sequence[HeldOut | None], are_folds: bool) -> tuple[float, HeldOut]:
    """Return the temperature of an ensemble, and its predictions of the held-out images, from those of its members."""
    first = held[0]
    if first is not None and are_folds:
        return 1.0, first
    if first is None or any(other is None or not np.array_equal(other.labels, first.labels) for other in held):
        raise ValueError("members of an ensemble must be evaluated on the same held-out images")
    link = link_for(first.labels)
    scores = _logits_of_mean([other.probabilities for other in held if other is not None], link)
    temperature = fit_temperature(scores, first.labels)
    return temperature, HeldOut(labels=first.labels, probabilities=to_probabilities(link, scores / temperature))


def _logits_of_mean(parts: Sequence[NDArray[np.float64]], link: Link) -> NDArray[np.float64]:
    """Return logits of the mean of several probabilities, each (n, num_classes)."""
    return to_logits(link, np.mean(parts, axis=0))


def fit_temperature(scores: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the temperature, between 0.1 and 10, that minimises the log-loss of held-out images and of one more.

    This is temperature scaling (Guo et al. 2017, section 4.2). Where all held-out images are right, their log-loss
    alone would make every later answer certain, so one further image of unknown class is counted, like Platt (1999).

    Args:
        scores: logits of the held-out images (n, num_classes).
        labels: right classes of the held-out images (n,), or sets of labels (n, num_classes).
    """
    from scipy.optimize import minimize_scalar  # slow to import, and a prediction does not need it

    def loss(log_t: float) -> float:
        scaled = scores / np.exp(log_t)
        # The further image looks like one of these, and each class is equally likely: the mean of -log p over all p.
        unknown = loss_of_unknown(scaled, labels)
        return float((len(labels) * log_loss(scaled, labels) + unknown) / (len(labels) + 1))

    # Over log T, in which the range is symmetric about T = 1; exp(+-2.3) is 10 and 0.1.
    found = minimize_scalar(loss, bounds=(-2.3, 2.3), method="bounded")
    return float(np.exp(found.x))
