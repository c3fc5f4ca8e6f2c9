"""Draw findings from the trials of a search."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from finetune.tuning.space import RATES, Dimension, Finding, Parameters, Space, Trial, best_of, describe
from finetune.value import FrozenModel

LEAST_FALL = 0.01
"""Share of the loss by which it must fall."""


STILL = 1e-9
"""A learning rate with which nothing is learned."""


SURE = 3.0
"""Standard errors beyond which a difference is not chance."""


START_TOLERANCE = 0.2
"""How far the initial loss may be from what is expected, beyond chance: as a share of it, or of a quarter of a nat."""


NEAR_EDGE = 0.1
"""Share of a range, in logarithms, that is its edge."""


STILL_FALLING = 0.05
"""Share of the held-out loss that the last third of the steps takes off where a training ends too early."""


def judge_start(loss: float, error: float, expected: float, whose: str) -> Finding:
    """Return step 1: whether the held-out loss before the first step is what it should be.

    Args:
        loss: measured, in nats.
        error: its standard error.
        expected: in nats.
        whose: what is expected, for people.
    """
    holds = abs(loss - expected) <= SURE * error + START_TOLERANCE * max(expected, 0.25)
    says = f"the loss before the first step is {loss:.3f} ± {error:.3f}, {whose} is {expected:.3f}"
    if not holds:
        says += (
            ": the network does not see the images as it was measured, or its weights are others; check the weights, "
            "the preprocessing and the image size"
        )
    return Finding(step=1, holds=holds, says=says)


def judge_overfit(right: Sequence[bool], paths: Sequence[str], steps: int) -> Finding:
    """Return step 2: whether a small sample can be learned by heart.

    Args:
        right: of each image, whether it is recognised after training on it.
        paths: of the images.
        steps: how many were taken.
    """
    wrong = [path for path, is_right in zip(paths, right, strict=True) if not is_right]
    says = f"{len(right) - len(wrong)} of {len(right)} training images are learned by heart in {steps} steps"
    if wrong:
        says += (
            f"; all of them should be, or a search is wasted: look at {', '.join(wrong[:3])} for wrong labels and "
            f"copies under two labels, or give a higher learning rate"
        )
    return Finding(step=2, holds=not wrong, says=says)


class RateTrial(FrozenModel):
    """What a learning rate does to the training loss within some steps."""

    rate: float
    untrained: float
    """Mean loss over the batches of the last third of the steps, before the first one."""
    trained: float
    """Over the same batches, each when its turn came; infinite where it diverged."""
    error: float
    """Standard error of their difference."""

    @property
    def falls(self) -> bool:
        """Whether the loss falls by a standard error or more, and by a hundredth."""
        # One is little, for a rate that stays by mistake costs a few trials, and one that is lost may be the best.
        return self.untrained - self.trained > max(self.error, LEAST_FALL * self.untrained)


def rate_trial(rate: float, losses: Sequence[float], untrained: Sequence[float]) -> RateTrial:
    """Return what a rate did.

    Args:
        rate: the learning rate.
        losses: the training loss of each step's batch; none: it diverged.
        untrained: the losses of the same batches where nothing is learned.
    """
    window = max(1, len(untrained) // 3)
    before = np.asarray(untrained[-window:])
    if not losses:
        return RateTrial(rate=rate, untrained=float(before.mean()), trained=math.inf, error=0.0)
    fall = before - np.asarray(losses[-window:])
    error = float(fall.std()) / math.sqrt(window)
    return RateTrial(rate=rate, untrained=float(before.mean()), trained=float(before.mean() - fall.mean()), error=error)


def judge_rates(dimension: Dimension, tried: Sequence[RateTrial], steps: int) -> tuple[Finding, Dimension]:
    """Return step 3: with which rates the loss falls, and the range that is left: up to the next ones beside them.

    Args:
        dimension: the range that was tried.
        tried: what each rate did, ascending.
        steps: how many were taken.
    """
    told = ", ".join(f"{each.rate:.1e} {_outcome(each)}" for each in tried)
    told = f"from {tried[0].untrained:.2f}: {told}"
    falling = [place for place, each in enumerate(tried) if each.falls]
    if not falling:
        says = (
            f"with no learning rate does the loss fall within {steps} steps ({told}), so there is nothing to search: "
            f"give another range with --set tuning.learning_rate=[LOW,HIGH], and check the labels"
        )
        return Finding(step=3, holds=False, says=says), dimension
    low = high = min(falling, key=lambda place: tried[place].trained)
    while low - 1 in falling:
        low -= 1
    while high + 1 in falling:
        high += 1
    # A few steps say which rates are hopeless, not which one is best: the next one on either side stays.
    low, high = max(0, low - 1), min(RATES - 1, high + 1)
    left = dimension.changed(low=tried[low].rate, high=tried[high].rate)
    says = (
        f"the training loss after {steps} steps by learning rate, {told}; {left.low:.1e} to {left.high:.1e} is searched"
    )
    return Finding(step=3, holds=True, says=says), left


def _outcome(tried: RateTrial) -> str:
    return "diverges" if math.isinf(tried.trained) else f"to {tried.trained:.2f}"


def judge_coarse(trials: Sequence[Trial], refined: Space) -> Finding:
    """Return step 4: the best of the short trials, and where the search goes on.

    Args:
        trials: the coarse ones; one at least went well.
        refined: where the search goes on.
    """
    losses = sorted(trial.losses[-1] for trial in trials if trial.state == "finished")
    where = ", ".join(f"{dimension.name} {dimension.low:.1e} to {dimension.high:.1e}" for dimension in refined)
    says = (
        f"after two thirds of the steps trial {best_of(trials).number} has the lowest held-out loss of {len(trials)}, "
        f"{losses[0]:.3f} (median {losses[len(losses) // 2]:.3f}); it goes on, and others near it: {where}"
    )
    return Finding(step=4, holds=True, says=says)


def judge_fine(trials: Sequence[Trial]) -> Finding:
    """Return step 5: the winner among the long trials.

    Args:
        trials: the fine ones; one at least went to its end.
    """
    best = best_of(trials)
    pruned = sum(trial.state != "finished" for trial in trials)
    return Finding(
        step=5,
        holds=True,
        says=f"trial {best.number} has the lowest held-out loss of {len(trials)}, {best.losses[-1]:.3f}, with "
        f"{describe(best.parameters)}; {pruned} were stopped early",
    )


def judge_curves(winner: Trial, space: Space) -> Finding:
    """Return step 6: what the winner's held-out loss says, over the steps and over the range.

    Args:
        winner: a fine trial that went to its end.
        space: the ranges before the first step.
    """
    told = [_widen(name, value, end) for name, value, end in _at_edges(winner.parameters, space)]
    if len(winner.losses) > 1 and winner.losses[-2] > 0:
        fall = 1.0 - winner.losses[-1] / winner.losses[-2]
        if fall > STILL_FALLING:
            told.append(
                f"the last third of the steps took {100 * fall:.0f} % off the loss: train longer, with --epochs"
            )
        elif fall < 0:
            told.append(f"the last third of the steps added {-100 * fall:.0f} % to the loss: train shorter")
    says = "; ".join(told) or "the best lies inside the range and its loss has settled: there is no more to gain here"
    return Finding(step=6, holds=True, says=says)


def _at_edges(best: Parameters, space: Space) -> Iterator[tuple[str, float, str]]:
    """Yield the numbers whose best value lies at an end of the range that can be widened."""
    for dimension in space:
        value, share = best[dimension.name], dimension.share(best[dimension.name])
        if share < NEAR_EDGE:
            yield dimension.name, value, "low"
        elif share > 1.0 - NEAR_EDGE and not (dimension.name == "lowest_rate_fraction" and dimension.high >= 1.0):
            yield dimension.name, value, "high"


def _widen(name: str, value: float, end: str) -> str:
    return f"{name} {value:g} is at the {end} end of its range: widen it, with --set tuning.{name}=[LOW,HIGH]"
