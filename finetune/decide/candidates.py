"""List the candidates: each strategy at the depths and rates that are worth comparing, with what to expect of it."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

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

LEARNING_RATES: dict[Strategy, tuple[float, float]] = {
    "linear_probe": (1e-3, 1e-3),
    "norm_tuning": (2e-3, 4e-3),
    "partial": (8e-4, 8e-4),
    "full": (4e-4, 8e-4),
}
"""Peak AdamW rates of each strategy at similarity 1 and at similarity 0. Those of `partial` do not rise: 1.2e-3, and
2.4e-3 with half of the stages, end with a constant answer on some far images (experiments/log.md, 2026-11-25)."""

SGD_RATE = 50.0
"""Peak rates of SGD over those of AdamW, with the usual batch (experiments/log.md, 2026-11-25)."""

MOST_SCALED = 4
"""Multiple of the usual batch size up to which the default rates rise with it. At 8 times it, trainings ended worse
(experiments/log.md, 2026-11-25)."""

SCRATCH_SHARE = 0.65
"""Share of the linear probe's accuracy above chance that random weights reach with plenty of images. Kolesnikov et al.
2020 and VTAB have about two thirds of the pretrained accuracy at 1,000 images, less with fewer."""

SCRATCH_HALF = 15.0
"""Images per class at which random weights reach half of that share."""

SCRATCH_ERROR = 0.15
"""Std of the accuracy that is expected of random weights."""

LEAST_SHARE_OF_STEPS = 0.5
"""Share of its usual steps that a time budget must leave a candidate. With fewer, what is expected of it does not
hold."""

RUNGS = (1 / 3, 2 / 3)
"""Shares of the steps after which the candidates of a race are evaluated."""


class CandidateSpec(NamedTuple):
    """A way to carry out a strategy."""

    strategy: Strategy
    """How much of the network is trained."""
    similarity: float | None = None
    """Domain similarity for which the learning rates are taken; None: the measured one."""
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
"""All candidates by name. `full` has two, because its learning rate matters more for accuracy than how many stages are
trained (Li et al. 2020), and the similarity alone does not determine it."""


class Candidate(FrozenModel):
    """Something that could be trained, with what to expect of it."""

    name: str
    """Name of the candidate, such as `full_far`."""
    strategy: Strategy
    """How much of the network the candidate trains."""
    trainable_stages: int
    """How many of the last stages are trained under `partial`; 0 under the other strategies."""
    learning_rate: float
    """Peak rate of the last stage and the head."""
    lowest_rate_fraction: float
    """Rate of the lowest trained stage over the highest one's."""
    expected_top1: float
    """Expected top-1 accuracy, 0 .. 1."""
    expected_top1_error: float
    """Std of the expected top-1 accuracy."""
    expected_seconds: float
    """Expected time of all its trainings on this machine, in seconds."""
    race_seconds: float
    """Expected time of the candidate in a race that it loses at the last rung, in seconds."""
    share_of_steps: float
    """Share of its usual steps that the time budget leaves."""
    chance: float
    """Probability that this candidate is the right pick: the cheapest one within the tolerance of the most accurate, if
    all accuracies were known. 0 where the candidate is not considered."""
    basis: Literal["measured", "prior", "published"]
    """Source of the expectation. `measured`: a cross-validation or a race on these images; `prior`: learned from our
    own grid of other image sets (docs/explanation/decisions.md), called `published` in older files."""

    @property
    def label(self) -> str:
        """Name of the candidate in printed sentences and tables."""
        if self.strategy == "partial":
            return f"partial ({self.trainable_stages} {'stage' if self.trainable_stages == 1 else 'stages'})"
        return f"full (rate {self.learning_rate:.0e})" if self.strategy == "full" else self.strategy

    @property
    def has_enough_steps(self) -> bool:
        """Whether the time budget leaves enough of its steps; a linear probe needs none."""
        return self.name == "linear_probe" or self.share_of_steps >= LEAST_SHARE_OF_STEPS

    def workload(self, recipe: Recipe, evidence: Evidence) -> Workload:
        """Return how much work the candidate is under a recipe, which may be another one than it was listed for."""
        return size_workload(recipe, evidence, self.strategy, self.trainable_stages or None)


def list_candidates(evidence: Evidence, recipe: Recipe) -> tuple[Candidate, ...]:
    """Return all candidates, in the order of `SPECS`, except those that the recipe's fixed numbers make the same as an
    earlier one."""
    return tuple(_candidate(name, evidence, recipe) for name in SPECS if _differs(name, evidence, recipe))


def believe_all(names: Sequence[str], evidence: Evidence) -> Belief:
    """Return the belief about some candidates, in their order; there is none about random weights."""
    known = ("linear_probe", *PRIOR.candidates)
    return believe(PRIOR, evidence).among([known.index(name) for name in names])


def learning_rates(strategy: Strategy, similarity: float) -> tuple[float, float]:
    """Return the peak rate of the last stage and the head, and the lowest trained stage's rate as a fraction of it.

    The farther the domain, the higher the best rate (Li et al. 2020 find rank correlations of -.7 to -.9), and the
    nearer the rates of the lower stages are to the highest one.
    """
    if strategy == "scratch":
        return 1e-3, 1.0
    near, far = LEARNING_RATES[strategy]
    similarity = min(max(similarity, 0.0), 1.0)
    # log(rate) = s log(near) + (1 - s) log(far): linear in the similarity s.
    rate = math.exp(similarity * math.log(near) + (1.0 - similarity) * math.log(far))
    return float(f"{rate:.2g}"), round(0.5 + 0.5 * (1.0 - similarity), 2)


def rate_factor(optimizer: Optimizer, batch_size: int, usual: int) -> float:
    """Return the factor on the default rates, which are those of AdamW with the `usual` batch size.

    It is the square root of the relative batch size for AdamW (Malladi et al. 2022), and the relative batch size itself
    for SGD (Goyal et al. 2017). Beyond some batch size the gradient's noise is small already: higher rates gain nothing
    more and risk divergence.
    """
    share = min(batch_size / usual, MOST_SCALED)
    return SGD_RATE * share if optimizer == "sgd" else math.sqrt(share)


def _differs(name: str, evidence: Evidence, recipe: Recipe) -> bool:
    """Return whether a candidate differs from those before it."""
    has_rate = recipe.training.learning_rate is not None
    if name == "full_far":
        return not has_rate
    if name == "partial_short":
        fixed = has_rate or recipe.training.trainable_stages is not None
        return not fixed and short_stages(evidence.stages) < default_trainable_stages(evidence.stages)
    return True


def _candidate(name: str, evidence: Evidence, recipe: Recipe) -> Candidate:
    spec = SPECS[name]
    stages = short_stages(evidence.stages) if spec.is_short else None
    load = size_workload(recipe, evidence, spec.strategy, stages)
    unhurried = load
    if recipe.time_budget is not None:
        unhurried = size_workload(recipe.changed(time_budget=None), evidence, spec.strategy, stages)
    raced = load.changed(steps=round(RUNGS[-1] * load.steps), refit_steps=0)
    rate, lowest = learning_rates(
        spec.strategy, evidence.domain_similarity if spec.similarity is None else spec.similarity
    )
    usual = default_batch_size(evidence.num_images)
    rate = float(f"{rate * rate_factor(recipe.training.optimizer or 'adamw', load.batch_size, usual):.2g}")
    if spec.strategy == "scratch":
        top1, error = _expected_of_scratch(evidence), SCRATCH_ERROR
    else:
        belief = believe_all([name], evidence)
        top1, error = float(belief.mean[0]), math.sqrt(belief.covariance[0, 0])
    return Candidate(
        name=name,
        strategy=spec.strategy,
        trainable_stages=load.trainable_stages if spec.strategy == "partial" else 0,
        learning_rate=recipe.training.learning_rate or (2 * rate if spec.is_short else rate),
        lowest_rate_fraction=recipe.training.lowest_rate_fraction or lowest,
        expected_top1=round(top1, 4),
        expected_top1_error=round(error, 4),
        expected_seconds=round(expected_seconds(spec.strategy, load, evidence), 1),
        race_seconds=round(expected_seconds(spec.strategy, raced, evidence), 1),
        share_of_steps=round(load.steps / max(unhurried.steps, 1), 2),
        chance=0.0,
        basis="measured" if name == "linear_probe" else "prior",
    )


def _expected_of_scratch(evidence: Evidence) -> float:
    """Return the top-1 accuracy to expect of random weights."""
    # chance + (probe - chance) * SCRATCH_SHARE * n / (n + SCRATCH_HALF), with n images per class: nothing above chance
    # without images, half of the share at SCRATCH_HALF.
    chance = 1.0 / evidence.num_classes
    size = evidence.images_per_class / (evidence.images_per_class + SCRATCH_HALF)
    return chance + (evidence.probe_accuracy - chance) * SCRATCH_SHARE * size
