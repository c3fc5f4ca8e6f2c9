"""Train the phases of a plan, pause and evaluate them at fractions of their steps, and return the final model."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from finetune.data import ImageSplits
from finetune.decide.plan import Plan
from finetune.errors import DivergenceError
from finetune.predict.linear_probe import LinearHead
from finetune.predict.model import TrainedModel
from finetune.processes import from_main_process
from finetune.progress import Progress, no_progress
from finetune.training.accelerator import make_accelerator
from finetune.training.checkpoints import Checkpoints
from finetune.training.evaluation import HeldOutPredictions, describe_comparison, is_worse
from finetune.training.fit import PhaseResult, fit, fit_probe, seconds_before_interruption
from finetune.training.head import add_log_frequencies, start_head
from finetune.training.material import Material, copy_weights, prepare
from finetune.training.module import choose_module
from finetune.training.other_weights import make_model, predict_with, probe_weights, reset_to_probe
from finetune.training.phases import Phase
from finetune.training.state import TrainingDivergedError, TrainingState, allowance_of, collect, step_at
from finetune.work import Work


def train(
    plan: Plan, splits: ImageSplits, progress: Progress = no_progress, checkpoints: Checkpoints | None = None
) -> TrainedModel:
    """Train a plan on the training images (and the validation images, after a refit) and return the final model.

    Args:
        plan: plan to train.
        splits: labelled images; the test split is not used.
        progress: called with the work in progress.
        checkpoints: where finished phases and checkpoints are kept, to resume an interrupted training.

    Raises:
        ModelError: the weights cannot be found, or the plan's stages are not those of the network.
        DivergenceError: the training diverged.
    """
    _, model = finish(begin(plan, splits, progress, checkpoints))
    return model


def begin(
    plan: Plan,
    splits: ImageSplits,
    progress: Progress = no_progress,
    checkpoints: Checkpoints | None = None,
    previous: TrainingState | None = None,
    keeps_weights: bool = False,
) -> TrainingState:
    """Prepare a plan's training, and return its state before the first step.

    Args:
        plan: plan to train.
        splits: labelled images; the test split is not used.
        progress: called with the work in progress.
        checkpoints: where finished phases and checkpoints are kept, to resume an interrupted training.
        previous: the finished training that this cycle continues; None: if the plan is a further cycle, the previous
            one is trained first.
        keeps_weights: whether to keep the weights of every phase, which further cycles and averages need.

    Raises:
        ModelError: the weights cannot be found, or the plan's stages are not those of the network.
        DataError: the plan needs a validation split, and there is none.
        DivergenceError: the training of the previous cycle diverged.
    """
    begun = time.perf_counter()
    checkpoints = checkpoints or Checkpoints(None)
    if plan.cycle and previous is None:
        first = begin(plan.changed(cycle=0), splits, progress, checkpoints.before(), keeps_weights=True)
        previous, _ = finish(first)
    continued = None if previous is None else previous.weights
    before = time.perf_counter() - begun
    material = prepare(plan, splits, progress, checkpoints, continued, keeps_weights)
    return TrainingState(material=replace(material, seconds=material.seconds + before))


def evaluate_at(state: TrainingState, share: float = 1.0) -> tuple[TrainingState, HeldOutPredictions]:
    """Train every phase that holds images out up to a fraction of its steps; return the predictions of these images.

    A training that paused resumes from its checkpoint and ends as if it had not paused, provided that its checkpoints
    are kept on disk.

    Args:
        state: progress of the training.
        share: fraction of the steps; 0: the weights that the training starts from, 1: all steps except the refit's.

    Returns:
        The state that was reached, and the predictions.

    Raises:
        TrainingDivergedError: a phase diverged; the error has the state before it.
    """
    found = []
    for phase in state.material.phases:
        if len(phase.held_out):
            state, result = _train_phase(state, phase, step_at(phase, share))
            found.append((phase, result.logits, result.probe))
    return state, collect(state.material, found)


def finish(state: TrainingState) -> tuple[TrainingState, TrainedModel]:
    """Train to the end; return the final state and the final model.

    If the training ended significantly worse than its linear probe on the held-out images, it is rejected, and the
    model is the linear probe.

    Raises:
        TrainingDivergedError: a phase diverged; the error has the state before it.
    """
    state, found = evaluate_at(state)
    # The probe is compared as the training predicts, so with test-time flips if the plan has them.
    material = state.material
    if found.probe is not None and material.plan.test_time_flips:
        flipped, _ = predict_with(material, probe_weights(material), material.plan)
        found = replace(found, probe=flipped.logits)
    if _is_rejected(found, material.plan):
        return state, _probe_model(state, found)
    # Phases that hold images out are trained already; what remains is the refit.
    for phase in material.phases:
        state, _ = _train_phase(state, phase, phase.plan.steps)
    return state, make_model(state, found.logits, found.labels)


def _train_phase(state: TrainingState, phase: Phase, until: int) -> tuple[TrainingState, PhaseResult]:
    """Train a phase up to a step, or read the result from a checkpoint, unless the state has it already."""
    reached = state.result(phase, until)
    if reached is not None:
        return state, reached
    begun = time.perf_counter()
    material = state.material
    is_finished = until == phase.plan.steps
    last = material.phases[-1]
    # The last phase is the final model, and a refit starts from the weights of an earlier phase.
    keeps = is_finished and (material.keeps_weights or phase is last or phase is last.earlier)
    name = phase.name if is_finished else f"{phase.name}-at-{until}"
    # An interrupted run may have left the result on disk.
    saved = material.checkpoints.finished(name)
    counted = 0.0
    if saved is not None:
        result = _restore(material, phase, until, saved, keeps)
    else:
        state, result = _fit_phase(state, phase, until)
        if keeps:
            result = replace(result, weights=copy_weights(material.network))
        counted = time.perf_counter() - begun
        material.checkpoints.finish(name, _content(result, material.network if keeps else None))
    # The result has its own seconds; those of reading and saving it are counted here.
    overhead = time.perf_counter() - begun - counted
    return replace(state, results=(*state.results, result), extra_seconds=state.extra_seconds + overhead), result


def _fit_phase(state: TrainingState, phase: Phase, until: int) -> tuple[TrainingState, PhaseResult]:
    """Train a phase up to a step, or fit its linear probe; return the state with the cached activations, and the
    result."""
    begun = time.perf_counter()
    material, steps_before = state.material, state.steps_taken(phase)
    head = _load_start(state, phase)
    if not material.plan.steps:
        return state, replace(fit_probe(material, phase), seconds=time.perf_counter() - begun)
    accelerator = make_accelerator(phase.plan)
    module = choose_module(material, phase.plan, accelerator, state.cached)
    state = replace(state, cached=module.cached)
    resumed = material.checkpoints.step(phase.name)
    seconds_before = seconds_before_interruption(resumed, steps_before)
    try:
        result = fit(
            material,
            phase,
            until,
            module=module,
            accelerator=accelerator,
            head=head,
            resumed=resumed,
            steps_before=steps_before,
            seconds=allowance_of(state, phase, time.perf_counter() - begun + seconds_before),
        )
    except DivergenceError as error:
        raise TrainingDivergedError(
            error,
            replace(
                state,
                extra_seconds=state.extra_seconds + time.perf_counter() - begun + seconds_before,
                extra_work=state.extra_work + module.work,
            ),
        ) from None
    seconds = time.perf_counter() - begun + seconds_before
    return state, replace(result, work=module.work + result.work, seconds=seconds)


def _load_start(state: TrainingState, phase: Phase) -> LinearHead | None:
    """Load the weights that a phase starts from; return the linear probe fitted for it, or None without one."""
    material = state.material
    # A refit continues from the phase before it: its head was adjusted for prediction, which is undone.
    if phase.earlier is not None and phase.plan.steps:
        material.network.load_state_dict(state.weights[phase.earlier.name])
        add_log_frequencies(material, phase.earlier)
        return None
    material.network.load_state_dict(material.start)
    # A further cycle continues from other weights, but is compared with the same linear probe.
    head = start_head(material, phase)
    if material.continued is not None:
        material.network.load_state_dict(material.continued[phase.name])
        add_log_frequencies(material, phase)
    return head


def _content(result: PhaseResult, network: nn.Module | None) -> dict[str, Any]:
    """Return a phase's result as plain values and tensors, which a checkpoint can hold."""
    arrays = {"logits": result.logits, "probe": result.probe}
    return {
        "network": {} if network is None else network.state_dict(),
        "history": list(result.history),
        "work": result.work.model_dump(),
        "seconds": result.seconds,
        "steps": result.steps,
        "result": {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None},
    }


def _restore(material: Material, phase: Phase, until: int, saved: dict[str, Any], keeps: bool) -> PhaseResult:
    """Return a phase's result from its checkpoint; load the weights into the network if the checkpoint keeps them."""
    if keeps:
        material.network.load_state_dict(saved["network"])
    arrays = {name: tensor.numpy() for name, tensor in saved["result"].items()}
    return PhaseResult(
        phase=phase,
        until=until,
        steps=saved["steps"],
        logits=arrays["logits"],
        probe=arrays.get("probe"),
        history=tuple(saved["history"]),
        work=Work(**saved["work"]),
        seconds=saved["seconds"],
        weights=copy_weights(material.network) if keeps else None,
    )


def _is_rejected(found: HeldOutPredictions, plan: Plan) -> bool:
    """Return whether the training ended worse than its linear probe."""
    probe = found.probe
    if probe is None:
        return False
    # Processes may differ in the last digit; the main process decides for all of them.
    return from_main_process(lambda: is_worse(found.logits, probe, found.labels, plan.metric, plan.answers))


def _probe_model(state: TrainingState, found: HeldOutPredictions) -> TrainedModel:
    """Return the linear probe as the model, with a note that says why."""
    if found.probe is None:
        raise ValueError("there is no linear probe to return")
    reset_to_probe(state.material, state.material.phases[-1])
    rejected = describe_comparison(found.logits, found.probe, found.labels, state.plan.metric, state.plan.answers)
    return replace(
        make_model(state, found.probe, found.labels),
        rejected=rejected,
        note=f"the training ended worse than its linear probe: {rejected}; the linear probe is kept. A lower rate may "
        f"help: --set training.learning_rate={state.plan.head_learning_rate / 4:.0e}",
    )
