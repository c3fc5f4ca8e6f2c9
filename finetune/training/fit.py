"""Train one phase of a plan up to a step, or fit its linear probe, and predict the images that it holds out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
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
from finetune.network.cpu import FoldedNorms, ThreadTeam
from finetune.network.tail import Tail
from finetune.predict.linear_probe import LinearHead
from finetune.predict.model import scores_of
from finetune.processes import divide_rows
from finetune.training.cached_activations import Activations, CachedActivations
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
from finetune.training.module import TrainedModule
from finetune.training.phases import Phase, training_sample
from finetune.training.task import Task
from finetune.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """The result of training a phase up to a step of its schedule."""

    phase: Phase
    """Phase that was trained."""
    until: int
    """Step of the schedule up to which the phase was trained."""
    steps: int
    """Number of steps taken since the beginning of the phase; fewer than `until` if time was short."""
    logits: NDArray[np.float32]
    """Logits of the images that the phase holds out, (n_held_out, num_classes)."""
    probe: NDArray[np.float32] | None = None
    """Logits of the linear probe that the phase started from, (n_held_out, num_classes); None before the last step and
    for random weights."""
    history: tuple[Row, ...] = ()
    """Rows of the history, one for each step; empty unless the phase is finished."""
    work: Work = field(default_factory=Work)
    """Images decoded, sent forward and sent backward since the previous result of the phase."""
    seconds: float = 0.0
    """Wall time since the previous result of the phase, in seconds, including the time before an interruption."""
    weights: Weights | None = None
    """Weights of the network after the last step; None if they are not kept."""


def fit_probe(material: Material, phase: Phase) -> PhaseResult:
    """Return the predictions of the phase's linear probe, which must be loaded into the head.

    Args:
        material: material of a plan without steps.
        phase: the phase whose held-out images are predicted.

    Raises:
        ValueError: the plan starts from random weights, so it has no frozen features.
    """
    if material.features is None:
        raise ValueError("a plan without steps needs features")
    subtract_log_frequencies(material, phase)
    # Frozen features exist of plain images only; with test-time flips, the images are sent forward again.
    if material.plan.test_time_flips:
        logits = divide_rows(partial(scores_of, material.network, material.pixels, material.plan), phase.held_out)
    else:
        logits = current_head(material).logits_of(material.features, phase.held_out)
    return PhaseResult(phase=phase, until=0, steps=0, logits=logits)


def fit(
    material: Material,
    phase: Phase,
    until: int,
    *,
    module: TrainedModule,
    accelerator: Accelerator,
    head: LinearHead | None,
    resumed: dict[str, Any] | None,
    steps_before: int,
    seconds: float | None,
) -> PhaseResult:
    """Train the network in place on the phase's images up to a step of the schedule.

    Args:
        material: material of the plan; its network has the weights that the phase starts from.
        phase: the phase to train.
        until: step of the schedule to stop at.
        module: the module to train, and its inputs.
        accelerator: accelerator of the plan.
        head: the linear probe that the phase started from.
        resumed: the checkpoint to resume from; None if the phase starts at its first step.
        steps_before: number of steps of this phase that its earlier results have counted.
        seconds: time left for this phase, in seconds; None without a limit.

    Returns:
        The result with the work of the training steps, but without its seconds and weights.

    Raises:
        DivergenceError: the loss or a gradient is not a finite number.
    """
    plan = phase.plan
    predict = partial(divide_rows, _predictor(material, phase, module.tail, module.cached))
    history: list[Row] = []
    task = replace(
        _make_task(material, phase, module, predict, accelerator, history),
        resumed=resumed,
        until=until,
        seconds=seconds,
    )
    # From here on the network is trained in place, up to `until` or the end of its time.
    reached = train_steps(task, plan, accelerator)
    subtract_log_frequencies(material, phase)
    logits, probe = _held_out_logits(material, phase, predict, head if reached.is_over else None)
    if module.tail is not None:
        module.tail.release()
    return PhaseResult(
        phase=phase,
        until=until,
        steps=reached.step,
        logits=logits,
        probe=probe,
        history=tuple(history) if until == plan.steps else (),
        work=_training_work(material, plan, range(steps_before, reached.step), module.cached),
    )


def seconds_before_interruption(resumed: dict[str, Any] | None, steps_before: int) -> float:
    """Return the seconds that an interrupted process trained between the phase's last result and its checkpoint.

    Args:
        resumed: the checkpoint of the phase; None without an interruption.
        steps_before: number of steps of the phase that its results have counted.
    """
    if resumed is None:
        return 0.0
    # Rows have the seconds since the first step; entry n of the list is the time at which n steps had been taken.
    seconds = [0.0, *(float(row["seconds"]) for row in resumed["history"])]
    return seconds[-1] - seconds[steps_before]


def _make_task(
    material: Material,
    phase: Phase,
    trained: TrainedModule,
    predict: Callable[[NDArray[np.intp]], NDArray[np.float32]],
    accelerator: Accelerator,
    history: list[Row],
) -> Task:
    """Return the task that describes a phase to the loop, from its first step to its last; it fills the history."""
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
        on_step=lambda step: material.progress(f"training ({phase.name})", step, plan.steps, history),
        history=history,
        # Of several folds only the first is evaluated during training, for its learning curve.
        evaluate=evaluation.evaluate if phase is material.phases[0] else None,
        details=evaluation.details,
        save=partial(material.checkpoints.save_step, phase.name),
    )


def _preparation(plan: Plan, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function from a batch of pixels or cached activations to the module's inputs, on the device."""
    normalise = normaliser(plan.preprocessing, device, plan.forward.layout)

    def prepare(inputs: Tensor) -> Tensor:
        # Pixels are bytes; cached activations are floating-point numbers, and already normalised.
        if inputs.dtype == torch.uint8:
            return normalise(inputs)
        return inputs.to(device, torch.float32, non_blocking=True)

    return prepare


def _predictor(
    material: Material, phase: Phase, tail: Tail | None, cached: CachedActivations | None
) -> Callable[[list[int]], NDArray[np.float32]]:
    """Return the function from image indices to logits (n, num_classes), from cached activations where possible."""

    def predict(indices: list[int]) -> NDArray[np.float32]:
        # Activations are cached of plain images only, not of their mirrored copies.
        if tail is not None and cached is not None and not phase.plan.test_time_flips:
            return _tail_logits(tail, cached.plain, indices, phase.plan)
        return scores_of(material.network, material.pixels, material.plan, indices)

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
        # The head was fitted without logit adjustment, so it is adjusted here as the trained one is: f - log p(class).
        probe = head.logits_of(material.features, phase.held_out) - log_frequencies(material, phase)
    return predict(phase.held_out), probe


def _make_loader(
    material: Material, phase: Phase, source: Images, accelerator: Accelerator, steps: range
) -> DataLoader[Any]:
    """Return the loader of this process's share of the batches of some steps."""
    plan = phase.plan
    process = accelerator.process_index, accelerator.num_processes
    share = BatchShare(plan.batch_size, steps, plan.noise_seed, *process, plan.small_steps)
    if material.stream is not None:
        batches = StreamedBatches(material.stream, plan.preprocessing, plan.augmentation, share)
        return make_stream_loader(batches, accelerator.device, plan.forward.loader_workers)
    # Cached activations need no decoding, so they are read without worker processes.
    workers = plan.forward.loader_workers if source is material.varied else 0
    return make_loader(source, accelerator.device, workers, StepSampler(phase.indices.tolist(), share))


def _training_work(material: Material, plan: Plan, steps: range, cached: CachedActivations | None) -> Work:
    """Return the work of some training steps: images times the cost of a step relative to a forward pass."""
    images = len(steps) * plan.batch_size
    # An image of the smaller size counts as the fraction s of a whole one: whole = images - small * (1 - s).
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


def _tail_logits(tail: Tail, plain: Activations, indices: list[int], plan: Plan) -> NDArray[np.float32]:
    """Return the logits (n, num_classes) of images, from their cached activations."""
    device = next(tail.parameters()).device
    tail.eval()
    # ceil(n / batch size) parts of nearly equal size.
    parts = np.array_split(np.asarray(indices, dtype=np.intp), max(1, -(-len(indices) // plan.forward.batch_size)))
    with ThreadTeam(plan.forward.parallel_parts, plan.forward.num_threads) as team:
        folded = FoldedNorms(lambda: tail(plain.of(indices[:1]).to(device, torch.float32)))

        def send(part: NDArray[np.intp]) -> NDArray[np.float32]:
            with torch.no_grad(), autocast(device, plan.forward.precision), folded:
                scores: NDArray[np.float32] = tail(plain.of(part).to(device, torch.float32)).float().cpu().numpy()
                return scores

        return np.concatenate(list(team.map(send, parts)))
