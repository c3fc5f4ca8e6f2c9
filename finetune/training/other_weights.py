"""Make models of a training's network, with its own weights, those of its linear probe, or others."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import nn

from finetune.data.label_sets import has_sets
from finetune.decide.plan import Plan
from finetune.network.co_tuning import without_source
from finetune.predict.links import link_for, to_probabilities
from finetune.predict.metrics import score
from finetune.predict.model import HeldOut, TrainedModel, fit_temperature, scores_of
from finetune.predict.set_metrics import find_thresholds
from finetune.processes import divide_rows
from finetune.training.evaluation import HeldOutPredictions
from finetune.training.head import start_head, subtract_log_frequencies
from finetune.training.material import Material, Weights, copy_weights
from finetune.training.phases import Phase
from finetune.training.state import TrainingState, collect


def make_model(state: TrainingState, scores: NDArray[np.float32], labels: NDArray[np.int64]) -> TrainedModel:
    """Return the model with the current weights of the network.

    Args:
        state: state of the training.
        scores: logits of the held-out images (n, num_classes), which evaluate the model.
        labels: classes of the held-out images (n,), or sets of labels (n, num_classes).
    """
    material = state.material
    # One temperature, fitted to all held-out images (Guo et al. 2017).
    temperature = fit_temperature(scores, labels)
    held_out = HeldOut(labels=labels, probabilities=to_probabilities(link_for(labels), scores / temperature))
    thresholds = find_thresholds(held_out.probabilities, labels) if has_sets(labels) else None
    return TrainedModel(
        network=without_source(material.network).eval(),
        plan=material.plan,
        class_names=material.class_names,
        temperature=temperature,
        thresholds=thresholds,
        history=state.history,
        validation=score(held_out.probabilities, labels, list(material.class_names), thresholds, material.plan.answers),
        held_out=held_out,
        work=state.work,
        seconds=state.seconds,
    )


def with_weights(state: TrainingState, weights: Mapping[str, Weights], plan: Plan | None = None) -> TrainedModel:
    """Return a finished training's model with other weights, or with another plan for its predictions.

    The model is evaluated on the same held-out images as the training.

    Args:
        state: state of a finished training.
        weights: weights of the network, by phase.
        plan: plan by which the model predicts; None: the plan of the training.
    """
    plan = plan or state.plan
    found, network = predict_with(state.material, weights, plan)
    return replace(make_model(state, found.logits, found.labels), network=network, plan=plan)


def probe_weights(material: Material) -> dict[str, Weights]:
    """Return for each phase the weights of the network whose head is the linear probe of the phase's images.

    Raises:
        ValueError: the plan trains from random weights, which have no linear probe.
    """
    # The linear probe is fitted to frozen features, which random weights do not have.
    if material.features is None:
        raise ValueError("a training from random weights has no linear probe")
    # The probes are made in the network itself, which gets its own weights back afterwards.
    own = {name: tensor.clone() for name, tensor in material.network.state_dict().items()}
    found = {}
    for phase in material.phases:
        reset_to_probe(material, phase)
        found[phase.name] = copy_weights(material.network)
    material.network.load_state_dict(own)
    return found


def network_with(material: Material, weights: Weights) -> nn.Module:
    """Return a copy of the network with other weights, in evaluation mode, without the head of co-tuning."""
    network = copy.deepcopy(material.network)
    network.load_state_dict(weights)
    return without_source(network).eval()


def predict_with(
    material: Material, weights: Mapping[str, Weights], plan: Plan
) -> tuple[HeldOutPredictions, nn.Module]:
    """Return the predictions of the held-out images with other weights, and the network of the last phase.

    Args:
        material: material of the plan.
        weights: weights of the network, by phase.
        plan: plan by which the held-out images are predicted.
    """
    found = []
    # Each phase predicts the images that it holds out, with its own weights; a refit holds none out.
    for phase in material.phases:
        network = network_with(material, weights[phase.name])
        if len(phase.held_out):
            predict = partial(scores_of, network, material.pixels, plan)
            found.append((phase, divide_rows(predict, phase.held_out), None))
    return collect(material, found), network


def reset_to_probe(material: Material, phase: Phase) -> None:
    """Give the network its starting weights and the linear probe of the phase's images as its head."""
    material.network.load_state_dict(material.start)
    start_head(material, phase)
    subtract_log_frequencies(material, phase)
