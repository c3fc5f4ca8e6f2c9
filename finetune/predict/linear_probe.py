"""The linear probe: a regularised logistic regression on frozen features, cross-validated over its strength."""

import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from finetune.data import stratified_folds, stratified_subset
from finetune.predict.metrics import log_loss, softmax

INVERSE_REGULARIZATIONS = (1e-3, 5e-3, 2.5e-2, 0.12, 0.6, 3.0)
"""Inverse regularisations C that are tried, on standardised features, strongest regularisation first."""

FOLDS = 5

PATIENCE = 1
"""Strengths without a lower log-loss before the path is left: held-out loss has one valley along it."""


CURVE_SHARES = (0.25, 0.5)
"""Shares of the training images at which a learning curve is measured, besides all of them."""

DRAWN_IMAGES = 1000
"""Of fewer images than so many, a learning curve draws its shares several times."""

MOST_DRAWS = 5

SAMPLE = 10_000
"""Up to so many images, features are held in memory to fit a head."""

BLOCK = 4096
"""Images whose features are worked on at once where there are more."""

MOST_PASSES = 40
"""Over the features of more images, starting from the fit of a sample of them."""


class FeatureRows(Protocol):
    """Features that are read as they are needed."""

    def numpy(self, rows: Any, /) -> NDArray[np.float32]:  # noqa: ANN401  (a slice or indices)
        """Return the features (n, width) of some images."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """A linear classifier on raw features: `features @ weight.T + bias`."""

    weight: NDArray[np.float32]
    """(num_classes, width)"""
    bias: NDArray[np.float32]
    """(num_classes,)"""

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, num_classes) of features (n, width)."""
        scores: NDArray[np.float32] = features @ self.weight.T + self.bias
        return scores

    def logits_of(self, features: FeatureRows, members: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return (n_members, num_classes), with few features in memory at a time."""
        parts = [self.logits(features.numpy(members[start : start + BLOCK])) for start in range(0, len(members), BLOCK)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.bias)), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFolds:
    """A cross-validated probe: the best strength and, for every image, the logits of the fold that did not see it."""

    inverse_regularization: float
    logits: NDArray[np.float32]
    """(n_images, num_classes)"""
    heads: tuple[LinearHead, ...]
    held_out: tuple[NDArray[np.intp], ...]
    """Indices of the images that each head did not see."""


def fit_head(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    inverse_regularization: float,
    balanced: bool = False,
) -> LinearHead:
    """Return the logistic regression on `features` (n, width); `balanced` weighs every class alike.

    A class without images gets a bias that never wins.
    """
    with _fitting():
        return _Path(features, labels, num_classes, balanced).at(inverse_regularization)


def fit_large_head(
    features: FeatureRows,
    labels: NDArray[np.int64],
    members: NDArray[np.intp],
    num_classes: int,
    inverse_regularization: float,
    balanced: bool = False,
    exact: bool = True,
) -> LinearHead:
    """Return the logistic regression on the images `members`, however many they are.

    The fit of a sample is where L-BFGS starts from, which then goes over all features a few dozen times, some thousand
    images at a time.

    Args:
        features: of all images.
        labels: (n_images,).
        members: indices of the images to fit.
        num_classes: how many classes there are.
        strength: inverse regularisation C.
        balanced: whether every class weighs alike.
        exact: False where the fit of a sample is good enough.
    """
    sample = members
    if len(members) > SAMPLE:
        sample = members[stratified_subset(labels[members], max(SAMPLE, 2 * num_classes), seed=0)]
    with _fitting():
        path = _Path(features.numpy(sample), labels[sample], num_classes, balanced)
        head = path.at(inverse_regularization)
    if len(sample) == len(members) or not exact:
        return head
    return _refined(head, path, features, labels, members, inverse_regularization, balanced)


def cross_validate(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    seed: int,
    groups: NDArray[np.str_] | None = None,
    inverse_regularizations: tuple[float, ...] = INVERSE_REGULARIZATIONS,
    balanced: bool = False,
    folds: int = FOLDS,
) -> ProbeFolds:
    """Return the probe of the strength with the least held-out log-loss.

    Each fold walks the path from the strongest regularisation with a warm start; the strength is the best over all
    folds together, so that no fold chooses on its own held-out images alone.
    """
    parts = stratified_folds(labels, folds, seed, groups)
    best: tuple[float, float, NDArray[np.float32], list[LinearHead]] | None = None
    worse = 0
    fits = [_Path(features[train], labels[train], num_classes, balanced) for train, _ in parts]
    with _fitting(), ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for inverse_regularization in inverse_regularizations:
            heads = list(
                threads.map(
                    lambda fit, inverse_regularization=inverse_regularization: fit.at(inverse_regularization), fits
                )
            )
            scores = np.zeros((len(labels), num_classes), dtype=np.float32)
            for head, (_, held) in zip(heads, parts, strict=True):
                scores[held] = head.logits(features[held])
            loss = log_loss(scores, labels)
            if best is None or loss < best[0]:
                best, worse = (loss, inverse_regularization, scores, heads), 0
            else:
                worse += 1
                if worse >= PATIENCE:
                    break
    if best is None:
        raise ValueError("no strength was given")
    return ProbeFolds(
        inverse_regularization=best[1], logits=best[2], heads=tuple(best[3]), held_out=tuple(held for _, held in parts)
    )


def learning_curve(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    seed: int,
    inverse_regularization: float,
    groups: NDArray[np.str_] | None = None,
    folds: int = FOLDS,
) -> NDArray[np.float64]:
    """Return how often each image is labelled wrongly by heads that learn from fewer images, (2, n_images) in 0 .. 1.

    The folds are those of `cross_validate`; of each fold's training images a quarter, and half of them, are taken, of
    every class alike, several times where there are few.
    """
    parts = stratified_folds(labels, folds, seed, groups)
    draws = min(MOST_DRAWS, max(1, round(DRAWN_IMAGES / len(labels))))
    tasks = [
        (share, draw, fold) for share in range(len(CURVE_SHARES)) for draw in range(draws) for fold in range(len(parts))
    ]

    def errors(task: tuple[int, int, int]) -> NDArray[np.bool_]:
        share, _, fold = task
        members, held = parts[fold]
        generator = np.random.default_rng((seed, *task))
        order = generator.permutation(members)
        classes = [order[labels[order] == label] for label in np.unique(labels[members])]
        taken = np.concatenate([own[: math.ceil(CURVE_SHARES[share] * len(own))] for own in classes])
        head = _Path(features[taken], labels[taken], num_classes, balanced=False).at(inverse_regularization)
        wrong: NDArray[np.bool_] = head.logits(features[held]).argmax(axis=1) != labels[held]
        return wrong

    wrong = np.zeros((len(CURVE_SHARES), len(labels)))
    with _fitting(), ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for (share, _, fold), found in zip(tasks, threads.map(errors, tasks), strict=True):
            wrong[share, parts[fold][1]] += found / draws
    return wrong


def error_slope(before: NDArray[np.floating], after: NDArray[np.floating], factor: float) -> tuple[float, float]:
    """Return b in `errors ~ images ** -b` and its standard error, by the delta method over paired images.

    Args:
        before: how often each image was labelled wrongly, (n_images,) in 0 .. 1.
        after: the same with `factor` times the images to learn from.
        factor: above 1.
    """
    count = len(before)
    # Half an error is added to either (as for odds), so that no logarithm is infinite; what few errors say is little.
    first, last = (float(wrong.sum()) + 0.5 for wrong in (before, after))
    relative = before * (count / first) - after * (count / last)
    error = math.sqrt(float(relative.var()) / count + 0.5 / first**2 + 0.5 / last**2)
    return math.log(first / last) / math.log(factor), error / math.log(factor)


def _refined(
    head: LinearHead,
    path: "_Path",
    features: FeatureRows,
    labels: NDArray[np.int64],
    members: NDArray[np.intp],
    inverse_regularization: float,
    balanced: bool,
) -> LinearHead:
    counts = np.bincount(labels[members], minlength=len(head.bias))
    importance = np.ones(len(counts), dtype=np.float32)
    if balanced:
        importance = (len(members) / np.maximum(counts, 1) / (counts > 0).sum()).astype(np.float32)
    size = head.weight.size

    def loss(variables: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight = variables[:size].reshape(head.weight.shape)
        raw = (weight / path.scale).astype(np.float32)
        offset = (variables[size:] - raw @ path.mean).astype(np.float32)
        value = float((weight**2).sum()) / (2 * inverse_regularization)
        of_raw, of_offset = np.zeros_like(raw), np.zeros_like(offset)
        for start in range(0, len(members), BLOCK):
            rows = members[start : start + BLOCK]
            block, right = features.numpy(rows), labels[rows]
            scores = softmax(block @ raw.T + offset).astype(np.float32)
            own = scores[np.arange(len(rows)), right]
            value += float((importance[right] * -np.log(np.maximum(own, 1e-12))).sum(dtype=np.float64))
            scores[np.arange(len(rows)), right] -= 1.0
            scores *= importance[right][:, None]
            of_raw += scores.T @ block
            of_offset += scores.sum(axis=0)
        of_weight = (of_raw - np.outer(of_offset, path.mean)) / path.scale + weight / inverse_regularization
        return value, np.concatenate([of_weight.reshape(-1), of_offset]).astype(np.float64)

    start = np.concatenate([(head.weight * path.scale).reshape(-1), head.bias + head.weight @ path.mean])
    found = minimize(loss, start.astype(np.float64), jac=True, method="L-BFGS-B", options={"maxiter": MOST_PASSES}).x
    weight = found[:size].reshape(head.weight.shape) / path.scale
    bias = found[size:] - weight @ path.mean
    return LinearHead(weight=weight.astype(np.float32), bias=bias.astype(np.float32))


@contextmanager
def _fitting() -> Iterator[None]:
    """Let each product of matrices take one thread, and fits end without a warning.

    The products are too small for two threads, which would wait for each other most of the time (experiments/log.md,
    2026-11-25). An end of the path that has not settled is judged by its held-out loss like any other.
    """
    with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


class _Path:
    """A warm-started logistic regression on standardised features."""

    def __init__(
        self, features: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, balanced: bool
    ) -> None:
        self.mean = features.mean(axis=0)
        self.scale = features.std(axis=0) + 1e-3 * float(features.std()) + 1e-12  # a dead feature stays dead
        self._features = features - self.mean
        self._features /= self.scale
        self._labels = labels
        self._num_classes = num_classes
        self._model = LogisticRegression(
            warm_start=True, max_iter=300, tol=1e-3, class_weight="balanced" if balanced else None
        )

    def at(self, inverse_regularization: float) -> LinearHead:
        if len(np.unique(self._labels)) == 1:  # the groups that are left may all be of one class
            constant = np.full(self._num_classes, -20.0, dtype=np.float32)
            constant[self._labels[0]] = 0.0
            return LinearHead(weight=np.zeros((self._num_classes, len(self.mean)), dtype=np.float32), bias=constant)
        self._model.C = inverse_regularization
        self._model.fit(self._features, self._labels)
        weight = self._model.coef_ / self.scale
        bias = self._model.intercept_ - weight @ self.mean
        if len(self._model.classes_) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        full_weight = np.zeros((self._num_classes, self._features.shape[1]), dtype=np.float32)
        full_bias = np.full(self._num_classes, bias.min() - 20.0, dtype=np.float32)
        full_weight[self._model.classes_] = weight
        full_bias[self._model.classes_] = bias
        return LinearHead(weight=full_weight, bias=full_bias)
