"""Fit and adjust the head: the linear probe it starts from, class frequencies and weights, and co-tuning's relation."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.decide.class_weights import balanced_weights
from finetune.network.head import find_head
from finetune.predict.linear_probe import LinearHead, fit_large_head
from finetune.predict.links import softmax
from finetune.predict.set_probe import positive_weights
from finetune.training.material import Material
from finetune.training.phases import Phase

RELATED_AT_ONCE = 4096
"""Number of images whose source-class probabilities are in memory at once."""


def start_head(material: Material, phase: Phase) -> LinearHead | None:
    """Load the linear probe of the phase's own training images into the head; return it, or None for random weights.

    A random head would distort the features in the first steps (Kumar et al. 2022, LP-FT).
    """
    if material.features is None:
        return None
    plan = material.plan
    # Only the images of this phase are fitted: its held-out images must be new to the head, too.
    head = fit_large_head(
        material.features,
        material.labels,
        phase.indices,
        material.num_classes,
        plan.probe_inverse_regularization,
        balanced=plan.imbalance == "class_weights",
        exact=plan.steps == 0,  # a training moves the head anyway
    )
    find_head(material.network).load(torch.from_numpy(head.weight), torch.from_numpy(head.bias))
    return head


def current_head(material: Material) -> LinearHead:
    """Return a copy of the network's head as it is now."""
    weight, bias = find_head(material.network).classifier()
    return LinearHead(weight=weight.numpy(), bias=bias.numpy())


def subtract_log_frequencies(material: Material, phase: Phase) -> None:
    """Subtract the log class frequencies from the head's bias for prediction, if the plan adjusts logits; of sets of
    labels, the log weights of images with a label."""
    _shift_bias(material, phase, -1.0)


def add_log_frequencies(material: Material, phase: Phase) -> None:
    """Add the log class frequencies to the head's bias to continue training, if the plan adjusts logits."""
    _shift_bias(material, phase, 1.0)


def log_frequencies(material: Material, phase: Phase) -> NDArray[np.float32]:
    """Return the log frequency (num_classes,) of each class in the phase's training images.

    It is 0 unless the plan adjusts logits.

    Post-hoc logit adjustment (Menon et al. 2021) with tau = 1: logits - log p(class).

    Of sets of labels, it is the logarithm of the weight of images with each label: a weight w raises the log odds by
    log w (King & Zeng 2001).
    """
    if material.plan.has_sets and material.plan.imbalance == "class_weights":
        return np.log(positive_weights(material.labels[phase.indices]))
    if material.plan.imbalance != "logit_adjustment":
        return np.zeros(material.num_classes, dtype=np.float32)
    counts = np.bincount(material.labels[phase.indices], minlength=material.num_classes)
    # A class without images counts as one image: log 0 would be infinite.
    frequencies: NDArray[np.float32] = np.log(np.maximum(counts, 1) / counts.sum()).astype(np.float32)
    return frequencies


def class_weights(material: Material, phase: Phase) -> Tensor:
    """Return the weight (num_classes,) of each class in the loss; its mean over the training images is 1.

    Of sets of labels, it is the weight of the images with each label (`positive_weights`).

    If the plan has class weights, they are those of `balanced_weights`, and a class without images has the weight 0.
    Otherwise all weights are 1.
    """
    if material.plan.imbalance != "class_weights":
        return torch.ones(material.num_classes)
    if material.plan.has_sets:
        return torch.from_numpy(positive_weights(material.labels[phase.indices]))
    counts = np.bincount(material.labels[phase.indices], minlength=material.num_classes).astype(np.float32)
    weights = np.where(counts > 0, balanced_weights(counts), 0.0)
    return torch.from_numpy(weights.astype(np.float32))


def source_relation(material: Material, phase: Phase, device: torch.device) -> Tensor | None:
    """Return p(source class | class), (num_classes, source_classes), for co-tuning; None if the plan has no co-tuning.

    It is the mean prediction of the pretrained classifier over the training images of each class (You et al. 2020).
    """
    if not material.plan.co_tuning or material.features is None:
        return None
    (name,) = find_head(material.network).names  # co-tuning needs a head of one layer
    weight, bias = (material.start[f"{name}.source.{part}"].numpy() for part in ("weight", "bias"))
    source = LinearHead(weight=weight, bias=bias)
    indices, labels = phase.indices, material.labels
    # R[y] = 1 / n_y * sum of softmax(W_source x_i + b_source) over the n_y images of class y, with frozen features x.
    sums = np.zeros((material.num_classes, len(bias)))
    for part in np.array_split(indices, max(1, len(indices) // RELATED_AT_ONCE)):
        # add.at, because `sums[labels[part]] += ...` would add a single image of each class.
        np.add.at(sums, labels[part], softmax(source.logits_of(material.features, part)))
    counts = np.bincount(labels[indices], minlength=material.num_classes)
    return torch.from_numpy((sums / np.maximum(counts, 1)[:, None]).astype(np.float32)).to(device)


def _shift_bias(material: Material, phase: Phase, sign: float) -> None:
    """Add `sign` times the log class frequencies to the head's bias, in place."""
    values = log_frequencies(material, phase)
    if values.any():
        find_head(material.network).subtract_from_bias(torch.from_numpy(values), factor=-sign)
