"""What could be trained: each strategy, at the depths and rates that are worth telling apart, and what to expect."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from finetune.decide.belief import Belief
from finetune.decide.evidence import Evidence
from finetune.decide.prior import PRIOR, believe
from finetune.decide.workload import (
    Workload,
    default_batch_size,
    default_trainable_stages,
    expected_seconds,
    short_stages,
    size_workload,
)
from finetune.recipe import Optimizer, Recipe, Strategy
from finetune.value import FrozenModel

if TYPE_CHECKING:
    pass

LEARNING_RATES: dict[Strategy, tuple[float, float]] = {
    "linear_probe": (1e-3, 1e-3),
    "norm_tuning": (2e-3, 4e-3),
    "partial": (8e-4, 8e-4),
    "full": (4e-4, 8e-4),
}
"""Peak AdamW rates at similarity 1 and at similarity 0. Those of `partial` do not rise: 1.2e-3, and 2.4e-3 with half of
the stages, end with a constant answer on some far images (experiments/log.md, 2026-11-25)."""

SGD_RATE = 50.0
"""Peak rates of SGD over those of AdamW, with the usual batch (experiments/log.md, 2026-11-25)."""

MOST_SCALED = 4
"""Times the usual batch up to which the default rates rise with it; eight times ended worse (experiments/log.md,
2026-11-25)."""

SCRATCH_SHARE = 0.65
"""Of the probe's accuracy above chance that random weights reach with plenty of images: Kolesnikov et al. 2020 and VTAB
have about two thirds of the pretrained accuracy at 1,000 images, less with fewer."""

SCRATCH_HALF = 15.0
"""Images per class at which half of that is reached."""

SCRATCH_ERROR = 0.15


class CandidateSpec(NamedTuple):
    """A way to carry out a strategy."""

    strategy: Strategy
    similarity: float | None = None
    """Whose learning rates are taken; None: the measured one's."""
    is_short: bool = False
    """Whether half as many stages are trained, at twice the rate."""


SPECS = {
    "linear_probe": CandidateSpec("linear_probe"),
    "partial_short": CandidateSpec("partial", is_short=True),
    "partial": CandidateSpec("partial"),
    "norm_tuning": CandidateSpec("norm_tuning"),
    "full_near": CandidateSpec("full", similarity=1.0),
    "full_far": CandidateSpec("full", similarity=0.0),
    "scratch": CandidateSpec("scratch"),
}
"""By name. Which learning rate is right costs more accuracy than how much is trained (Li et al. 2020), and similarity
alone does not tell it: hence two of `full`."""


class Candidate(FrozenModel):
    """Something that could be trained, with what to expect of it."""

    name: str
    """Of its arm."""
    strategy: Strategy
    trainable_stages: int
    """How many of the last stages are trained, where the strategy is `partial`; else 0."""
    learning_rate: float
    """Peak rate of the last stage and the head."""
    lowest_rate_fraction: float
    """Rate of the lowest trained stage over the highest one's."""
    expected_top1: float
    expected_top1_error: float
    expected_seconds: float
    """Of all its trainings on this machine."""
    race_seconds: float
    """Of those of them that a race takes where it loses at the last rung."""
    share_of_steps: float
    """What the time budget leaves of its usual steps."""
    chance: float
    """Of being the one to train, were all accuracies known; 0 where it is not considered."""
    basis: Literal["measured", "published"]
    """`published`: learned from other image sets (docs/selector.md)."""

    @property
    def label(self) -> str:
        """What people read."""
        if self.strategy == "partial":
            return f"partial ({self.trainable_stages} {'stage' if self.trainable_stages == 1 else 'stages'})"
        return f"full (rate {self.learning_rate:.0e})" if self.strategy == "full" else self.strategy


def list_candidates(evidence: Evidence, recipe: Recipe) -> tuple[Candidate, ...]:
    """Return all candidates that the recipe's fixed numbers leave different, in the order of `ARMS`."""
    return tuple(_candidate(name, evidence, recipe) for name in SPECS if _differs(name, evidence, recipe))


def believe_all(names: Sequence[str], evidence: Evidence) -> Belief:
    """Return the belief about some candidates, in their order; random weights have none."""
    known = ("linear_probe", *PRIOR.candidates)
    places = [known.index(name) for name in names]
    belief = believe(PRIOR, evidence)
    return Belief(mean=belief.mean[places], covariance=belief.covariance[np.ix_(places, places)])


def workload_of(name: str, evidence: Evidence, recipe: Recipe) -> Workload:
    """Return how much work a candidate is."""
    arm = SPECS[name]
    stages = short_stages(evidence.stages) if arm.is_short else None
    return size_workload(recipe, evidence, arm.strategy, stages)


def learning_rates(strategy: Strategy, similarity: float) -> tuple[float, float]:
    """Return the peak rate of the last stage and the head, and the lowest trained stage's rate as a fraction of it.

    The farther the domain, the higher the best rate (Li et al. 2020 find rank correlations of -.7 to -.9), and the less
    the lower stages are held back.
    """
    if strategy == "scratch":
        return 1e-3, 1.0
    near, far = LEARNING_RATES[strategy]
    similarity = min(max(similarity, 0.0), 1.0)
    rate = math.exp(similarity * math.log(near) + (1.0 - similarity) * math.log(far))
    return float(f"{rate:.2g}"), round(0.5 + 0.5 * (1.0 - similarity), 2)


def rate_factor(optimizer: Optimizer, batch_size: int, usual: int) -> float:
    """Return what the default rates, which are those of AdamW with the `usual` batch, are multiplied by.

    The square root of the batch for AdamW (Malladi et al. 2022), the batch itself for SGD (Goyal et al. 2017). Beyond
    some batch less noise no longer pays for longer steps, and what still grows is the danger of divergence.
    """
    share = min(batch_size / usual, MOST_SCALED)
    return SGD_RATE * share if optimizer == "sgd" else math.sqrt(share)


def _differs(name: str, evidence: Evidence, recipe: Recipe) -> bool:
    """Return whether a candidate is another one than those before it."""
    has_rate = recipe.training.learning_rate is not None
    if name == "full_far":
        return not has_rate
    if name == "partial_short":
        fixed = has_rate or recipe.training.trainable_stages is not None
        return not fixed and short_stages(evidence.stages) < default_trainable_stages(evidence.stages)
    return True


def _candidate(name: str, evidence: Evidence, recipe: Recipe) -> Candidate:
    arm, load = SPECS[name], workload_of(name, evidence, recipe)
    unhurried = workload_of(name, evidence, recipe.changed(time_budget=None))
    raced = load.changed(steps=round(RUNGS[-1] * load.steps), refit_steps=0)
    similarity = evidence.domain_similarity if arm.similarity is None else arm.similarity
    rate, lowest = learning_rates(arm.strategy, similarity)
    usual = default_batch_size(evidence.num_images)
    rate = float(f"{rate * rate_factor(recipe.training.optimizer or 'adamw', load.batch_size, usual):.2g}")
    if arm.strategy == "scratch":
        top1, error = _expected_of_scratch(evidence), SCRATCH_ERROR
    else:
        belief = believe_all([name], evidence)
        top1, error = float(belief.mean[0]), math.sqrt(belief.covariance[0, 0])
    return Candidate(
        name=name,
        strategy=arm.strategy,
        trainable_stages=load.trainable_stages if arm.strategy == "partial" else 0,
        learning_rate=recipe.training.learning_rate or (2 * rate if arm.is_short else rate),
        lowest_rate_fraction=recipe.training.lowest_rate_fraction or lowest,
        expected_top1=round(top1, 4),
        expected_top1_error=round(error, 4),
        expected_seconds=round(expected_seconds(arm.strategy, load, evidence), 1),
        race_seconds=round(expected_seconds(arm.strategy, raced, evidence), 1),
        share_of_steps=round(load.steps / max(unhurried.steps, 1), 2),
        chance=0.0,
        basis="measured" if name == "linear_probe" else "published",
    )


def _expected_of_scratch(evidence: Evidence) -> float:
    chance = 1.0 / evidence.num_classes
    size = evidence.images_per_class / (evidence.images_per_class + SCRATCH_HALF)
    return chance + (evidence.probe_accuracy - chance) * SCRATCH_SHARE * size


RUNGS = (1 / 3, 2 / 3)
"""Shares of the steps at which those who race are looked at."""
