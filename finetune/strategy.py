"""How much of the network to train: a rule over the number of images and the similarity of their domain."""

import math
from typing import Literal

from finetune.errors import RecipeError
from finetune.evidence import Evidence
from finetune.forecast import Forecast, forecast
from finetune.recipe import STRATEGIES, Preference, Recipe, Strategy
from finetune.value import Value
from finetune.workload import expected_seconds, size_workload

FEW_IMAGES = 20
"""Images per class below which a class is small."""

PLENTY_OF_IMAGES = 500
"""Images per class from which on everything can be learned anew where the domain is far."""

PROBE_SUFFICES = 0.005
"""Share of errors (with one standard error added) below which a linear probe is as good as it gets."""

NEAR = 0.5
"""Domain similarity from which on images are near the pretraining images."""

PUBLISHED_ERROR = 0.03
"""Least error of an expectation that was not measured here."""

CLOSED_BY_FULL = (0.25, 0.60)
"""Share of the probe's errors that full fine-tuning removes at (similarity 1, similarity 0) with plenty of images:
Cai et al. 2020 (TinyTL), table 2, ProxylessNAS-Mobile: Pets .20, CUB .29, Food .51, CIFAR-10 .79, Aircraft .75."""

SHARE_OF_FULL = {"norm_tuning": 0.6, "partial": 0.8, "full": 1.0}
"""Part of full fine-tuning's gain that training less reaches (the same table: norm + last, lite-residual + bias,
full)."""

HALF_GAIN_IMAGES = 15.0
"""Images per class at which half of that gain is had: VTAB-1k gives full fine-tuning .27 of the probe's errors at
1,000 images (Jia et al. 2022, table 1)."""


class Candidate(Value):
    """A strategy with what to expect of it."""

    strategy: Strategy
    expected_top1: float
    expected_top1_error: float
    expected_seconds: float
    """Of all its trainings on this machine."""
    basis: Literal["measured", "published"]


class Choice(Value):
    """What to train, why, and what else there was."""

    strategy: Strategy
    learning_rate: float
    """Peak rate of the last stage and the head (AdamW)."""
    lowest_rate_fraction: float
    """Rate of the lowest trained stage over the highest one's."""
    reasons: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    """Every strategy, the chosen one first."""
    forecast: Forecast
    """What more images would buy, with the chosen strategy."""


def choose_strategy(evidence: Evidence, recipe: Recipe | None = None) -> Choice:
    """Return the strategy for the measured images; the recipe may fix it, prefer speed or limit the time.

    Raises:
        RecipeError: the time budget does not even allow a linear probe.
    """
    recipe = recipe or Recipe(data="")
    candidates = {strategy: _candidate(strategy, evidence, recipe) for strategy in STRATEGIES}
    if recipe.strategy != "auto":
        strategy, why = recipe.strategy, f"{recipe.strategy} was asked for"
    else:
        probe_error = 1.0 - evidence.probe_accuracy + evidence.probe_accuracy_error
        strategy, why = decide(evidence.images_per_class, evidence.domain_similarity, probe_error, recipe.prefer)
        strategy, why = _within_budget(strategy, why, candidates, recipe)
    rate, lowest = learning_rates(strategy, evidence.domain_similarity)
    others = sorted(
        candidates.values(), key=lambda candidate: (candidate.strategy != strategy, candidate.expected_seconds)
    )
    reasons = (_size_and_similarity(evidence), why, *_expectation(candidates[strategy], candidates["linear_probe"]))
    return Choice(
        strategy=strategy,
        learning_rate=rate,
        lowest_rate_fraction=lowest,
        reasons=reasons,
        candidates=tuple(others),
        forecast=forecast(evidence, candidates[strategy].expected_top1),
    )


def decide(images_per_class: float, similarity: float, probe_error: float, prefer: Preference) -> tuple[Strategy, str]:
    """Return the strategy and the sentence that says why: the rule itself.

    In our own measurements (docs/strategies.md) training the last stages beat the probe at 4, 12 and 60 to 400 images
    per class, near and far, and training everything did not beat it; plenty of images of a far domain are where
    publications see full fine-tuning ahead (Cai et al. 2020, table 2).
    """
    if probe_error < PROBE_SUFFICES:
        return (
            "linear_probe",
            f"the linear probe's errors are below {100 * PROBE_SUFFICES:g} %: there is nothing to gain",
        )
    if prefer == "speed":
        return "linear_probe", "speed is preferred: a linear probe costs one forward pass over the images"
    if prefer == "accuracy":
        return "full", "accuracy is preferred: every layer is trained, starting from the linear probe's head"
    near = similarity >= NEAR
    if images_per_class >= PLENTY_OF_IMAGES and not near:
        return "full", "plenty of images of a far domain: even the early stages can be learned anew"
    if images_per_class < FEW_IMAGES:
        fit = "fit" if near else "do not fit"
        return (
            "partial",
            f"few images, whose domain the features {fit}: the last stages adapt, the early ones carry over",
        )
    fit = "near" if near else "far"
    return (
        "partial",
        f"enough images of a {fit} domain to retrain the last stages; the early ones, which cost most, stay",
    )


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


LEARNING_RATES: dict[Strategy, tuple[float, float]] = {
    "linear_probe": (1e-3, 1e-3),
    "norm_tuning": (2e-3, 4e-3),
    "partial": (8e-4, 1.2e-3),
    "full": (4e-4, 8e-4),
}
"""Peak AdamW rates at similarity 1 and at similarity 0."""


def _size_and_similarity(evidence: Evidence) -> str:
    few = "below" if evidence.images_per_class < FEW_IMAGES else "at least"
    near = "near" if evidence.domain_similarity >= NEAR else "far"
    scale = "" if evidence.similarity_calibrated else ", uncalibrated for this network"
    return (
        f"{evidence.images_per_class:.0f} images per class, {few} {FEW_IMAGES}; "
        f"similarity {evidence.domain_similarity:.2f}, {near}{scale}"
    )


def _expectation(chosen: Candidate, probe: Candidate) -> tuple[str, ...]:
    expected = f"{100 * chosen.expected_top1:.1f} ± {100 * chosen.expected_top1_error:.1f} % top-1"
    if chosen.strategy == "linear_probe":
        return (f"expected {expected}, as its cross-validation measured",)
    gain = 100 * (chosen.expected_top1 - probe.expected_top1)
    return (
        f"expected {expected}: the linear probe's {100 * probe.expected_top1:.1f} % (cross-validated) "
        f"{gain:+.1f} points, a gain taken from publications",
    )


def _within_budget(
    strategy: Strategy, why: str, candidates: dict[Strategy, Candidate], recipe: Recipe
) -> tuple[Strategy, str]:
    """Return a cheaper strategy where the time budget asks for it."""
    budget = recipe.time_budget
    if budget is None or candidates[strategy].expected_seconds <= budget * 1.05:
        return strategy, why
    seconds = candidates["linear_probe"].expected_seconds
    if seconds > budget:
        raise RecipeError(
            f"a time budget of {budget:.0f} s is too short: the linear probe alone takes about {seconds:.0f} s here; "
            f"give more time, or fewer images with --limit"
        )
    return "linear_probe", f"the time budget of {budget:.0f} s is too short for {strategy}, so only the head is trained"


def _candidate(strategy: Strategy, evidence: Evidence, recipe: Recipe) -> Candidate:
    top1, error = _expected_top1(strategy, evidence)
    return Candidate(
        strategy=strategy,
        expected_top1=round(top1, 4),
        expected_top1_error=round(error, 4),
        expected_seconds=round(expected_seconds(strategy, size_workload(recipe, evidence, strategy), evidence), 1),
        basis="measured" if strategy == "linear_probe" else "published",
    )


def _expected_top1(strategy: Strategy, evidence: Evidence) -> tuple[float, float]:
    probe, probe_error = evidence.probe_accuracy, evidence.probe_accuracy_error
    if strategy == "linear_probe":
        return probe, probe_error
    least = PUBLISHED_ERROR if evidence.similarity_calibrated else 1.5 * PUBLISHED_ERROR
    size = evidence.images_per_class / (evidence.images_per_class + HALF_GAIN_IMAGES)
    if strategy == "scratch":
        # Kolesnikov et al. 2020 and VTAB: about two thirds of the pretrained accuracy at 1,000 images, less with fewer.
        chance = 1.0 / evidence.num_classes
        return chance + (probe - chance) * 0.65 * size, 0.15
    near, far = CLOSED_BY_FULL
    closed = near + (far - near) * (1.0 - evidence.domain_similarity)
    gain = closed * SHARE_OF_FULL[strategy] * size * (1.0 - probe)
    return probe + gain, math.hypot(probe_error, max(least, 0.5 * gain))
