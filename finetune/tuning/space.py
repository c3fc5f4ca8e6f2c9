"""What is searched for, where, and what the six steps of a search for hyper-parameters say: pure decisions.

The steps are those of Stanford's lecture (CS231n, "Training neural networks"): the initial loss, a small sample that
must be fitted, learning rates that make the loss fall, a coarse search, a finer one, the curves.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from finetune.decide.choice import Choice
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.planning import make_plan
from finetune.errors import RecipeError
from finetune.recipe import TUNED, Recipe, Search
from finetune.value import FrozenModel

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


Parameters = dict[str, float]


class Dimension(FrozenModel):
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


class Finding(FrozenModel):
    """What one of the six steps says."""

    step: int
    """1 to 6."""
    holds: bool
    """Whether to go on."""
    says: str


class Trial(FrozenModel):
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


class Tuning(FrozenModel):
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


def rates_of(dimension: Dimension) -> tuple[float, ...]:
    """Return the learning rates that are tried before the search, ascending."""
    return tuple(dimension.at(number / (RATES - 1)) for number in range(RATES))


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
