"""Average weights, and make further models from finished trainings: with flips, blended, and one for each fold."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from finetune.predict.metrics import score
from finetune.predict.model import HeldOut, TrainedModel
from finetune.training import TrainingState, network_with, probe_weights, with_weights
from finetune.training.material import Weights
from finetune.work import Work

BLEND = 0.75
"""Fraction of the fine-tuned weights in a blend with the linear probe's. Wortsman et al. (2022) choose one half for
shifted domains; it costs a point of accuracy on images like the training images (experiments/log.md, 2026-11-25)."""


def with_flips(state: TrainingState) -> TrainedModel:
    """Return the model of a finished training with test-time flips, and evaluate it with them.

    The training must have kept its weights.
    """
    return with_weights(state, state.weights, state.plan.changed(test_time_flips=True))


def blend(state: TrainingState) -> TrainedModel:
    """Return the model of a finished training with weights between the linear probe's and its own.

    w = (1 - BLEND) * w_probe + BLEND * w_tuned (WiSE-FT, Wortsman et al. 2022). The two models err on different images,
    so the blend is often better than both. The training must have kept its weights.

    Raises:
        ValueError: the training started from random weights.
    """
    # The probes of all phases have the same frozen weights; each has the head of its phase's training images.
    probe = probe_weights(state.material)
    return with_weights(
        state, {phase: _between(probe[phase], own) for phase, own in state.weights.items() if phase in probe}
    )


def fold_models(state: TrainingState, model: TrainedModel) -> list[TrainedModel]:
    """Return the model of each fold of a finished cross-validation, evaluated on the images that the fold holds out.

    All models have the temperature of the final model, because one fold may have too few images to fit its own. Their
    work and seconds are 0, because the final model counts them. The training must have kept its weights.

    Raises:
        ValueError: the final model was not evaluated.
    """
    if model.held_out is None:
        raise ValueError("the models of folds need a final model that was evaluated on their held-out images")
    # The final model's held-out images are those of all folds, in ascending order: `rows` marks the fold's own among
    # them. Its probabilities already have the common temperature.
    folds = [phase for phase in state.material.phases if len(phase.held_out)]
    evaluated = np.sort(np.concatenate([phase.held_out for phase in folds]))
    found = []
    for number, phase in enumerate(folds, start=1):
        rows = np.isin(evaluated, phase.held_out)
        held_out = HeldOut(labels=model.held_out.labels[rows], probabilities=model.held_out.probabilities[rows])
        found.append(
            replace(
                model,
                network=network_with(state.material, state.weights[phase.name]),
                plan=model.plan.changed(fold=number, refit=False),
                history=tuple(row for row in model.history if row["phase"] == phase.name),
                validation=score(
                    held_out.probabilities, held_out.labels, list(model.class_names), model.thresholds, model.rule
                ),
                held_out=held_out,
                work=Work(),
                seconds=0.0,
            )
        )
    return found


def soup(finished: Sequence[tuple[TrainingState, TrainedModel]]) -> TrainedModel | None:
    """Return the greedy soup of trainings that started from the same weights (Wortsman et al. 2022, "Model soups").

    The trainings are tried in the order of their held-out log-loss, the best first. The weights of each are added to
    the mean if that lowers the held-out log-loss.

    Args:
        finished: trainings of one plan, which differ in their seed or cycle and kept their weights, and their models.

    Returns:
        The model with the mean weights, or None if no mean is better than the best training.

    Raises:
        ValueError: a model was not evaluated on held-out images.
    """
    # Greedy: the soup S of the trainings added so far takes in training i if loss(mean(S + {i})) < loss(mean(S)).
    ordered = sorted(finished, key=lambda each: _loss(each[1]))
    first, best = ordered[0]
    mixed, least, found = [first.weights], _loss(best), None
    for state, _ in ordered[1:]:
        tried = with_weights(first, _mean([*mixed, state.weights]))
        loss = _loss(tried)
        if loss < least:
            mixed, least, found = [*mixed, state.weights], loss, tried
    return found


def _loss(model: TrainedModel) -> float:
    """Return a model's log-loss on the held-out images."""
    if model.validation is None:
        raise ValueError("a soup needs models that were evaluated on held-out images")
    return model.validation.log_loss


def _between(probe: Weights, own: Weights) -> Weights:
    """Return the weights at the fraction `BLEND` of the line from the probe's to the training's own."""
    # lerp: w_probe + BLEND * (w_tuned - w_probe). Counters of batch norms are integers and are not blended.
    return {
        name: probe[name].lerp(tensor, BLEND) if tensor.is_floating_point() else tensor for name, tensor in own.items()
    }


def _mean(several: Sequence[dict[str, Weights]]) -> dict[str, Weights]:
    """Return the mean weights of several trainings of one network, phase by phase."""
    return {phase: _mean_state([weights[phase] for weights in several]) for phase in several[0]}


def _mean_state(states: Sequence[Weights]) -> Weights:
    """Return the mean of several states of one network; batch norms' integer counters are those of the first."""
    # w = 1/k * sum_i w_i for each weight of k states.
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if first.is_floating_point() else first
        for name, first in states[0].items()
    }
