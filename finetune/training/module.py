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
    """The module that a phase trains and its inputs."""

    module: nn.Module
    """The whole network, or its tail where activations are cached at the frozen boundary."""
    groups: dict[str, list[str]]
    """Names of the trained parameters in the module, by stage."""
    source: Images
    """Augmented images, or cached activations."""
    tail: Tail | None
    cached: CachedActivations | None
    work: Work
    """Of computing the activations."""


def choose_module(
    material: Material, plan: Plan, accelerator: Accelerator, cached: CachedActivations | None
) -> TrainedModule:
    """Return what the phase trains, with cached activations where the plan wants them; compute them if needed."""
    groups = set_trainable(material.network, plan)
    uses_cache = plan.cached_views and not accelerator.is_fsdp2  # a shard cannot do without its lower part
    tail = cut(material.network, plan.trainable_stages, plan.preprocessing.image_size) if uses_cache else None
    if tail is None:
        return TrainedModule(material.network, groups, material.varied, None, cached, Work())
    work = Work()
    if cached is None:
        cached, work = _cache_activations(material, tail)
    groups = {stage: [f"network.{name}" for name in names] for stage, names in groups.items()}
    return TrainedModule(tail, groups, cached, tail, cached, work)


def _cache_activations(material: Material, tail: Tail) -> tuple[CachedActivations, Work]:
    """Return the frozen stages' activations of the images of all phases, and the work that they took."""
    plan = material.plan
    cached = cache_activations(
        tail,
        material.varied,
        material.plain,
        np.unique(np.concatenate([phase.members for phase in material.phases])),
        np.unique(np.concatenate([evaluated_images(phase, plan.seed) for phase in material.phases])),
        plan.cached_views,
        plan.small_views,
        plan.preprocessing,
        plan.forward,
        material.weights_digest,
        material.progress,
    )
    work = Work()
    for number, view in enumerate((*cached.views, cached.plain)):
        size = small_cost(plan.preprocessing) if number < plan.small_views else 1.0
        work += count_work(view.outputs, material.pixels, share=size * (1.0 - material.tail_share))
    return cached, work
