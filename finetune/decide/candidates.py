"""List the candidates: each strategy at the depths and rates that are worth comparing, with its expected accuracy and
time."""

import math
from typing import Literal, NamedTuple

from finetune.decide.evidence import Evidence
from finetune.decide.families import RATES, Family
from finetune.decide.workload import (
    Workload,
    default_batch_size,
    default_trainable_stages,
    expected_seconds,
    half_stages,
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
"""Peak learning rates of AdamW for each strategy, at similarity 1 and at similarity 0. Those of `partial` do not rise:
1.2e-3, and 1.6e-3 with half of the stages, end with a constant answer on some far images (experiments/log.md,
2026-11-25 and -29)."""

SGD_RATE = 50.0
"""Ratio of the peak rates of SGD to those of AdamW, at the usual batch size (experiments/log.md, 2026-11-25)."""

MOST_SCALED = 4
"""Multiple of the usual batch size up to which the default rates rise with the batch size. With rates for 8 times the
usual batch, trainings ended worse (experiments/log.md, 2026-11-25)."""

SCRATCH_SHARE = 0.65
"""Fraction of the linear probe's accuracy above chance that random weights reach with plenty of images. In Kolesnikov
et al. 2020 and in VTAB they reach about two thirds of the pretrained accuracy at 1,000 images, and less with fewer."""

SCRATCH_HALF = 15.0
"""Number of images per class at which random weights reach half of that fraction."""

SCRATCH_ERROR = 0.15
"""Std of the expected accuracy of random weights."""

LEAST_SHARE_OF_STEPS = 0.45
"""Smallest fraction of the default steps that a time budget may leave a candidate, also one of half the steps. The
shortest trainings that the prior was fitted to have half of them; with fewer, the expected accuracy does not hold."""


class CandidateSpec(NamedTuple):
    """One way to carry out a strategy: its depth, its learning rates and its length."""

    strategy: Strategy
    """Strategy: how much of the network is trained."""
    similarity: float | None = None
    """Domain similarity from which the learning rates follow; None: the measured one."""
    is_shallow: bool = False
    """Whether half as many stages as usual are trained."""
    length: float = 1.0
    """Number of steps relative to the default."""
    is_considered: bool = True
    """Whether it may be chosen without being asked for."""


SPECS = {
    "linear_probe": CandidateSpec("linear_probe"),
    "partial_brief": CandidateSpec("partial", is_shallow=True, length=0.5),
    "partial_half": CandidateSpec("partial", length=0.5),
    "partial": CandidateSpec("partial"),
    "full_near": CandidateSpec("full", similarity=1.0),
    "full_far": CandidateSpec("full", similarity=0.0),
    "norm_tuning": CandidateSpec("norm_tuning", is_considered=False),
    "scratch": CandidateSpec("scratch", is_considered=False),
}
"""All candidates by name. `full` has two rates, because the learning rate matters more for accuracy than the number of
trained stages (Li et al. 2020), and the similarity alone does not determine the best rate. `norm_tuning` was on no
frontier of accuracy and cost (docs/explanation/decisions.md)."""


class Candidate(FrozenModel):
    """A strategy at one depth and one rate, with its expected accuracy and time."""

    removed_keys = frozenset({"race_seconds"})

    name: str
    """Name of the candidate, such as `full_far`."""
    strategy: Strategy
    """Strategy of the candidate: how much of the network it trains."""
    trainable_stages: int
    """Number of last stages that are trained under `partial`; 0 under the other strategies."""
    learning_rate: float
    """Peak learning rate of the last stage and the head."""
    lowest_rate_fraction: float
    """Learning rate of the lowest trained stage as a fraction of the last stage's."""
    expected_top1: float
    """Expected top-1 accuracy, or mean average precision of sets of labels, 0 .. 1."""
    expected_top1_error: float
    """Std of the top-1 accuracy on new images."""
    expected_interval: tuple[float, float] = (0.0, 1.0)
    """90 % interval of the top-1 accuracy on new images."""
    expected_seconds: float
    """Expected time of all trainings of the candidate on this machine, in seconds."""
    length: float = 1.0
    """Number of steps relative to the default."""
    share_of_steps: float
    """Fraction of the candidate's usual steps that the time budget allows, 0 .. 1."""
    chance: float
    """Probability that this candidate is the most accurate one of all but `scratch`, for which it is 0."""
    basis: Literal["measured", "prior", "published"]
    """Source of the expected accuracy. `measured`: a cross-validation on these images, less what new images usually
    cost; `prior`: that and a grid of trainings on other image sets (docs/explanation/decisions.md), called `published`
    in older files."""

    @property
    def label(self) -> str:
        """Name of the candidate in printed sentences and tables."""
        steps = ", half the steps" if self.length == 0.5 else ""
        if self.strategy == "partial":
            return f"partial ({self.trainable_stages} {'stage' if self.trainable_stages == 1 else 'stages'}{steps})"
        return f"full (rate {self.learning_rate:.0e}{steps})" if self.strategy == "full" else self.strategy

    @property
    def has_enough_steps(self) -> bool:
        """Whether the time budget allows enough of the candidate's steps; a linear probe needs none."""
        return self.name == "linear_probe" or self.length * self.share_of_steps >= LEAST_SHARE_OF_STEPS

    def workload(self, recipe: Recipe, evidence: Evidence) -> Workload:
        """Return the workload of the candidate under a recipe, which may differ from the one that it was listed for."""
        return size_workload(recipe, evidence, self.strategy, self.trainable_stages or None, self.length)


def list_candidates(evidence: Evidence, recipe: Recipe) -> tuple[Candidate, ...]:
    """Return all candidates, in the order of `SPECS`. A candidate is left out if the recipe's fixed numbers make it
    equal to an earlier one."""
    return tuple(_candidate(name, evidence, recipe) for name in SPECS if _differs(name, evidence, recipe))


def learning_rates(
    strategy: Strategy, similarity: float, family: Family = "cnn", highest: float | None = None
) -> tuple[float, float]:
    """Return the peak rate of the last stage and the head, and the lowest trained stage's rate as a fraction of it.

    The farther the domain, the higher the best rate (Li et al. 2020 find rank correlations of -.7 to -.9), and the
    closer the rates of the lower stages are to the last stage's.

    Args:
        strategy: strategy that the rates are for.
        similarity: domain similarity, 0 (far) .. 1 (near).
        family: family of the network, whose rates are a multiple of those of `LEARNING_RATES`.
        highest: highest rate at which the loss of all layers was seen to fall; None: not measured.
    """
    if strategy == "scratch":
        return 1e-3, 1.0
    near, far = LEARNING_RATES[strategy]
    similarity = min(max(similarity, 0.0), 1.0)
    # log(rate) = s log(near) + (1 - s) log(far): linear in the similarity s.
    rate = math.exp(similarity * math.log(near) + (1.0 - similarity) * math.log(far))
    lowest = round(0.5 + 0.5 * (1.0 - similarity), 2)
    if strategy in {"full", "partial"}:
        known = RATES[family]
        factor = known.factor
        if highest is not None:
            # All rates of the table fall together, so that the higher one of `full` is at most the highest.
            factor = min(factor, highest / LEARNING_RATES["full"][1])
        rate *= factor
        lowest = known.lowest_fraction or lowest
    return float(f"{rate:.2g}"), lowest


def rate_factor(optimizer: Optimizer, batch_size: int, usual: int) -> float:
    """Return the factor on the default rates, which are those of AdamW with the `usual` batch size.

    It is the square root of the relative batch size for AdamW (Malladi et al. 2022), and the relative batch size itself
    for SGD (Goyal et al. 2017). Above some batch size the noise of the gradient is already small: higher rates bring no
    further gain and risk divergence.
    """
    share = min(batch_size / usual, MOST_SCALED)
    return SGD_RATE * share if optimizer == "sgd" else math.sqrt(share)


def _differs(name: str, evidence: Evidence, recipe: Recipe) -> bool:
    """Return whether a candidate differs from those before it."""
    spec = SPECS[name]
    has_rate = recipe.training.learning_rate is not None
    if spec.length != 1.0 and (recipe.steps is not None or recipe.epochs is not None):
        return False
    if spec.is_shallow:
        is_fixed = recipe.training.trainable_stages is not None
        return not is_fixed and half_stages(evidence.stages) < default_trainable_stages(evidence.stages)
    return not (has_rate and name == "full_far")


def _candidate(name: str, evidence: Evidence, recipe: Recipe) -> Candidate:
    spec = SPECS[name]
    stages = half_stages(evidence.stages) if spec.is_shallow else None
    load = size_workload(recipe, evidence, spec.strategy, stages, spec.length)
    unhurried = size_workload(recipe.changed(time_budget=None), evidence, spec.strategy, stages, spec.length)
    similarity = evidence.domain_similarity if spec.similarity is None else spec.similarity
    rate, lowest = learning_rates(spec.strategy, similarity, evidence.family, evidence.highest_rate)
    if spec.strategy == "partial" and RATES[evidence.family].lowest_fraction is not None:
        # Layer-wise decay: with k of n stages trained, the lowest of them has fraction^((k - 1) / (n - 1)).
        depth = (load.trainable_stages - 1) / max(len(evidence.stages) - 1, 1)
        lowest = round(lowest**depth, 3)
    usual = default_batch_size(evidence.num_images)
    rate = float(f"{rate * rate_factor(recipe.training.optimizer or 'adamw', load.batch_size, usual):.2g}")
    # The contest knows what to expect of the others; random weights do not take part in it.
    is_scratch = spec.strategy == "scratch"
    return Candidate(
        name=name,
        strategy=spec.strategy,
        trainable_stages=load.trainable_stages if spec.strategy == "partial" else 0,
        learning_rate=recipe.training.learning_rate or rate,
        lowest_rate_fraction=recipe.training.lowest_rate_fraction or lowest,
        expected_top1=round(_expected_of_scratch(evidence), 4) if is_scratch else 0.0,
        expected_top1_error=SCRATCH_ERROR if is_scratch else 0.0,
        expected_seconds=round(expected_seconds(spec.strategy, load, evidence), 1),
        length=spec.length,
        share_of_steps=round(load.steps / max(unhurried.steps, 1), 2),
        chance=0.0,
        basis="measured" if name == "linear_probe" else "prior",
    )


def _expected_of_scratch(evidence: Evidence) -> float:
    """Return the expected top-1 accuracy of random weights, 0 .. 1."""
    # chance + (probe - chance) * SCRATCH_SHARE * n / (n + SCRATCH_HALF), with n images per class: nothing above chance
    # without images, half of the share at SCRATCH_HALF.
    chance = evidence.chance
    size = evidence.images_per_class / (evidence.images_per_class + SCRATCH_HALF)
    return chance + (evidence.probe_accuracy - chance) * SCRATCH_SHARE * size
