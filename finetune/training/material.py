"""Prepare a plan's training: the network, the images, frozen features and the phases."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from finetune.data import ImageSplits, ImageStream, Pixels, labels_of
from finetune.data.batches import PlainImages, VariedImages, make_loader, normaliser
from finetune.decide.plan import Plan
from finetune.decide.workload import tail_share
from finetune.device import best_device, to_layout
from finetune.network.backbone import check_stages, create_network, profile_stages
from finetune.network.head import find_head
from finetune.network.outputs import Outputs, count_work, digest_weights, frozen_features
from finetune.processes import first_alone
from finetune.progress import Progress, no_progress
from finetune.training.checkpoints import Checkpoints
from finetune.training.phases import Phase, plan_phases
from finetune.work import Work

Weights = dict[str, Tensor]
"""A copy of a network's weights and buffers on the CPU, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Everything that the phases of a plan share, ready to train."""

    plan: Plan
    """Plan that is trained."""
    phases: tuple[Phase, ...]
    """Phases of the plan, in order; the last one leaves the final model."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    network: nn.Module
    """Network on its device; its structure is fixed, and each phase overwrites its weights, starting from `start`."""
    start: Weights
    """Weights that every phase starts from, before its head is fitted."""
    weights_digest: str
    """Digest of the weights below the head, for the keys of cached features and activations."""
    labels: NDArray[np.int64]
    """Class numbers of the training images followed by the validation images, (n_images,), or their sets of labels,
    (n_images, num_classes)."""
    stream: ImageStream | None
    """Stream that batches are read from, if the images are a sample of a stream; else None."""
    pixels: Pixels
    """Pixels of the images, in the order of `labels`."""
    plain: PlainImages
    """Images as prediction sees them, without augmentation."""
    varied: VariedImages
    """Images as training sees them, augmented."""
    features: Outputs | None
    """Frozen features: the inputs of the head in the pretrained network, (n_images, width); None for random weights."""
    continued: Mapping[str, Weights] | None
    """Weights of the previous cycle, which this cycle continues, by phase; None if there is no previous cycle."""
    keeps_weights: bool
    """Whether the weights of every phase are kept, which further cycles and averages need."""
    checkpoints: Checkpoints
    """Results of finished phases and checkpoints of the current one."""
    progress: Progress
    """Function that is called with the work in progress."""
    work: Work
    """Images decoded and sent forward during the preparation."""
    seconds: float
    """Wall time of the preparation, in seconds, including a previous cycle if it was trained in the same call."""

    @property
    def num_classes(self) -> int:
        """The number of outputs of the head."""
        return find_head(self.network).num_classes

    @property
    def tail_share(self) -> float:
        """The fraction of the network's multiplications that the trained stages compute."""
        about = self.plan.preprocessing
        stages = profile_stages(self.network, about.image_size, about.num_channels)
        return tail_share(stages, self.plan.trainable_stages)


def prepare(
    plan: Plan,
    splits: ImageSplits,
    progress: Progress = no_progress,
    checkpoints: Checkpoints | None = None,
    continued: Mapping[str, Weights] | None = None,
    keeps_weights: bool = False,
) -> Material:
    """Return what the phases of a plan need: a network, images and frozen features.

    Args:
        plan: plan to train.
        splits: labelled images; the test split is not used.
        progress: called with the work in progress.
        checkpoints: where finished phases and checkpoints are kept; None keeps nothing.
        continued: weights of the previous cycle by phase, if the plan is a further cycle.
        keeps_weights: whether to keep the weights of every phase.

    Raises:
        ModelError: the weights cannot be found, or the plan's stages are not those of the network.
        DataError: the plan needs a validation split, and there is none, or it is for labels of another kind.
    """
    begun = time.perf_counter()
    # Cached views also serve trainings with other seeds, which see them in another order.
    varied_seed = plan.seed if plan.cached_views else plan.noise_seed
    phases = plan_phases(plan, splits)
    network = _create(plan, len(splits.class_names))
    given = splits.validation if plan.validation == "given" else None
    tables = [splits.train] if given is None else [splits.train, given]
    pixels = Pixels(tables, plan.preprocessing.shorter_side, plan.preprocessing.reading)
    plain = PlainImages(pixels, plan.preprocessing)
    with first_alone():
        work = pixels.cache(progress)
    if plan.batch_norm_statistics == "re_estimated":
        work += _re_estimate_statistics(network, plain, plan)
    # AdaBN changes buffers below the head, so the digest is taken after it.
    digest = digest_weights(network, leave_out=find_head(network).names)
    features = None if plan.strategy == "scratch" else _features(network, plain, plan, digest, progress)
    if features is not None:
        work += count_work(features, pixels)
    return Material(
        plan=plan,
        phases=tuple(phases),
        class_names=splits.class_names,
        network=network,
        start=copy_weights(network),
        weights_digest=digest,
        labels=np.concatenate([labels_of(table) for table in tables]),
        stream=splits.stream,
        pixels=pixels,
        plain=plain,
        varied=VariedImages(pixels, plan.preprocessing, plan.augmentation, varied_seed),
        features=features,
        continued=continued,
        keeps_weights=keeps_weights,
        checkpoints=checkpoints or Checkpoints(None),
        progress=progress,
        work=work,
        seconds=time.perf_counter() - begun,
    )


def _features(network: nn.Module, plain: PlainImages, plan: Plan, digest: str, progress: Progress) -> Outputs:
    """Return the frozen features of all images."""
    return frozen_features(network, plain, plan.preprocessing, plan.forward, digest, progress)


def _create(plan: Plan, num_classes: int) -> nn.Module:
    """Return the plan's network on its device, with a new head."""
    torch.manual_seed(plan.training_seed)  # for the random head, or for all weights if they are random
    network, _ = create_network(
        plan.model,
        plan.weights,
        num_classes,
        plan.preprocessing.image_size,
        keeps_source_head=plan.co_tuning > 0,
        num_channels=plan.preprocessing.num_channels,
    )
    check_stages(network, plan)
    network = network.to(best_device())
    to_layout(network, plan.forward.layout)
    return network


def copy_weights(network: nn.Module) -> Weights:
    """Return a copy of a network's weights and buffers, on the CPU."""
    # copy=True: on a CPU, `to` would return the tensor itself, which the next phase overwrites.
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}


def _re_estimate_statistics(network: nn.Module, plain: PlainImages, plan: Plan) -> Work:
    """Set the running statistics of the batch norms to those of the images (AdaBN, Li et al. 2017); return the work."""
    device = next(network.parameters()).device
    normalise = normaliser(plan.preprocessing, device, plan.forward.layout)
    loader = make_loader(plain, device, workers=0)
    # update_bn resets the statistics; they become the plain means over the batches of each batch's mean and variance.
    update_bn((normalise(pixels) for pixels, _ in loader), network)
    return Work(forward_images=len(plain), forward_equivalents=float(len(plain)))
