"""Turn the losses of a search's trainings into findings, one for each of the six steps.

The steps follow Stanford's lecture (CS231n, "Training neural networks"): the initial loss, overfitting a small sample,
learning rates with which the loss falls, a coarse search, a fine search, the curves.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from finetune.tuning.space import RATES, Dimension, Parameters, Space, describe
from finetune.tuning.state import Finding, Trial, best_of
from finetune.value import FrozenModel

LEAST_FALL = 0.01
"""Smallest fall of the training loss that counts as a fall, as a share of the loss without training."""

SURE = 3.0
"""Number of standard errors beyond which the initial loss differs from the expected one by more than chance."""

START_TOLERANCE = 0.2
"""Allowed difference between initial and expected loss beyond chance, as a share of the expected loss."""

LEAST_EXPECTED = 0.25
"""Smallest loss in nats to which `START_TOLERANCE` applies: a share of a loss near 0 would allow no difference."""

NEAR_EDGE = 0.1
"""Width of the edge at each end of a range, as a share of the range in logarithms."""

STILL_FALLING = 0.05
"""Fall of the held-out loss over the last third of the steps, as a share, above which a training ends too early."""


def check_start(loss: float, error: float, expected: float, source: str) -> Finding:
    """Return step 1: whether the held-out loss before the first step is the expected one.

    Args:
        loss: measured loss, in nats.
        error: standard error of `loss`.
        expected: expected loss, in nats.
        source: the source of the expected loss, in words, as a possessive: "the linear probe's".
    """
    holds = abs(loss - expected) <= SURE * error + START_TOLERANCE * max(expected, LEAST_EXPECTED)
    says = f"the loss before the first step is {loss:.3f} ± {error:.3f}, {source} is {expected:.3f}"
    if not holds:
        says += (
            ": the images are prepared differently than for the measurement, or the weights differ; check the weights, "
            "the preprocessing and the image size"
        )
    return Finding(step=1, holds=holds, says=says)


def check_overfit(right: Sequence[bool], paths: Sequence[str], steps: int) -> Finding:
    """Return step 2: whether the network overfits a small sample.

    Args:
        right: for each image, whether the network classifies it correctly after training on it.
        paths: the paths of the images.
        steps: number of steps taken.
    """
    wrong = [path for path, is_right in zip(paths, right, strict=True) if not is_right]
    says = f"{len(right) - len(wrong)} of {len(right)} training images are fitted in {steps} steps"
    if wrong:
        says += (
            f"; all of them should be, or a search is wasted: look at {', '.join(wrong[:3])} for wrong labels and "
            f"copies under two labels, or give a higher learning rate"
        )
    return Finding(step=2, holds=not wrong, says=says)


class RateTrial(FrozenModel):
    """The training loss of a few steps at a learning rate, compared with no training."""

    rate: float
    """Learning rate that was tried."""
    untrained: float
    """Mean loss of the untrained network over the batches of the last third of the steps, in nats."""
    trained: float
    """Mean loss over the same batches at the steps that train on them, in nats; infinite if the training diverged."""
    error: float
    """Standard error of the difference between `untrained` and `trained`, in nats."""

    @property
    def falls(self) -> bool:
        """Whether the loss falls by more than a standard error and more than `LEAST_FALL`."""
        # One standard error is a low bar: a useless rate costs only a few trials, but a lost one may be the best.
        return self.untrained - self.trained > max(self.error, LEAST_FALL * self.untrained)


def rate_trial(rate: float, losses: Sequence[float], untrained: Sequence[float]) -> RateTrial:
    """Return the comparison of a learning rate with no training.

    Args:
        rate: the learning rate.
        losses: training loss of each step's batch (n_steps,); empty if the training diverged.
        untrained: losses of the same batches without training (n_steps,).
    """
    window = max(1, len(untrained) // 3)
    before = np.asarray(untrained[-window:])
    if not losses:
        return RateTrial(rate=rate, untrained=float(before.mean()), trained=math.inf, error=0.0)
    # Differences are paired by batch, so that hard and easy batches cancel out.
    fall = before - np.asarray(losses[-window:])
    error = float(fall.std()) / math.sqrt(window)
    return RateTrial(rate=rate, untrained=float(before.mean()), trained=float(before.mean() - fall.mean()), error=error)


def check_rates(dimension: Dimension, tried: Sequence[RateTrial], steps: int) -> tuple[Finding, Dimension]:
    """Return step 3, and the range of learning rates that remains.

    The range extends from the best rate over the adjacent rates with which the loss falls, and one rate further on
    either side.

    Args:
        dimension: the range that was tried.
        tried: the comparison at each rate, ascending.
        steps: number of steps taken at each rate.
    """
    outcomes = ", ".join(f"{each.rate:.1e} {_outcome(each)}" for each in tried)
    outcomes = f"from {tried[0].untrained:.2f}: {outcomes}"
    falling = [place for place, each in enumerate(tried) if each.falls]
    if not falling:
        says = (
            f"the loss falls with none of the learning rates within {steps} steps ({outcomes}), so there is nothing to "
            f"search: give another range with --set tuning.learning_rate=[LOW,HIGH], and check the labels"
        )
        return Finding(step=3, holds=False, says=says), dimension
    low = high = min(falling, key=lambda place: tried[place].trained)
    while low - 1 in falling:
        low -= 1
    while high + 1 in falling:
        high += 1
    # A few steps show which rates are hopeless, not which one is best: the next rate on either side stays.
    low, high = max(0, low - 1), min(RATES - 1, high + 1)
    left = dimension.changed(low=tried[low].rate, high=tried[high].rate)
    says = (
        f"the training loss after {steps} steps by learning rate, {outcomes}; the search covers {left.low:.1e} to "
        f"{left.high:.1e}"
    )
    return Finding(step=3, holds=True, says=says), left


def _outcome(tried: RateTrial) -> str:
    return "diverges" if math.isinf(tried.trained) else f"to {tried.trained:.2f}"


def check_coarse(trials: Sequence[Trial], refined: Space) -> Finding:
    """Return step 4: the best coarse trial and the ranges of the fine search.

    Args:
        trials: the coarse trials; at least one finished.
        refined: the ranges of the fine search.
    """
    losses = sorted(trial.losses[-1] for trial in trials if trial.state == "finished")
    where = ", ".join(f"{dimension.name} {dimension.low:.1e} to {dimension.high:.1e}" for dimension in refined)
    says = (
        f"after two thirds of the steps trial {best_of(trials).number} has the lowest held-out loss of {len(trials)}, "
        f"{losses[0]:.3f} (median {losses[len(losses) // 2]:.3f}); it continues, and new trials start near it: {where}"
    )
    return Finding(step=4, holds=True, says=says)


def check_fine(trials: Sequence[Trial]) -> Finding:
    """Return step 5: the best fine trial.

    Args:
        trials: the fine trials; at least one finished.
    """
    best = best_of(trials)
    pruned = sum(trial.state != "finished" for trial in trials)
    return Finding(
        step=5,
        holds=True,
        says=f"trial {best.number} has the lowest held-out loss of {len(trials)}, {best.losses[-1]:.3f}, with "
        f"{describe(best.parameters)}; {pruned} were stopped early",
    )


def check_curves(winner: Trial, space: Space) -> Finding:
    """Return step 6: whether the winner is at an edge of a range, and whether its loss was still falling.

    Args:
        winner: a finished fine trial.
        space: the ranges before step 1.
    """
    advice = [_widen(name, value, end) for name, value, end in _at_edges(winner.parameters, space)]
    if len(winner.losses) > 1 and winner.losses[-2] > 0:
        fall = 1.0 - winner.losses[-1] / winner.losses[-2]
        if fall > STILL_FALLING:
            advice.append(
                f"the last third of the steps took {100 * fall:.0f} % off the loss: train longer, with --epochs"
            )
        elif fall < 0:
            advice.append(f"the last third of the steps added {-100 * fall:.0f} % to the loss: train shorter")
    says = "; ".join(advice) or (
        "the best parameters are inside their ranges and the loss has settled: there is no more to gain here"
    )
    return Finding(step=6, holds=True, says=says)


def _at_edges(best: Parameters, space: Space) -> Iterator[tuple[str, float, str]]:
    """Yield name, value and end (`low` or `high`) of each parameter near an end of its range that can be widened."""
    for dimension in space:
        value, share = best[dimension.name], dimension.share(best[dimension.name])
        if share < NEAR_EDGE:
            yield dimension.name, value, "low"
        elif share > 1.0 - NEAR_EDGE and not (dimension.name == "lowest_rate_fraction" and dimension.high >= 1.0):
            yield dimension.name, value, "high"


def _widen(name: str, value: float, end: str) -> str:
    return f"{name} {value:g} is at the {end} end of its range: widen it, with --set tuning.{name}=[LOW,HIGH]"
