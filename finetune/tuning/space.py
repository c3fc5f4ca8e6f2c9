"""Define the ranges of a search, draw points from them, and make the plan of a point.

All ranges are logarithmic: a learning rate that doubles changes a training about equally at 1e-4 and at 1e-2.
"""

import math
from collections.abc import Sequence

import numpy as np

from finetune.decide.choice import Choice
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.planning import make_plan
from finetune.errors import RecipeError
from finetune.recipe import Recipe
from finetune.recipe_tuning import TUNED
from finetune.value import FrozenModel

REFINED_WIDTH = 0.5
"""Width of a refined range as a share of the original range, both in logarithms."""

RATE_FACTOR = 8.0
"""Ratio of the highest learning rate of the default range to the chosen candidate's, and of that rate to the lowest."""

RANGES = {"lowest_rate_fraction": (0.1, 1.0), "weight_decay": (1e-3, 0.3), "label_smoothing": (0.01, 0.2)}
"""Default ranges of the parameters other than the learning rate."""

RATES = 4
"""Number of learning rates that are tried before the search."""


Parameters = dict[str, float]
"""Values of the searched parameters, by their keys in the recipe's section `training`."""


class Dimension(FrozenModel):
    """The range of a parameter, on a logarithmic scale."""

    name: str
    """Key of the parameter in the recipe's section `training`."""
    low: float
    """Lowest value of the parameter."""
    high: float
    """Highest value of the parameter."""

    def at(self, share: float) -> float:
        """Return the value at a share (0 to 1) of the logarithmic distance from `low` to `high`, to four digits."""
        return self.rounded(math.exp((1.0 - share) * math.log(self.low) + share * math.log(self.high)))

    def rounded(self, value: float) -> float:
        """Return a value rounded to four digits and clipped to the range."""
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def share(self, value: float) -> float:
        """Return the logarithmic position of a value: 0 at `low`, 1 at `high`."""
        return math.log(value / self.low) / math.log(self.high / self.low)


Space = tuple[Dimension, ...]
"""Ranges of all parameters that are searched for."""


def make_space(recipe: Recipe, choice: Choice, plan: Plan) -> Space:
    """Return the ranges to search: those that the recipe gives, else defaults for all parameters that it leaves open.

    Raises:
        RecipeError: the strategy takes no steps, or the recipe fixes all parameters.
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
            del defaults["lowest_rate_fraction"]  # a single trained stage has a single rate
        ranges = {name: ends for name, ends in defaults.items() if getattr(recipe.training, name) is None}
    if not ranges:
        raise RecipeError(
            f"there is nothing to tune: the recipe fixes {', '.join(f'training.{name}' for name in TUNED)}; leave one "
            f"of them out"
        )
    return tuple(Dimension(name=name, low=ranges[name][0], high=ranges[name][1]) for name in TUNED if name in ranges)


def grid(space: Space, count: int, seed: int) -> list[Parameters]:
    """Return at most `count` points of a grid in a random order, so that the first ones are spread over the space, too.

    Points are added to one dimension after another while the grid has at most `count` points. A dimension with a single
    point gets its middle.
    """
    points = [1] * len(space)
    for place in _filling(points, count):
        points[place] += 1
    shares = [np.linspace(0.0, 1.0, number) if number > 1 else np.array([0.5]) for number in points]
    mesh = np.stack(np.meshgrid(*shares, indexing="ij"), axis=-1).reshape(-1, len(space))
    mesh = np.random.default_rng(seed).permutation(mesh)
    return [_point(space, row.tolist()) for row in mesh]


def _filling(points: list[int], count: int) -> list[int]:
    """Return the dimensions that get one more point, in their order, until the grid would exceed `count` points."""
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
    """Return the random point of these seeds, log-uniform in each dimension (Bergstra & Bengio 2012)."""
    return _point(space, np.random.default_rng(seeds).uniform(size=len(space)).tolist())


def _point(space: Space, shares: Sequence[float]) -> Parameters:
    return {dimension.name: dimension.at(share) for dimension, share in zip(space, shares, strict=True)}


def refine(space: Space, best: Parameters) -> Space:
    """Return narrower ranges, centred on a point and clipped to the given ranges."""
    refined = []
    for dimension in space:
        centre = dimension.share(best[dimension.name])
        low, high = max(0.0, centre - REFINED_WIDTH / 2), min(1.0, centre + REFINED_WIDTH / 2)
        refined.append(dimension.changed(low=dimension.at(low), high=dimension.at(high)))
    return tuple(refined)


def rates_of(dimension: Dimension) -> tuple[float, ...]:
    """Return the learning rates that are tried before the search, ascending."""
    return tuple(dimension.at(number / (RATES - 1)) for number in range(RATES))


def with_parameters(recipe: Recipe, choice: Choice, parameters: Parameters) -> tuple[Recipe, Choice]:
    """Return a recipe and a choice in which the parameters of a trial are fixed."""
    tuning = recipe.tuning.changed(**dict.fromkeys(TUNED))  # a fixed parameter no longer has a range
    training = recipe.training.changed(**parameters)
    rates = {name: parameters[name] for name in ("learning_rate", "lowest_rate_fraction") if name in parameters}
    chosen = choice.chosen.changed(**rates)
    return (
        recipe.changed(training=training, tuning=tuning),
        choice.changed(candidates=(chosen, *choice.candidates[1:])),
    )


def plan_of_trial(recipe: Recipe, evidence: Evidence, choice: Choice, parameters: Parameters) -> Plan:
    """Return the plan of a trial.

    Raises:
        RecipeError: the parameters contradict the recipe or each other.
    """
    fixed, chosen = with_parameters(recipe, choice, parameters)
    return make_plan(fixed, evidence, chosen)


def describe(parameters: Parameters) -> str:
    """Return the parameters of a trial in words.

    >>> describe({"learning_rate": 0.002, "weight_decay": 0.01})
    'learning_rate 0.002, weight_decay 0.01'
    """
    return ", ".join(f"{name} {value:g}" for name, value in parameters.items())
