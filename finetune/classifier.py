"""Offer the whole toolkit as a scikit-learn classifier, fitted on image paths and labels."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from finetune.data import ImageSplits, UndecodableError, group_training_images, label_paths, without_undecodable
from finetune.data.label_sets import names_in
from finetune.data.labels import is_list, label_text
from finetune.data.paths import listed
from finetune.data.table import read_groups
from finetune.decide.answers import best_answers
from finetune.errors import DataError, RecipeError
from finetune.predict.model import Predictor, average
from finetune.predict.set_metrics import give_labels
from finetune.recipe import Recipe, load_recipe
from finetune.runs.execution import Outcome, carry_out, decide
from finetune.runs.pipeline import group_images, reporting


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An image classifier whose `fit` measures the images, chooses a strategy and trains.

    Args:
        model: a timm classifier, `auto`, or several names separated by commas, of which one is chosen.
        strategy: how much of the network to train, or `auto`.
        prefer: preference between accuracy and training time: `accuracy`, `balanced` or `speed`.
        seed: seed of the splits, the order of the images, the augmentation and new weights.
        settings: other keys of a recipe, such as `{"steps": 100, "training.learning_rate": 1e-3}`.

    After `fit`, the classifier has the attributes `classes_`, `evidence_`, `choice_`, `plan_`, `model_` (a
    `TrainedModel` or an `Ensemble`) and `left_out_` (path and reason of each image that was left out, which `fit` also
    warns of).
    """

    def __init__(
        self,
        model: str = "auto",
        strategy: str = "auto",
        prefer: str = "balanced",
        seed: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Store the parameters. By scikit-learn's convention they are checked in `fit`, not here."""
        self.model = model
        self.strategy = strategy
        self.prefer = prefer
        self.seed = seed
        self.settings = settings

    def fit(self, paths: Sequence[str | Path], labels: Sequence[Any], groups: Sequence[Any] | None = None) -> Self:
        """Train on image files; return the fitted classifier.

        Args:
            paths: (n_images) image files.
            labels: (n_images) class of each image, of any type that can be sorted; images whose class is missing
                (None, NaN, an empty text) are left out. Or any number of labels for each image: lists of classes, or a
                matrix (n_images, n_classes) of 0 and 1, whose classes are then the numbers of its columns.
            groups: (n_images) group of each image, or None; images of one group stay on one side of every split.

        Raises:
            FinetuneError: a mistake in the images, the labels or the parameters, in one sentence.
        """
        for name in {"data", "model", "strategy", "prefer", "seed"} & (self.settings or {}).keys():
            raise RecipeError(f"{name} is not one of the settings; give it as a parameter of its own")
        self.labels_are_matrix_ = getattr(labels, "ndim", 1) == 2
        are_sets = self.labels_are_matrix_ or any(map(is_list, labels))
        given: Sequence[Any] = _as_sets(labels) if are_sets else list(labels)
        flat = [name for each in given for name in each] if are_sets else given
        # Texts are without white space around them; other types stay as they are given.
        names = {label_text(label): label_text(label) if isinstance(label, str) else label for label in flat}
        recipe = load_recipe(
            data="the given paths",
            model=self.model,
            strategy=self.strategy,
            prefer=self.prefer,
            seed=self.seed,
            **(self.settings or {}),
        )
        splits = label_paths(
            [str(path) for path in listed(paths)],
            _texts_of(given),
            None if groups is None else read_groups(list(groups)),
            self.seed,
            recipe.image,
            recipe.allow_rare,
            recipe.labels.order,
        )
        try:
            finished = _train(recipe, splits)
        except UndecodableError:
            splits = without_undecodable(splits)
            finished = _train(recipe, splits)
        self.left_out_ = [*splits.unreadable, *splits.left_out]
        _warn_of_left_out(splits)
        self.model_ = average(finished.models)
        self.evidence_, self.choice_ = finished.members[0].evidence, finished.members[0].choice
        self.plan_ = self.model_.plan
        classes = np.asarray([names[name] for name in splits.class_names])
        self.columns_ = np.argsort(classes)  # scikit-learn's scorers expect sorted classes
        self.classes_ = classes[self.columns_]
        return self

    def predict_proba(self, paths: Sequence[str | Path]) -> NDArray[np.float64]:
        """Return the class probabilities (n_paths, n_classes), with the classes in the order of `classes_`.

        Raises:
            NotFittedError: `fit` was not called.
            DataError: a file is missing or cannot be read as an image.
        """
        return self._fitted().predict_proba(paths)[:, self.columns_]

    def predict(self, paths: Sequence[str | Path]) -> NDArray[Any]:
        """Return the label of each image file, (n_paths,), or the labels as `fit` got them.

        It is the most probable one, or, with `labels.order` or `labels.costs`, that with the least expected cost.

        These are a matrix (n_paths, n_classes) of 0 and 1, or a tuple of labels for each image in an array of objects.

        Raises:
            NotFittedError: `fit` was not called.
            DataError: a file is missing or cannot be read as an image.
        """
        probabilities = self.predict_proba(paths)
        predicted: NDArray[Any]
        thresholds = self._fitted().thresholds
        if thresholds is None:
            # The costs of a rule are in the order of the model's classes: `place` says where each is in `classes_`.
            place = np.argsort(self.columns_)
            predicted = self.classes_[place[best_answers(probabilities[:, place], self.plan_.answers)]]
            return predicted
        rows = give_labels(probabilities, np.asarray(thresholds)[self.columns_].tolist()).astype(np.int64)
        if self.labels_are_matrix_:
            return rows
        predicted = np.empty(len(rows), dtype=object)
        predicted[:] = [names_in(row, self.classes_.tolist()) for row in rows]
        return predicted

    def score(
        self, paths: Sequence[str | Path], labels: Sequence[Any], sample_weight: NDArray[np.floating] | None = None
    ) -> float:
        """Return the share of images whose label is right, or all labels of which are right.

        Args:
            paths: (n_images) image files.
            labels: (n_images) their labels, as for `fit`.
            sample_weight: (n_images) weight of each image; None: all have the same.
        """
        if self._fitted().thresholds is None or self.labels_are_matrix_:
            return float(super().score(paths, labels, sample_weight))
        right = [set(found) == set(own) for found, own in zip(self.predict(paths), labels, strict=True)]
        return float(np.average(right, weights=sample_weight))

    def _fitted(self) -> Predictor:
        if not hasattr(self, "model_"):
            raise NotFittedError("this ImageClassifier is not fitted yet; call fit with paths and labels first")
        return self.model_


def _as_sets(labels: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return any number of labels for each image as tuples; of a matrix of 0 and 1, they are numbers of columns.

    Raises:
        DataError: some images have a list of labels and others have not, or a matrix has other values than 0 and 1, or
            a column without 1.
    """
    if getattr(labels, "ndim", 1) == 2:
        matrix = np.asarray(labels)
        if not np.isin(matrix, (0, 1)).all():
            raise DataError("a matrix of labels has 0 or 1 for each image (row) and class (column), not other values")
        if not matrix.any(axis=0).all():
            empty = int(matrix.any(axis=0).argmin())
            raise DataError(f"no image has the label of column {empty} of the matrix; leave the column out")
        return [tuple(np.flatnonzero(row).tolist()) for row in matrix]
    if not all(map(is_list, labels)):
        raise DataError("some images have a list of labels and others have not; give each image a list, empty or not")
    # A missing name (None, NaN, an empty text) adds no label.
    return [tuple(name for name in label if label_text(name)) for label in labels]


def _texts_of(labels: Sequence[Any]) -> list[str] | list[tuple[str, ...]]:
    """Return class names as texts, or the sorted set of them for each image that has a tuple."""
    sets = [tuple(sorted({label_text(name) for name in label})) for label in labels if isinstance(label, tuple)]
    return sets or [label_text(label) for label in labels]


def _train(recipe: Recipe, splits: ImageSplits) -> Outcome:
    """Measure, choose and train."""
    with TemporaryDirectory(prefix="finetune-") as folder:
        splits, networks = group_images(recipe, splits, partial(group_training_images, splits), reporting(None))
        return carry_out(decide(recipe, networks), splits, Path(folder))


def _warn_of_left_out(splits: ImageSplits) -> None:
    """Warn of what was changed or left out when the images were read."""
    count = len(splits.unreadable)
    first = (
        [
            f"{count} files cannot be read and are left out (left_out_); the first is {splits.unreadable[0].path}: "
            f"{splits.unreadable[0].reason}"
        ]
        if count
        else []
    )
    for note in (*splits.notes, *first):
        warnings.warn(note, UserWarning, stacklevel=3)
