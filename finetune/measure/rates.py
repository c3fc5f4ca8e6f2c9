"""Find the learning rate up to which the loss of a network falls, in a few steps on kept batches.

This is the third step of choosing hyper-parameters, "find rates at which the loss falls", run as a learning-rate range
test (Smith 2017, "Cyclical learning rates for training neural networks", section 3.3): the rate rises geometrically
from step to step until the loss rises clearly above its minimum. On three networks whose rates are known, half of the
rate at which this happens is within a factor of two of them in 14 of 15 cases (docs/explanation/networks.md), without a
table.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.cache import make_key, read_value, write_value
from finetune.data.batches import PlainImages, normaliser
from finetune.decide.families import SAFE_FRACTION
from finetune.decide.preprocessing import Preprocessing
from finetune.network.backbone import set_training_mode
from finetune.network.head import find_head
from finetune.network.outputs import digest_weights
from finetune.predict.linear_probe import fit_head
from finetune.predict.links import ANY_LABELS
from finetune.recipe import Layout
from finetune.work import Work

LOWEST, HIGHEST = 1e-6, 0.3
"""First rate of the ramp, and the rate at which it ends if the loss never rises."""

GROWTH = 1.35
"""Factor on the rate from each step to the next."""

BATCH = 16
"""Number of images of a step."""

BATCHES = 4
"""Number of kept batches, which the steps take in turn. The loss is averaged over one turn."""

RISE = 0.2
"""Rise of the loss above its minimum at which the ramp ends, as a fraction of log(num_classes), the loss of a constant
answer."""

HEAD_REGULARIZATION = 0.1
"""Inverse regularization of the head that the ramp starts from, moderate so that the loss does not begin at 0."""


class HighestRate(NamedTuple):
    """The highest rate at which the loss falls, and what it took to find it."""

    rate: float
    """Highest rate of AdamW for all layers."""
    work: Work
    """Images sent forward and backward."""


def measure_highest_rate(
    network: nn.Module,
    images: PlainImages,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    preprocessing: Preprocessing,
    layout: Layout,
    seed: int,
) -> HighestRate | None:
    """Return the highest rate at which the loss of all layers falls, from two ramps; None with too few images.

    The network's weights change: it is of no further use. The rate is found once and then cached.

    Args:
        network: the pretrained network with a head of the classes, on its device.
        images: the images, as prediction reads them.
        features: inputs of the head for the images, (n, width).
        labels: classes of the images, (n,).
        preprocessing: preprocessing of the network's input.
        layout: memory layout of the network.
        seed: seed of the draw of the kept images.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    count = min(BATCHES * BATCH, len(labels) // 2)
    kept, fitted = order[:count], order[count:]
    if len(kept) < 2 * BATCH:
        return None
    key = make_key(
        "highest rate",
        digest_weights(network, find_head(network).names),
        images.describe(order.tolist()),
        labels.tolist(),
    )
    found = read_value("features", key)
    if found is not None:
        return HighestRate(found["rate"], Work(cache_hits=len(kept)))
    num_classes = find_head(network).num_classes
    # The head is fitted to other images: on its own, the loss would have nowhere to fall.
    head = fit_head(features[fitted], labels[fitted], num_classes, HEAD_REGULARIZATION)
    find_head(network).load(torch.from_numpy(head.weight), torch.from_numpy(head.bias))
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    device = next(network.parameters()).device
    normalise = normaliser(preprocessing, device, layout)
    rates, steps = [], 0
    for turned in (kept, kept[::-1].copy()):
        network.load_state_dict(start)
        inputs = normalise(torch.stack([pixels for pixels, _ in images.__getitems__(turned.tolist())]).to(device))
        rate, taken = rate_of_rise(network, inputs, torch.from_numpy(labels[turned]).to(device), num_classes)
        rates.append(rate)
        steps += taken
    # An early rise may be chance; the later one of the two counts.
    highest = float(f"{SAFE_FRACTION * max(rates):.2g}")
    write_value("features", key, "highest learning rate", {"rate": highest})
    seen = steps * BATCH
    return HighestRate(highest, Work(forward_images=seen, backward_images=seen, forward_equivalents=3.0 * seen))


def rate_of_rise(network: nn.Module, inputs: Tensor, labels: Tensor, num_classes: int) -> tuple[float, int]:
    """Return the AdamW rate at which the loss of all layers has risen by `RISE`, and the number of steps.

    The network's weights change; its batch norms stay frozen.

    Args:
        network: the network with its head.
        inputs: normalised images (n, channels, h, w) on the network's device, at least two batches of them.
        labels: classes of the images (n,), on the same device.
        num_classes: number of classes.
    """
    trained = list(network.parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
    # As in a training: in evaluation mode some networks (TinyViT, LeViT) keep attention biases from step to step.
    set_training_mode(network, freeze_statistics=True)
    optimizer = torch.optim.AdamW(trained, lr=LOWEST, weight_decay=0.0)
    # Whole batches alone, so that all have the same noise.
    batches = [(inputs[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(inputs) - BATCH + 1, BATCH)]
    losses: list[float] = []
    least, rate = math.inf, LOWEST
    while rate < HIGHEST:
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, classes = batches[len(losses) % len(batches)]
        loss = _loss(network(images).float(), classes)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        # The mean over one turn of the batches, because batches differ in difficulty.
        recent = float(np.mean(losses[-len(batches) :])) if len(losses) >= len(batches) else math.inf
        least = min(least, recent)
        if math.isnan(losses[-1]) or (least < math.inf and recent > least + RISE * math.log(num_classes)):
            break
        rate *= GROWTH
    return rate, len(losses)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of a batch: cross-entropy, or binary cross-entropy for sets of labels."""
    if labels.ndim == 2:
        losses, _ = ANY_LABELS.train_losses(logits, labels, torch.ones(logits.shape[1], device=logits.device), 0.0)
        return losses.mean()
    return nn.functional.cross_entropy(logits, labels)
