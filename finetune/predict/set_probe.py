"""Fit one logistic regression for each label of a set, all of them together.

With weights V, biases b and standardised features z, the loss is

    L(V, b) = sum_i sum_k -a_k y_ik log p_ik - (1 - y_ik) log(1 - p_ik) + |V|^2 / (2 C),  p_ik = sigmoid(V_k z_i + b_k)

It is a sum over the classes, so its minimum is that of every class by itself; together they share the products of
matrices. The weights a_k of images with a label are 1, or `positive_weights`.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from finetune.decide.plan import MOST_WEIGHT

MOST_STEPS = 300
"""Largest number of L-BFGS iterations."""

TOLERANCE = 1e-4
"""Largest entry of the gradient, of the mean loss over the images, at which a fit ends."""


def positive_weights(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the weight of the images with each label in the loss, (num_classes,).

    It is (n - n_k) / n_k for n_k of n images, so that images with and without the label weigh the same (PyTorch's
    `pos_weight`; King & Zeng 2001), between 1 / `MOST_WEIGHT` and `MOST_WEIGHT`. The weights raise the log odds by
    their logarithm, which is subtracted again for predictions.

    Args:
        labels: sets of labels (n, num_classes) of 0 and 1.
    """
    counts = labels.sum(axis=0)
    ratio = (len(labels) - counts) / np.maximum(counts, 1)
    weights = np.where(counts > 0, np.clip(ratio, 1.0 / MOST_WEIGHT, MOST_WEIGHT), 1.0)
    return np.asarray(weights, dtype=np.float32)


def residuals(
    logits: NDArray[np.floating], labels: NDArray[np.integer], weights: NDArray[np.float32]
) -> tuple[float, NDArray[np.float32]]:
    """Return the summed loss of some images, and its derivative by their logits (n, num_classes).

    Args:
        logits: logits (n, num_classes).
        labels: sets of labels (n, num_classes) of 0 and 1.
        weights: weight of the images with each label, (num_classes,).
    """
    # -log p = log(1 + exp(-f)) and -log(1 - p) = log(1 + exp(f)); their derivatives are p - 1 and p.
    has = labels > 0
    importance = np.where(has, weights, np.float32(1.0))
    losses = np.logaddexp(0.0, np.where(has, -logits, logits))
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
    return float((importance * losses).sum(dtype=np.float64)), (importance * (probabilities - has)).astype(np.float32)


class SetFit:
    """Fits to one set of images with several inverse regularizations, each starting from the fit before."""

    def __init__(self, features: NDArray[np.float32], labels: NDArray[np.integer], balanced: bool) -> None:
        """Begin with no weights, and biases that give every class its share of the images.

        Args:
            features: standardised features (n, width).
            labels: sets of labels (n, num_classes) of 0 and 1.
            balanced: whether images with and without a label weigh the same.
        """
        self._features, self._labels = features, labels
        num_classes = labels.shape[1]
        self._weights = positive_weights(labels) if balanced else np.ones(num_classes, dtype=np.float32)
        counts = labels.sum(axis=0)
        # Half an image is added on each side, so that a class without images has finite odds.
        odds = self._weights * (counts + 0.5) / (len(labels) - counts + 0.5)
        self._found = np.concatenate([np.zeros(num_classes * features.shape[1]), np.log(odds)])

    def at(self, inverse_regularization: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weights (num_classes, width) and biases (num_classes,) with this inverse regularization."""
        count, shape = len(self._features), (self._labels.shape[1], self._features.shape[1])
        size = shape[0] * shape[1]

        def loss(variables: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weight = variables[:size].reshape(shape)
            logits = self._features @ weight.astype(np.float32).T + variables[size:].astype(np.float32)
            value, errors = residuals(logits, self._labels, self._weights)
            value += float((weight**2).sum()) / (2 * inverse_regularization)
            of_weight = errors.T @ self._features + weight / inverse_regularization
            gradient = np.concatenate([of_weight.reshape(-1), errors.sum(axis=0)])
            return value / count, gradient.astype(np.float64) / count

        self._found = minimize(
            loss, self._found, jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS, "gtol": TOLERANCE}
        ).x
        return self._found[:size].reshape(shape), self._found[size:]
