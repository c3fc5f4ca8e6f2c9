"""Fit linear probes: regularised logistic regressions on frozen features, cross-validated over the regularization.

The loss of a head with weight V on standardised features z = (x - mean) / scale is

    L(V, b) = sum_i a_i CE(V z_i + b, y_i) + |V|^2 / (2 C)

with the inverse regularization C and class weights a_i, 1 by default. A head is returned on raw features:
V z + b = (V / scale) x + (b - (V / scale) mean).
"""

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

from finetune.data import Together, stratified_folds, stratified_subset
from finetune.data.label_sets import has_sets
from finetune.decide.class_weights import are_bounded, balanced_weights
from finetune.predict.links import SMALLEST_PROBABILITY, log_loss, softmax
from finetune.predict.set_probe import SetFit, positive_weights, residuals

INVERSE_REGULARIZATIONS = (1e-3, 5e-3, 2.5e-2, 0.12, 0.6, 3.0)
"""Inverse regularizations C that are tried, on standardised features, strongest regularization first."""

FOLDS = 5
"""Number of folds of a cross-validation."""

PATIENCE = 1
"""Number of inverse regularizations in a row without a lower held-out log-loss after which no further one is tried: the
loss has a single minimum along them."""

SAMPLE = 10_000
"""Largest number of images for which features are held in memory to fit a head."""

BLOCK = 4096
"""Number of images in memory at once where there are more than `SAMPLE`."""

MOST_PASSES = 40
"""Largest number of L-BFGS iterations over the features of more than `SAMPLE` images."""


class FeatureRows(Protocol):
    """Features that are read when they are needed."""

    def numpy(self, rows: Any, /) -> NDArray[np.float32]:  # noqa: ANN401  (a slice or indices)
        """Return the features of the images `rows`, (n, width)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """A linear classifier on raw features: `features @ weight.T + bias`."""

    weight: NDArray[np.float32]
    """Weights of the features for each class, (num_classes, width)."""
    bias: NDArray[np.float32]
    """Bias of each class, (num_classes,)."""

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (n, num_classes) of features (n, width)."""
        scores: NDArray[np.float32] = features @ self.weight.T + self.bias
        return scores

    def logits_of(self, features: FeatureRows, indices: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the logits of the images `indices`, (n_members, num_classes), with at most `BLOCK` rows in memory."""
        parts = [self.logits(features.numpy(indices[start : start + BLOCK])) for start in range(0, len(indices), BLOCK)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.bias)), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFolds:
    """A cross-validated probe: its best inverse regularization, and the logits of each image from a head that was not
    fitted to it."""

    inverse_regularization: float
    """Inverse regularization C with the least held-out log-loss."""
    logits: NDArray[np.float32]
    """Held-out logits of all images, (n_images, num_classes); 0 of those that no fold holds out."""
    heads: tuple[LinearHead, ...]
    """Linear head of each fold, fitted to the training images of the fold."""
    held_out: tuple[NDArray[np.intp], ...]
    """Indices of the held-out images of each fold, each (n_held_out,)."""


def fit_head(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    inverse_regularization: float,
    balanced: bool = False,
) -> LinearHead:
    """Return the logistic regression on all given features.

    A class without images gets a bias so low that it is never predicted.

    Args:
        features: features of the images (n, width).
        labels: classes of the images (n,), or sets of labels (n, num_classes).
        num_classes: number of classes.
        inverse_regularization: inverse regularization C.
        balanced: whether every class has the same total weight.
    """
    with fitting():
        return HeadPath(features, labels, num_classes, balanced).at(inverse_regularization)


def fit_large_head(
    features: FeatureRows,
    labels: NDArray[np.int64],
    indices: NDArray[np.intp],
    num_classes: int,
    inverse_regularization: float,
    balanced: bool = False,
    exact: bool = True,
) -> LinearHead:
    """Return the logistic regression on the images `indices`, for any number of images.

    A head is fitted to a sample. From there L-BFGS minimises the loss over all images, reading the features a few
    thousand images at a time.

    Args:
        features: features of all images, (n_images, width).
        labels: classes of all images, (n_images,), or sets of labels (n_images, num_classes).
        indices: indices of the images to fit.
        num_classes: number of classes.
        inverse_regularization: inverse regularization C.
        balanced: whether every class has the same total weight.
        exact: whether the head is fitted to all images; False: the fit of the sample is enough.
    """
    # At least two images of each class, so that the sample's fit knows all classes.
    sample = indices
    if len(indices) > SAMPLE:
        sample = indices[stratified_subset(labels[indices], max(SAMPLE, 2 * num_classes), seed=0)]
    with fitting():
        path = HeadPath(features.numpy(sample), labels[sample], num_classes, balanced)
        head = path.at(inverse_regularization)
    if len(sample) == len(indices) or not exact:
        return head
    return _refined(head, path, features, labels, indices, inverse_regularization, balanced)


def cross_validate(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    seed: int,
    groups: Together | None = None,
    inverse_regularizations: tuple[float, ...] = INVERSE_REGULARIZATIONS,
    balanced: bool = False,
    folds: int = FOLDS,
) -> ProbeFolds:
    """Return the probe with the inverse regularization that has the least held-out log-loss.

    Each fold fits the inverse regularizations from the smallest to the largest, starting from the last fit. One is
    selected for all folds together, so that no fold selects by its own held-out images alone.

    Args:
        features: features of the images (n_images, width).
        labels: classes of the images (n_images,), or sets of labels (n_images, num_classes).
        num_classes: number of classes.
        seed: seed of the folds.
        groups: group of each image (n_images,), or ties; neither is divided between training and held-out images.
        inverse_regularizations: values to try, in this order.
        balanced: whether every class has the same total weight.
        folds: number of folds.

    Raises:
        ValueError: no inverse regularization was given.
    """
    parts = stratified_folds(labels, folds, seed, groups)
    best: tuple[float, float, NDArray[np.float32], list[LinearHead]] | None = None
    worse = 0
    # The only image of a class is in no fold.
    evaluated = np.sort(np.concatenate([held for _, held in parts]))
    fits = [HeadPath(features[train], labels[train], num_classes, balanced) for train, _ in parts]
    with fitting(), ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for inverse_regularization in inverse_regularizations:
            heads = list(
                threads.map(
                    lambda fit, inverse_regularization=inverse_regularization: fit.at(inverse_regularization), fits
                )
            )
            scores = np.zeros((len(labels), num_classes), dtype=np.float32)
            for head, (_, held) in zip(heads, parts, strict=True):
                scores[held] = head.logits(features[held])
            # One loss over the held-out images of all folds; the path ends after PATIENCE values without a lower one.
            loss = log_loss(scores[evaluated], labels[evaluated])
            if best is None or loss < best[0]:
                best, worse = (loss, inverse_regularization, scores, heads), 0
            else:
                worse += 1
                if worse >= PATIENCE:
                    break
    if best is None:
        raise ValueError("no inverse regularization was given; give at least one")
    return ProbeFolds(
        inverse_regularization=best[1], logits=best[2], heads=tuple(best[3]), held_out=tuple(held for _, held in parts)
    )


def _refined(
    head: LinearHead,
    path: "HeadPath",
    features: FeatureRows,
    labels: NDArray[np.int64],
    indices: NDArray[np.intp],
    inverse_regularization: float,
    balanced: bool,
) -> LinearHead:
    """Return the head that minimises the loss over all images `indices`, by L-BFGS from `head`, the fit of a sample.

    The features are standardised with the sample's statistics (`path`), but only implicitly, through the weights: the
    features themselves are read raw, block by block.
    """
    importance = np.ones(len(head.bias), dtype=np.float32)
    # Of sets of labels, only the images with a label are weighted.
    if balanced and has_sets(labels):
        importance = positive_weights(labels[indices])
    elif balanced:
        importance = balanced_weights(np.bincount(labels[indices], minlength=len(head.bias))).astype(np.float32)
    size = head.weight.size
    derive = residuals if has_sets(labels) else _residuals

    def loss(variables: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        # V and b of the module's docstring, and the same head on raw features: raw = V / scale.
        weight = variables[:size].reshape(head.weight.shape)
        raw = (weight / path.scale).astype(np.float32)
        offset = (variables[size:] - raw @ path.mean).astype(np.float32)
        value = float((weight**2).sum()) / (2 * inverse_regularization)
        of_raw, of_offset = np.zeros_like(raw), np.zeros_like(offset)
        for start in range(0, len(indices), BLOCK):
            rows = indices[start : start + BLOCK]
            block, right = features.numpy(rows), labels[rows]
            lost, scores = derive(block @ raw.T + offset, right, importance)
            value += lost
            # dL/draw = sum_i (dCE/dlogits)_i x_i^T, and dL/doffset is the sum over the images.
            of_raw += scores.T @ block
            of_offset += scores.sum(axis=0)
        # Chain rule from the raw head: dL/dV = (dL/draw - dL/doffset mean^T) / scale + V / C.
        of_weight = (of_raw - np.outer(of_offset, path.mean)) / path.scale + weight / inverse_regularization
        return value, np.concatenate([of_weight.reshape(-1), of_offset]).astype(np.float64)

    # The sample's head on standardised features: V = scale * raw, b = bias + raw mean.
    start = np.concatenate([(head.weight * path.scale).reshape(-1), head.bias + head.weight @ path.mean])
    found = minimize(loss, start.astype(np.float64), jac=True, method="L-BFGS-B", options={"maxiter": MOST_PASSES}).x
    weight = found[:size].reshape(head.weight.shape) / path.scale
    bias = found[size:] - weight @ path.mean
    return LinearHead(weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _residuals(
    logits: NDArray[np.float32], labels: NDArray[np.int64], importance: NDArray[np.float32]
) -> tuple[float, NDArray[np.float32]]:
    """Return the summed cross-entropy of some images, and its derivative by their logits (n, num_classes)."""
    # sum_i a[y_i] * -log p_i[y_i], with the weights a of the classes; the probabilities become the derivative in place.
    scores = softmax(logits).astype(np.float32)
    own = scores[np.arange(len(labels)), labels]
    value = float((importance[labels] * -np.log(np.maximum(own, SMALLEST_PROBABILITY))).sum(dtype=np.float64))
    # dCE/dlogits = p - onehot(y)
    scores[np.arange(len(labels)), labels] -= 1.0
    scores *= importance[labels][:, None]
    return value, scores


@contextmanager
def fitting() -> Iterator[None]:
    """Return a context for fits: one thread for each product of matrices, and no warnings about convergence or about
    many classes.

    The products are too small for two threads, which would wait for each other most of the time (experiments/log.md,
    2026-11-25). A fit that has not converged is compared by its held-out log-loss like any other.
    """
    with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Classes of one or two images are classes, too.
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        yield


def _class_weights(labels: NDArray[np.int64]) -> dict[int, float] | str | None:
    """Return scikit-learn's class weights for classes (n,), bounded where they differ much; None for sets of labels."""
    if has_sets(labels):
        return None
    classes, counts = np.unique(labels, return_counts=True)
    if not are_bounded(counts):
        return "balanced"
    return dict(zip(classes.tolist(), balanced_weights(counts).tolist(), strict=True))


class HeadPath:
    """Fits of a head to one set of images with several inverse regularizations, each starting from the fit before."""

    def __init__(
        self, features: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, balanced: bool
    ) -> None:
        """Standardise the features; the arguments are those of `fit_head`."""
        self.mean = features.mean(axis=0)
        # 0.001 of the overall deviation is added, so that features that hardly vary are not scaled up to deviation 1.
        self.scale = features.std(axis=0) + 1e-3 * float(features.std()) + 1e-12
        # The intercept is not penalised, so centring changes only how fast the solver converges.
        self._features = features - self.mean
        self._features /= self.scale
        self._labels = labels
        self._num_classes = num_classes
        self._sets = SetFit(self._features, labels, balanced) if has_sets(labels) else None
        self._model = LogisticRegression(
            warm_start=True, max_iter=300, tol=1e-3, class_weight=_class_weights(labels) if balanced else None
        )

    def at(self, inverse_regularization: float) -> LinearHead:
        """Return the head with this inverse regularization."""
        if self._sets is not None:
            # One row of weights for each label; on raw features it is V / scale, as for classes, and the bias takes up
            # the mean.
            standard, offset = self._sets.at(inverse_regularization)
            raw = standard / self.scale
            return LinearHead(weight=raw.astype(np.float32), bias=(offset - raw @ self.mean).astype(np.float32))
        if len(np.unique(self._labels)) == 1:  # a fold with whole groups may be left with images of one class
            constant = np.full(self._num_classes, -20.0, dtype=np.float32)
            constant[self._labels[0]] = 0.0
            return LinearHead(weight=np.zeros((self._num_classes, len(self.mean)), dtype=np.float32), bias=constant)
        self._model.C = inverse_regularization
        self._model.fit(self._features, self._labels)
        weight = self._model.coef_ / self.scale
        bias = self._model.intercept_ - weight @ self.mean
        # For two classes scikit-learn has one row v of log odds: the rows -v / 2 and v / 2 are the same model.
        if len(self._model.classes_) == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        full_weight = np.zeros((self._num_classes, self._features.shape[1]), dtype=np.float32)
        # Classes without images: a logit of 20 below the lowest bias is about 2e-9 of that class's probability.
        full_bias = np.full(self._num_classes, bias.min() - 20.0, dtype=np.float32)
        full_weight[self._model.classes_] = weight
        full_bias[self._model.classes_] = bias
        return LinearHead(weight=full_weight, bias=full_bias)
