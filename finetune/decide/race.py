"""Race candidates: train some for part of their steps, update the belief, drop the unlikely."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finetune.decide.contest import finalists

if TYPE_CHECKING:
    from numpy.typing import NDArray
from finetune.decide.belief import MEASURED, UNFINISHED, Belief, update

DISCREPANCY = (0.02, 0.012)
"""Standard deviation of how differently candidates go on from each rung, in accuracy."""


SPREAD = 0.06
"""Variance over images of how the probabilities of two candidates differ, before it is known."""


def expected_gain(belief: Belief, raced: Sequence[int], noise: "NDArray[np.float64]") -> float:
    """Return how much more accurate the best is expected to be after a measurement than before it (the knowledge
    gradient, Frazier et al. 2008).

    Args:
        belief: before.
        raced: which candidates would be measured.
        noise: (n_raced, n_raced), the covariance of what would be measured.
    """
    cross = belief.covariance[:, list(raced)]
    spread = cross @ np.linalg.solve(cross[list(raced)] + noise, cross.T)
    later = Belief(mean=belief.mean, covariance=(spread + spread.T) / 2)
    return float(later.draws().max(axis=1).mean() - belief.mean.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """How a race went."""

    belief: Belief
    """About all candidates, afterwards."""
    left: tuple[tuple[int, ...], ...]
    """Who was left before it and after each rung; the first of the last ones won."""
    looks: "tuple[NDArray[np.float64], ...]"
    """What was seen at each rung."""

    @property
    def winner(self) -> int:
        """The candidate to train to the end."""
        return self.left[-1][0]


def compete(
    belief: Belief,
    costs: Sequence[float],
    tolerance: float,
    entered: Sequence[int],
    look: "Callable[[int, list[int]], NDArray[np.float64]]",
) -> Race:
    """Return how a race goes: at each rung those leave that will hardly be picked, until one is left or no rung is.

    Args:
        belief: about all candidates, before.
        costs: of all.
        tolerance: in accuracy.
        entered: who races; the linear probe may be among them and is not looked at.
        look: trains some candidates up to a rung (its number is given) and returns the probability (n, n_images) of
            each held-out image's class.
    """
    left, looks = [tuple(entered)], []
    for rung, discrepancy in enumerate(DISCREPANCY):
        trained = [place for place in left[-1] if place != MEASURED]
        if len(trained) < 2:
            break
        looks.append(look(rung, trained))
        belief = update(belief, trained, looks[-1], discrepancy)
        left.append(finalists(belief, costs, tolerance, left[-1]))
        if len(left[-1]) == 1:
            break
    return Race(belief=belief, left=tuple(left), looks=tuple(looks))


def is_worth_racing(belief: Belief, raced: Sequence[int], num_held: int, price: float) -> bool:
    """Return whether looking at the first rung is expected to gain enough.

    Args:
        belief: before.
        raced: who would race, without the linear probe.
        num_held: images that they would be judged on.
        price: least gain, in accuracy.
    """
    if len(raced) < 2:
        return False
    noise = (SPREAD / num_held + DISCREPANCY[0] ** 2) * np.eye(len(raced)) + UNFINISHED**2
    return expected_gain(belief, raced, noise) >= price
