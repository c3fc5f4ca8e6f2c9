"""Choose the module that a phase trains: the whole network, or its tail above cached activations."""

from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from torch import nn

from finetune.data.batches import Images
from finetune.decide.plan import Plan
from finetune.decide.workload import small_cost
from finetune.network.backbone import set_trainable
from finetune.network.outputs import count_work
from finetune.network.tail import Tail, cut
from finetune.training.cached_activations import CachedActivations, cache_activations
from finetune.training.material import Material
from finetune.training.phases import evaluated_images
from finetune.work import Work


class TrainedModule(NamedTuple):
    """The module that a phase trains, and its inputs."""

    module: nn.Module
    """Module to train: the whole network, or its tail if activations are cached at the frozen boundary."""
    groups: dict[str, list[str]]
    """Names of the trained parameters in the module, by the name of their stage."""
    source: Images
    """Inputs of the module: augmented images, or cached activations."""
    tail: Tail | None
    """Trained part of the network; None if the module is the whole network."""
    cached: CachedActivations | None
    """Activations at the frozen boundary; None if there are none."""
    work: Work
    """Images decoded and sent forward to compute the activations."""


def choose_module(
    material: Material, plan: Plan, accelerator: Accelerator, cached: CachedActivations | None
) -> TrainedModule:
    """Return the module to train and its inputs; compute the cached activations if the plan needs them.

    Args:
        material: material of the plan.
        plan: plan of the phase.
        accelerator: accelerator of the plan.
        cached: activations that an earlier phase computed; None if there are none yet.
    """
    groups = set_trainable(material.network, plan)
    uses_cache = plan.cached_views and not accelerator.is_fsdp2  # a shard cannot do without its lower part
    about = plan.preprocessing
    tail = cut(material.network, plan.trainable_stages, about.image_size, about.num_channels) if uses_cache else None
    if tail is None:
        return TrainedModule(material.network, groups, material.varied, None, cached, Work())
    work = Work()
    if cached is None:
        cached, work = _cache_activations(material, tail)
    # The tail is a module around the network, so its parameters have longer names.
    groups = {stage: [f"network.{name}" for name in names] for stage, names in groups.items()}
    return TrainedModule(tail, groups, cached, tail, cached, work)


def _cache_activations(material: Material, tail: Tail) -> tuple[CachedActivations, Work]:
    """Return the activations at the frozen boundary of the images of all phases, and the work of computing them."""
    plan = material.plan
    cached = cache_activations(
        tail,
        material.varied,
        material.plain,
        np.unique(np.concatenate([phase.indices for phase in material.phases])),
        np.unique(np.concatenate([evaluated_images(phase, plan.seed) for phase in material.phases])),
        plan.cached_views,
        plan.small_views,
        plan.preprocessing,
        plan.forward,
        material.weights_digest,
        material.progress,
    )
    work = Work()
    # A view costs the frozen share 1 - tail of a forward pass for each image, and less where the images are smaller.
    for number, view in enumerate((*cached.views, cached.plain)):
        size = small_cost(plan.preprocessing) if number < plan.small_views else 1.0
        work += count_work(view.outputs, material.pixels, share=size * (1.0 - material.tail_share))
    return cached, work
