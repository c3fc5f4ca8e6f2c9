"""What is searched for, where, and what the six steps of a search for hyper-parameters say: pure decisions.

The steps are those of Stanford's lecture (CS231n, "Training neural networks"): the initial loss, a small sample that
must be fitted, learning rates that make the loss fall, a coarse search, a finer one, the curves.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from finetune.errors import RecipeError
from finetune.evidence import Evidence
from finetune.plan import Plan
from finetune.planning import make_plan
from finetune.recipe import TUNED, Recipe, Search
from finetune.strategy import Choice
from finetune.value import Value

TRIALS = 20

COARSE_SHARE = 0.6
"""Of the trials that are shorter and spread over the whole range; the others are whole and near the best of them."""

REFINED = 0.5
"""Width of a refined range over that of the range before, in logarithms."""

RATE_FACTOR = 8.0
"""How far the learning rate is searched on either side of the chosen candidate's."""

RANGES = {"lowest_rate_fraction": (0.1, 1.0), "weight_decay": (1e-3, 0.3), "label_smoothing": (0.01, 0.2)}
"""Where the other numbers are searched by default."""

RATES = 4
"""Learning rates that are tried before the search."""

RATE_STEPS = 100
"""Most steps within which the loss must fall: all of the plan's where those are fewer."""

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

Parameters = dict[str, float]


class Dimension(Value):
    """A number that is searched for, on a logarithmic scale."""

    name: str
    """A key of the recipe's section `training`."""
    low: float
    high: float

    def at(self, share: float) -> float:
        """Return the value at a share (0 .. 1) of the way from the low end to the high one, to four digits."""
        return self.rounded(math.exp((1.0 - share) * math.log(self.low) + share * math.log(self.high)))

    def rounded(self, value: float) -> float:
        """Return a value to four digits, within the range."""
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def share(self, value: float) -> float:
        """Return where a value lies: 0 at the low end, 1 at the high one."""
        return math.log(value / self.low) / math.log(self.high / self.low)


Space = tuple[Dimension, ...]


class Finding(Value):
    """What one of the six steps says."""

    step: int
    """1 to 6."""
    holds: bool
    """Whether to go on."""
    says: str


class Trial(Value):
    """One training of a search."""

    number: int
    """Of its folder below `trials`."""
    stage: Literal["coarse", "fine"]
    parameters: Parameters
    state: Literal["finished", "pruned", "diverged"]
    """`finished` is to the last rung in the coarse stage, to the end in the fine one."""
    losses: tuple[float, ...]
    """Held-out log-loss at each rung, and at the end, as far as it came; temperatures are fitted."""
    accuracy: float
    """Held-out, by the metric that chooses, where it was last looked at."""
    seconds: float


class Tuning(Value):
    """A search: what it looks for, what its steps say, and its trials."""

    name: str
    """Of the search in the storage."""
    worker: str
    """Whose trials this folder holds."""
    search: Search
    num_trials: int
    """Asked for, coarse and fine ones together."""
    asked: Space
    """The ranges before the first step."""
    space: Space
    """Those that are searched: of learning rates, the ones with which the loss falls."""
    findings: tuple[Finding, ...] = ()
    trials: tuple[Trial, ...] = ()
    winner: int = -1
    """Number of the trial that ships; -1 while nothing is decided."""
    seconds: float = 0.0
    """Spent so far, over all interruptions."""

    @property
    def num_coarse(self) -> int:
        """How many of the trials are coarse: at least one, and less than all."""
        return min(max(1, round(COARSE_SHARE * self.num_trials)), self.num_trials - 1)

    @property
    def num_fine(self) -> int:
        """How many of the trials are fine."""
        return self.num_trials - self.num_coarse


def begin_tuning(recipe: Recipe, choice: Choice, plan: Plan, name: str, worker: str) -> Tuning:
    """Return the search that a recipe asks for, before its first step.

    Args:
        recipe: what is asked.
        choice: whose candidate is tuned.
        plan: of that candidate.
        name: of the search in the storage.
        worker: who does its trials here.

    Raises:
        RecipeError: there is nothing to search for.
    """
    asked, space = recipe.tuning, make_space(recipe, choice, plan)
    return Tuning(
        name=name,
        worker=worker,
        search=asked.search or "tpe",
        num_trials=asked.trials or TRIALS,
        asked=space,
        space=space,
    )


def make_space(recipe: Recipe, choice: Choice, plan: Plan) -> Space:
    """Return what is searched for, and where: what the recipe gives ranges for, else all that it leaves open.

    Raises:
        RecipeError: there is nothing to search for.
    """
    if not plan.steps:
        raise RecipeError(
            f"there is nothing to tune: {choice.strategy} takes no steps, and its only number was cross-validated; "
            f"give another strategy, such as --strategy partial, or --steps"
        )
    ranges = recipe.tuning.ranges
    if not ranges:
        rate = choice.chosen.learning_rate
        defaults = {"learning_rate": (rate / RATE_FACTOR, min(rate * RATE_FACTOR, 10.0)), **RANGES}
        if sum(stage.learning_rate > 0 for stage in plan.stages) < 2:
            del defaults["lowest_rate_fraction"]  # there is but one
        ranges = {name: ends for name, ends in defaults.items() if getattr(recipe.training, name) is None}
    if not ranges:
        raise RecipeError(
            f"there is nothing to tune: the recipe fixes {', '.join(f'training.{name}' for name in TUNED)}; leave one "
            f"of them out"
        )
    return tuple(Dimension(name=name, low=ranges[name][0], high=ranges[name][1]) for name in TUNED if name in ranges)


def grid(space: Space, count: int, seed: int) -> list[Parameters]:
    """Return at most `count` points of a grid, in a random order, so that a part of them is spread, too.

    Points are added to one dimension after the other while they fit; one point is the middle.
    """
    points = [1] * len(space)
    for place in _filling(points, count):
        points[place] += 1
    shares = [np.linspace(0.0, 1.0, number) if number > 1 else np.array([0.5]) for number in points]
    mesh = np.stack(np.meshgrid(*shares, indexing="ij"), axis=-1).reshape(-1, len(space))
    mesh = np.random.default_rng(seed).permutation(mesh)
    return [_point(space, row.tolist()) for row in mesh]


def _filling(points: list[int], count: int) -> list[int]:
    """Return the dimensions to which a point is added, one after the other, while at most `count` are there in all."""
    points = list(points)
    places: list[int] = []
    while True:
        place = min(range(len(points)), key=lambda number: points[number])
        product = math.prod(points) // points[place] * (points[place] + 1)
        if product > count:
            return places
        points[place] += 1
        places.append(place)


def draw(space: Space, *seeds: int) -> Parameters:
    """Return a random point, log-uniform in each dimension (Bergstra & Bengio 2012)."""
    return _point(space, np.random.default_rng(seeds).uniform(size=len(space)).tolist())


def _point(space: Space, shares: Sequence[float]) -> Parameters:
    return {dimension.name: dimension.at(share) for dimension, share in zip(space, shares, strict=True)}


def refine(space: Space, best: Parameters) -> Space:
    """Return a narrower space around a point, within the space."""
    refined = []
    for dimension in space:
        centre = dimension.share(best[dimension.name])
        low, high = max(0.0, centre - REFINED / 2), min(1.0, centre + REFINED / 2)
        refined.append(dimension.changed(low=dimension.at(low), high=dimension.at(high)))
    return tuple(refined)


def with_parameters(recipe: Recipe, choice: Choice, parameters: Parameters) -> tuple[Recipe, Choice]:
    """Return a recipe and a choice in which the numbers of a trial are fixed."""
    tuning = recipe.tuning.changed(**dict.fromkeys(TUNED))  # what is fixed is no more searched for
    training = recipe.training.changed(**parameters)
    rates = {name: parameters[name] for name in ("learning_rate", "lowest_rate_fraction") if name in parameters}
    chosen = choice.chosen.changed(**rates)
    return (
        recipe.changed(training=training, tuning=tuning),
        choice.changed(candidates=(chosen, *choice.candidates[1:])),
    )


def plan_of_trial(recipe: Recipe, evidence: Evidence, choice: Choice, parameters: Parameters) -> Plan:
    """Return the plan of a trial, with its numbers.

    Raises:
        RecipeError: numbers that do not fit together.
    """
    own, chosen = with_parameters(recipe, choice, parameters)
    return make_plan(own, evidence, chosen)


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


class RateTrial(Value):
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


def rates_of(dimension: Dimension) -> tuple[float, ...]:
    """Return the learning rates that are tried before the search, ascending."""
    return tuple(dimension.at(number / (RATES - 1)) for number in range(RATES))


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


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the lowest held-out loss of those that finished, the earlier one of two.

    Raises:
        ValueError: none finished.
    """
    return min(
        (trial for trial in trials if trial.state == "finished"), key=lambda trial: (trial.losses[-1], trial.number)
    )


def describe(parameters: Parameters) -> str:
    """Return the numbers of a trial, for people.

    >>> describe({"learning_rate": 0.002, "weight_decay": 0.01})
    'learning_rate 0.002, weight_decay 0.01'
    """
    return ", ".join(f"{name} {value:g}" for name, value in parameters.items())
