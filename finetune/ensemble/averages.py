"""Models that are made of finished trainings: with test-time flips, with weights between the linear probe's and the
training's, of each fold, and with the mean of several trainings' weights."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from finetune.predict.metrics import score
from finetune.predict.model import HeldOut, TrainedModel
from finetune.training.training import Training
from finetune.work import Work

BLEND = 0.75
"""Share of its own weights in a blend of a trained network with the linear probe. Half, which Wortsman et al. 2022 take
for other domains' sake, loses a point at home (experiments/log.md, 2026-11-25)."""

Weights = dict[str, dict[str, Tensor]]
"""What each phase of a training left of the network, by its name."""


def with_flips(training: Training) -> TrainedModel:
    """Return the model of a finished training that kept its weights with test-time flips, and judged with them."""
    return training.with_weights(training.weights, training.plan.changed(test_time_flips=True))


def blend(training: Training) -> TrainedModel:
    """Return the model of a finished training that kept its weights with weights between the linear probe's and its own
    (Wortsman et al. 2022, WiSE-FT): where the one errs, the other often does not.

    Raises:
        ValueError: the training began with random weights.
    """
    probe = training.probe_weights()
    return training.with_weights(
        {phase: _between(probe[phase], own) for phase, own in training.weights.items() if phase in probe}
    )


def fold_models(training: Training, model: TrainedModel) -> list[TrainedModel]:
    """Return what each fold of a finished cross-validation that kept its weights left, judged on the part that it held
    out, with the temperature of all parts: one alone may be too few images.

    What they took is counted by the model that they judge.

    Raises:
        ValueError: the model was not judged.
    """
    if model.held_out is None:
        raise ValueError("folds are averaged with a model that they judge")
    folds = [phase for phase in training.phases if len(phase.held_out)]
    judged = np.sort(np.concatenate([phase.held_out for phase in folds]))
    found = []
    for number, phase in enumerate(folds, start=1):
        rows = np.isin(judged, phase.held_out)
        held_out = HeldOut(labels=model.held_out.labels[rows], probabilities=model.held_out.probabilities[rows])
        found.append(
            replace(
                model,
                network=training.network_with(training.weights[phase.name]),
                plan=model.plan.changed(fold=number, refit=False),
                history=tuple(row for row in model.history if row["phase"] == phase.name),
                validation=score(held_out.probabilities, held_out.labels, list(model.class_names)),
                held_out=held_out,
                work=Work(),
                seconds=0.0,
            )
        )
    return found


def soup(finished: Sequence[tuple[Training, TrainedModel]]) -> TrainedModel | None:
    """Return the greedy soup of trainings that started from the same weights (Wortsman et al. 2022): from the best on,
    each is added to the mean of the weights if the held-out images like the mean better.

    Args:
        finished: trainings of one plan but for its seed or its cycle, which kept their weights, and their models.

    Returns:
        the model with the mean weights, or None where no mean is better than the best alone.
    """
    ordered = sorted(finished, key=lambda each: _loss(each[1]))
    first, best = ordered[0]
    mixed, least, found = [first.weights], _loss(best), None
    for training, _ in ordered[1:]:
        tried = first.with_weights(_mean([*mixed, training.weights]))
        loss = _loss(tried)
        if loss < least:
            mixed, least, found = [*mixed, training.weights], loss, tried
    return found


def _loss(model: TrainedModel) -> float:
    """Return a model's log-loss on the held-out images."""
    if model.validation is None:
        raise ValueError("a soup is made of models that were judged on held-out images")
    return model.validation.log_loss


def _between(probe: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: probe[name].lerp(tensor, BLEND) if tensor.is_floating_point() else tensor for name, tensor in own.items()
    }


def _mean(several: Sequence[Weights]) -> Weights:
    """Return the mean of what trainings left of one network, phase by phase."""
    return {phase: _mean_state([weights[phase] for weights in several]) for phase in several[0]}


def _mean_state(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if first.is_floating_point() else first
        for name, first in states[0].items()
    }
