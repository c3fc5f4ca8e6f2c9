"""Choose the strategy: decide by the evidence, explain the decision, and forecast the gain of more images."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from finetune.decide.candidates import Candidate
from finetune.decide.contest import RULES, utility
from finetune.decide.decision import make_decision
from finetune.decide.evidence import Evidence
from finetune.decide.forecast import Forecast, forecast
from finetune.decide.reasons import explain, explain_backbone
from finetune.recipe import METRIC_OF_SETS, Metric, Preference, Recipe, Strategy
from finetune.value import FrozenModel


class Backbone(FrozenModel):
    """A network that could be trained, with the expectation of its best candidate."""

    model: str
    """Name of the network."""
    probe_accuracy: float
    """Cross-validated top-1 accuracy of a linear probe on the network's features, 0 .. 1."""
    candidate: str
    """Label of the candidate that would be trained."""
    expected_top1: float
    """Expected top-1 accuracy of that candidate, 0 .. 1."""
    expected_seconds: float
    """Expected time of all trainings of that candidate on this machine, in seconds."""


class Choice(FrozenModel):
    """The choice of a strategy: the candidate to train, the reasons, and the alternatives."""

    removed_keys = frozenset({"racing"})

    strategy: Strategy
    """Strategy of the chosen candidate: how much of the network is trained."""
    reasons: tuple[str, ...]
    """Reasons for training this candidate, one sentence each."""
    candidates: tuple[Candidate, ...]
    """All candidates, the chosen one first, the others from the fastest to the slowest."""
    members: tuple[str, ...] = ()
    """Names of the candidates whose probabilities are averaged, the chosen one first; empty: the chosen one predicts
    alone."""
    ensemble: str = ""
    """Ensemble that the recipe asks for: `seeds:N`, `snapshots:N`, `folds` or `backbones`; empty: there is none."""
    backbones: tuple[Backbone, ...] = ()
    """Networks that were compared, the chosen one first; empty: there was only one network."""
    fallback: str = ""
    """Name of the candidate to train if the chosen one is rejected and a time budget still allows for it; empty: the
    linear probe is kept instead."""
    forecast: Forecast
    """Expected gain of more images, with the chosen candidate."""
    expected_metric: Annotated[Metric, Field(exclude_if=lambda metric: metric == "top1")] = "top1"
    """Accuracy that is expected of candidates: `mean_average_precision` of sets of labels; left out if it is `top1`."""

    @property
    def chosen(self) -> Candidate:
        """The candidate to train."""
        return self.candidates[0]

    @property
    def main_reason(self) -> str:
        """The reason for training the chosen candidate, without its name and without the rule of the preference."""
        reason = self.reasons[1 + bool(self.backbones)]
        for rule in RULES.values():
            reason = reason.removeprefix(f"{rule}: ")
        return reason.removeprefix(f"{self.chosen.label} is ").removeprefix(f"{self.chosen.label} ")

    @property
    def further_reasons(self) -> tuple[str, ...]:
        """The reasons for the network, and what a time budget or an average changes."""
        # `explain` puts the images first and the expectation last; the reason for the network comes second.
        first = 1 + bool(self.backbones)
        return (*self.reasons[1:first], *self.reasons[first + 1 : -1])

    def led_by(self, name: str) -> "Choice":
        """Return the same choice with another candidate as the chosen one."""
        candidates = _in_order(self.candidates, name)
        return self.changed(strategy=candidates[0].strategy, candidates=candidates)


def choose_strategy(evidence: Evidence, recipe: Recipe | None = None) -> Choice:
    """Return the choice of a strategy for the measured images. The recipe may fix the strategy, prefer speed, or limit
    the time.

    Raises:
        RecipeError: the time budget is too short even for a linear probe.
    """
    recipe = recipe or Recipe(data="")
    decision = make_decision(evidence, recipe)
    candidates = _in_order(decision.candidates, decision.name)
    return Choice(
        strategy=candidates[0].strategy,
        reasons=explain(decision, evidence, recipe),
        candidates=candidates,
        members=decision.members,
        ensemble=decision.ensemble,
        fallback=decision.fallback,
        forecast=forecast(evidence, candidates[0].expected_top1),
        expected_metric=METRIC_OF_SETS if evidence.has_sets else "top1",
    )


def choose_backbone(measured: Sequence[tuple[Evidence, Choice]], prefer: Preference) -> tuple[Evidence, Choice]:
    """Return the evidence and the choice of the network to train: that whose chosen candidate has the highest expected
    accuracy, less the price of its time.

    Args:
        measured: each network's evidence, measured on the same images, and the choice that follows from it.
        prefer: preference between accuracy and time, which sets the price.
    """
    if len(measured) == 1:
        return measured[0]
    backbones = [
        Backbone(
            model=evidence.model,
            probe_accuracy=evidence.probe_accuracy,
            candidate=choice.chosen.label,
            expected_top1=choice.chosen.expected_top1,
            expected_seconds=choice.chosen.expected_seconds,
        )
        for evidence, choice in measured
    ]
    accuracies = np.array([backbone.expected_top1 for backbone in backbones])
    seconds = np.array([backbone.expected_seconds for backbone in backbones])
    place = int(utility(accuracies, seconds, prefer).argmax())
    chosen, (evidence, choice) = backbones[place], measured[place]
    backbones.sort(key=lambda backbone: (backbone != chosen, backbone.expected_seconds))
    why = explain_backbone({backbone.model: backbone.probe_accuracy for backbone in backbones})
    return evidence, choice.changed(backbones=backbones, reasons=(choice.reasons[0], why, *choice.reasons[1:]))


def _in_order(candidates: Sequence[Candidate], name: str) -> tuple[Candidate, ...]:
    return tuple(sorted(candidates, key=lambda candidate: (candidate.name != name, candidate.expected_seconds)))
