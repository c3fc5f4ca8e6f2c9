"""Train one phase of a plan up to a step, or fit its linear probe, and predict the images that it holds out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune.data.batches import (
    BatchShare,
    Images,
    StepSampler,
    StreamedBatches,
    make_loader,
    make_stream_loader,
    normaliser,
)
from finetune.decide.plan import Plan
from finetune.decide.workload import cost_per_image, small_cost
from finetune.device import autocast
from finetune.history import Row
from finetune.network.backbone import set_trainable
from finetune.network.cpu import FoldedNorms, ThreadTeam
from finetune.network.outputs import count_work
from finetune.network.tail import Tail, cut
from finetune.predict.linear_probe import LinearHead
from finetune.predict.model import scores_of
from finetune.processes import divide_rows
from finetune.training.accelerator import make_accelerator
from finetune.training.cached_activations import Activations, CachedActivations, cache_activations
from finetune.training.evaluation import Evaluation
from finetune.training.head import (
    class_weights,
    current_head,
    log_frequencies,
    source_relation,
    subtract_log_frequencies,
)
from finetune.training.loop import train_steps
from finetune.training.material import Material, Weights
from finetune.training.phases import Phase, evaluated_images, training_sample
from finetune.training.task import Task
from finetune.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """What training a phase up to a step left."""

    phase: Phase
    until: int
    """Step of the plan's schedule at which it stands."""
    steps: int
    """Steps taken since the beginning of the phase; fewer than `until` where time was short."""
    logits: NDArray[np.float32]
    """(n_held_out, num_classes), of the images that the phase holds out."""
    probe: NDArray[np.float32] | None
    """The same of the linear probe that the phase started from; None before the last step and for random weights."""
    history: tuple[Row, ...]
    """All rows of the phase, where it is finished; else none."""
    work: Work
    """Since the previous result of the phase."""
    seconds: float
    """Wall time since the previous result of the phase, in seconds, including the time before an interruption."""
    weights: Weights | None
    """The network's weights, where they are kept."""

    @property
    def is_finished(self) -> bool:
        """Whether the phase went through all of its schedule."""
        return self.until == self.phase.plan.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What one call of `fit` returns."""

    logits: NDArray[np.float32]
    """(n_held_out, num_classes)"""
    probe: NDArray[np.float32] | None
    """(n_held_out, num_classes), of the linear probe before the training."""
    steps: int
    """Steps taken since the beginning of the phase."""
    history: tuple[Row, ...]
    """Rows of the phase from its first step on."""
    cached: CachedActivations | None
    """Activations at the frozen boundary, for the next phases."""
    work: Work
    seconds_before: float
    """Seconds trained before an interruption that this call resumed from."""


def fit_probe(material: Material, phase: Phase) -> Fit:
    """Return the predictions of the phase's linear probe, which the head holds already.

    Raises:
        ValueError: the plan starts from random weights, so there are no frozen features.
    """
    if material.features is None:
        raise ValueError("a plan without steps needs features")
    subtract_log_frequencies(material, phase)
    if material.plan.test_time_flips:
        logits = divide_rows(partial(scores_of, material.network, material.pixels, material.plan), phase.held_out)
    else:
        logits = current_head(material).logits_of(material.features, phase.held_out)
    return Fit(logits=logits, probe=None, steps=0, history=(), cached=None, work=Work(), seconds_before=0.0)


def fit(
    material: Material,
    phase: Phase,
    until: int,
    *,
    head: LinearHead | None,
    cached: CachedActivations | None,
    steps_before: int,
    allowance: Callable[[float], float | None],
) -> Fit:
    """Train the network in place on the phase's images up to a step of the schedule.

    Args:
        material: of the plan; its network holds the weights that the phase starts from.
        phase: which images and which steps.
        until: step of the schedule to stop at.
        head: the linear probe that the phase started from.
        cached: activations that an earlier phase left; None: they are computed where the plan wants them.
        steps_before: steps that earlier calls took, which were counted there.
        allowance: from the seconds trained before an interruption to the seconds left for this phase; None: no limit.

    Raises:
        DivergenceError: the loss or a gradient is not a finite number.
    """
    accelerator = make_accelerator(phase.plan)
    trained = _choose_module(material, phase.plan, accelerator, cached)
    predict = partial(divide_rows, _predictor(material, phase, trained.tail, trained.cached))
    resumed = material.checkpoints.step(phase.name)
    seconds_before = _seconds_before_interruption(resumed, steps_before)
    history: list[Row] = []
    task = replace(
        _make_task(material, phase, trained, predict, accelerator),
        resumed=resumed,
        until=until,
        seconds=allowance(seconds_before),
        history=history,
    )
    reached = train_steps(task, phase.plan, accelerator)
    work = trained.work + _training_work(material, phase.plan, range(steps_before, reached.step), trained.cached)
    subtract_log_frequencies(material, phase)
    logits, probe = _held_out_logits(material, phase, predict, head if reached.is_over else None)
    if trained.tail is not None:
        trained.tail.release()
    return Fit(
        logits=logits,
        probe=probe,
        steps=reached.step,
        history=tuple(history),
        cached=trained.cached,
        work=work,
        seconds_before=seconds_before,
    )


class _Trained(NamedTuple):
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


def _choose_module(
    material: Material, plan: Plan, accelerator: Accelerator, cached: CachedActivations | None
) -> _Trained:
    """Return what the phase trains, with cached activations where the plan wants them; compute them if needed."""
    groups = set_trainable(material.network, plan)
    uses_cache = plan.cached_views and not accelerator.is_fsdp2  # a shard cannot do without its lower part
    tail = cut(material.network, plan.trainable_stages, plan.preprocessing.image_size) if uses_cache else None
    if tail is None:
        return _Trained(material.network, groups, material.varied, None, cached, Work())
    work = Work()
    if cached is None:
        cached, work = _cache_activations(material, tail)
    groups = {stage: [f"network.{name}" for name in names] for stage, names in groups.items()}
    return _Trained(tail, groups, cached, tail, cached, work)


def _make_task(
    material: Material,
    phase: Phase,
    trained: _Trained,
    predict: Callable[[NDArray[np.intp]], NDArray[np.float32]],
    accelerator: Accelerator,
) -> Task:
    """Return the loop's task for a phase, from its first step to its last."""
    plan, device = phase.plan, accelerator.device
    evaluation = Evaluation(predict, material.labels, phase.held_out, training_sample(phase, material.plan.seed))
    return Task(
        name=phase.name,
        module=trained.module,
        groups=trained.groups,
        make_loader=partial(_make_loader, material, phase, trained.source, accelerator),
        prepare=_preparation(plan, device),
        labels=torch.from_numpy(material.labels) if material.stream is None else torch.arange(material.num_classes),
        class_weights=class_weights(material, phase).to(device),
        relation=source_relation(material, phase, device),
        on_step=lambda step: material.progress(f"training ({phase.name})", step, plan.steps),
        # Of several folds only the first is evaluated during training, for its learning curve.
        evaluate=evaluation.evaluate if phase is material.phases[0] else None,
        details=evaluation.details,
        save=partial(material.checkpoints.save_step, phase.name),
    )


def _preparation(plan: Plan, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function from a batch of pixels or cached activations to the module's inputs, on the device."""
    normalise = normaliser(plan.preprocessing, device, plan.forward.layout)

    def prepare(inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            return normalise(inputs)
        return inputs.to(device, torch.float32, non_blocking=True)

    return prepare


def _predictor(
    material: Material, phase: Phase, tail: Tail | None, cached: CachedActivations | None
) -> Callable[[list[int]], NDArray[np.float32]]:
    """Return the function from image indices to logits (n, num_classes), from cached activations where possible."""

    def predict(members: list[int]) -> NDArray[np.float32]:
        if tail is not None and cached is not None and not phase.plan.test_time_flips:
            return _tail_logits(tail, cached.plain, members, phase.plan)
        return scores_of(material.network, material.pixels, material.plan, members)

    return predict


def _held_out_logits(
    material: Material,
    phase: Phase,
    predict: Callable[[NDArray[np.intp]], NDArray[np.float32]],
    head: LinearHead | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the network's logits of the held-out images, and the linear probe's, where `head` is given."""
    if not len(phase.held_out):
        return np.zeros((0, material.num_classes), dtype=np.float32), None
    probe = None
    if head is not None and material.features is not None:
        probe = head.logits_of(material.features, phase.held_out) - log_frequencies(material, phase)
    return predict(phase.held_out), probe


def _seconds_before_interruption(resumed: dict[str, Any] | None, steps_before: int) -> float:
    """Return the seconds that an earlier process trained between the last result and the checkpoint."""
    if resumed is None:
        return 0.0
    seconds = [0.0, *(float(row["seconds"]) for row in resumed["history"])]
    return seconds[-1] - seconds[steps_before]


def _make_loader(
    material: Material, phase: Phase, source: Images, accelerator: Accelerator, steps: range
) -> DataLoader[Any]:
    """Return the loader of this process's part of the batches of some steps."""
    plan = phase.plan
    process = accelerator.process_index, accelerator.num_processes
    share = BatchShare(plan.batch_size, steps, plan.noise_seed, *process, plan.small_steps)
    if material.stream is not None:
        batches = StreamedBatches(material.stream, plan.preprocessing, plan.augmentation, share)
        return make_stream_loader(batches, accelerator.device, plan.forward.loader_workers)
    workers = plan.forward.loader_workers if source is material.varied else 0
    return make_loader(source, accelerator.device, workers, StepSampler(phase.members.tolist(), share))


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


def _training_work(material: Material, plan: Plan, steps: range, cached: CachedActivations | None) -> Work:
    """Return the work of some training steps: images times the cost of a step relative to a forward pass."""
    images = len(steps) * plan.batch_size
    small = len(range(steps.start, min(steps.stop, plan.small_steps))) * plan.batch_size
    whole = images - small * (1.0 - small_cost(plan.preprocessing))
    if plan.strategy == "linear_probe":
        cost = 1.0  # the frozen network runs in every step; the head's own work is negligible
    else:
        tail = material.tail_share if plan.strategy == "partial" else 1.0
        cost = cost_per_image(plan.strategy, tail, cached=cached is not None)
    work = Work(forward_images=images, backward_images=images, forward_equivalents=round(whole * cost, 1))
    if material.stream is not None:
        return work + Work(decoded_images=images)
    if cached is None and not material.pixels.is_cached:
        return work + material.pixels.reading_work(images)
    return work


def _tail_logits(tail: Tail, plain: Activations, members: list[int], plan: Plan) -> NDArray[np.float32]:
    """Return the logits (n, num_classes) of images, from their cached activations."""
    device = next(tail.parameters()).device
    tail.eval()
    parts = np.array_split(np.asarray(members, dtype=np.intp), max(1, -(-len(members) // plan.forward.batch_size)))
    with ThreadTeam(plan.forward.parallel_parts, plan.forward.num_threads) as team:
        folded = FoldedNorms(lambda: tail(plain.of(members[:1]).to(device, torch.float32)))

        def send(part: NDArray[np.intp]) -> NDArray[np.float32]:
            with torch.inference_mode(), autocast(device, plan.forward.precision), folded:
                scores: NDArray[np.float32] = tail(plain.of(part).to(device, torch.float32)).float().cpu().numpy()
                return scores

        return np.concatenate(list(team.map(send, parts)))
