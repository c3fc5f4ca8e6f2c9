"""The prior of the grid's cells, the policies that are compared on them, and how they fare."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import PoissonRegressor

from experiments.grid_cells import ALL, CANDIDATES, PROBE, Cell, joined
from finetune.decide.belief import PROBE_PLACE, Belief
from finetune.decide.contest import PRICE, TOLERANCE, Contest
from finetune.decide.decision import FALLBACK
from finetune.decide.prior import Prior, belief_of
from finetune.decide.race import compete, is_worth_racing
from finetune.recipe import Preference

RIDGE = 0.02
"""Pull of the prior's coefficients to 0 (`alpha` of the regression)."""

SPREAD_OF_SETS = 0.1
"""Variance of the log of a share of errors that remains from set to set: cells with many test errors weigh no more."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy makes of a cell."""

    chosen: str
    cost: float
    """Forward equivalents, with what the decision itself took; the evidence is not counted: every policy has it."""
    raced: bool = False


Policy = Callable[[Cell], Decision]


def fit_prior(cells: Sequence[Cell], uses: Sequence[int] = (0, 1, 2)) -> Prior:
    """Return the prior of some cells: a Poisson regression of the test errors on the linear probe's, in which all
    candidates have much in common.

    Args:
        cells: what was trained.
        uses: which features, besides the constant; the slopes of the others are 0.
    """
    known = np.array([cell.known[1:] for cell in cells])[:, list(uses)].reshape(len(cells), len(uses))
    exposure = np.array([max(cell.errors[PROBE], 0.5) for cell in cells])
    ratios = np.array([_wrong(cell)[1:].sum(axis=1) for cell in cells]) / exposure[:, None]
    weights = 1.0 / (SPREAD_OF_SETS + 1.0 / exposure)
    weights /= [sum(other.set == cell.set for other in cells) for cell in cells]  # sets weigh alike
    own = np.eye(len(CANDIDATES))
    # All are pulled to 0 alike: what candidates share explains what it can, and what each has of its own the rest.
    apart = np.concatenate([np.concatenate([np.tile(x, (len(own), 1)), own, np.kron(own, x)], axis=1) for x in known])
    model = PoissonRegressor(alpha=RIDGE, max_iter=1000)
    model.fit(apart, ratios.ravel(), sample_weight=np.repeat(weights, len(own)))
    count = len(uses)
    coefficients = np.zeros((len(own), 4))
    coefficients[:, 0] = model.intercept_ + model.coef_[count : count + len(own)]
    own_slopes = model.coef_[count + len(own) :].reshape(len(own), count)
    coefficients[:, [1 + place for place in uses]] = model.coef_[:count] + own_slopes
    expected = np.exp(np.array([cell.known for cell in cells]) @ coefficients.T)
    left = ratios / expected - 1.0
    chance = np.average([_chance(*each) for each in zip(cells, expected, strict=True)], axis=0, weights=weights)
    spread = (left.T * weights) @ left / weights.sum() * len(cells) / max(len(cells) - 1 - count, 1)
    return Prior(
        candidates=CANDIDATES,
        coefficients=tuple(map(tuple, coefficients.round(4).tolist())),
        covariance=tuple(map(tuple, _without(spread, chance).round(5).tolist())),
    )


def priors_without(cells: Sequence[Cell], uses: Sequence[int] = (0, 1, 2)) -> dict[str, Prior]:
    """Return for each set the prior of all others."""
    return {
        name: fit_prior([cell for cell in cells if cell.set != name], uses) for name in {cell.set for cell in cells}
    }


def _wrong(cell: Cell) -> NDArray[np.bool_]:
    """Return which test images (n_candidates, n_images) are wrong with what ships where each candidate is chosen, the
    linear probe first."""
    return np.array([~cell.correct[finished(cell, [name]).chosen] for name in ALL])


def _chance(cell: Cell, expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance of a cell's shares of errors over the expected ones that is chance: other test images would
    have given others. The same images are hard for all candidates, so that differences vary less than shares do."""
    wrong = _wrong(cell).astype(np.float64)
    exposure = max(cell.errors[PROBE], 0.5)
    influence = wrong[1:] / (expected * exposure)[:, None] - wrong[0] / exposure
    chance: NDArray[np.float64] = cell.num_test * np.cov(influence)
    return chance


def _without(spread: NDArray[np.float64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a covariance less a smaller one, of which at least a quarter stays, of sums and differences as well."""
    root = np.linalg.cholesky(spread + 1e-6 * np.eye(len(spread)))  # two candidates may be alike
    whitened = np.linalg.solve(root, np.linalg.solve(root, chance).T)
    values, vectors = np.linalg.eigh(whitened)
    root = root @ vectors * np.sqrt(1.0 - np.clip(values, 0.0, 0.75))
    less: NDArray[np.float64] = root @ root.T
    return less


def always(name: str) -> Policy:
    """Return the policy that trains one candidate whatever the evidence."""
    return lambda cell: Decision(name, cell.costs[name][-1])


def four_quadrants(cell: Cell) -> Decision:
    """Decide by size and similarity alone, as lectures have it."""
    near, small = cell.evidence["domain_similarity"] >= 0.5, cell.evidence["num_images"] < 1000
    name = {(True, True): PROBE, (True, False): "partial", (False, True): "partial", (False, False): "full_far"}[
        near, small
    ]
    return always(name)(cell)


def size_only(cell: Cell) -> Decision:
    """Decide by size alone."""
    return always("partial" if cell.evidence["num_images"] < 1000 else "full_near")(cell)


def selector(
    cells: Sequence[Cell],
    prefer: Preference,
    races: bool = True,
    uses: Sequence[int] = (0, 1, 2),
    averages: bool = True,
) -> Policy:
    """Return the selector, its prior fitted without the set that it decides for."""
    priors = priors_without(cells, uses)

    def decide(cell: Cell) -> Decision:
        belief = belief_about(cell, priors[cell.set])
        contest = Contest(names=ALL, belief=belief, costs=tuple(cell.final_costs), tolerance=TOLERANCE[prefer])
        left = contest.finalists()
        raced = [place for place in left if place != PROBE_PLACE]
        other = contest.partner(left[0], PRICE[prefer])
        if averages and prefer == "accuracy" and other is not None:
            return finished(cell, [ALL[left[0]], ALL[other]])
        can_race = races and cell.was_held_out
        if not can_race or not is_worth_racing(belief, raced, len(cell.right[PROBE][-1]), PRICE[prefer]):
            return finished(cell, [ALL[left[0]]])
        ended = compete(
            contest,
            left,
            lambda rung, places: np.array([cell.right[ALL[place]][rung] for place in places]),
        )
        spent = {
            place: cell.costs[ALL[place]][rung]
            for rung in range(len(ended.evaluations))
            for place in ended.left[rung]
            if place != PROBE_PLACE
        }
        spent.pop(ended.winner, None)
        return finished(cell, [ALL[ended.winner]], sum(spent.values()), raced=True)

    return decide


def finished(cell: Cell, names: Sequence[str], spent: float = 0.0, raced: bool = False) -> Decision:
    """Return what comes of candidates that are trained to the end: those that did harm are left out, and where all did,
    another one is trained."""
    spent += sum(cell.costs[name][-1] for name in names)
    good = [name for name in names if name not in cell.harmed]
    if not good and FALLBACK not in names:
        spent += cell.costs[FALLBACK][-1]
        good = [FALLBACK]
    return Decision(joined(good) if good else PROBE, spent, raced)


def belief_about(cell: Cell, prior: Prior) -> Belief:
    """Return what is believed of a cell's candidates before any is trained."""
    probe_error = max(1.0 - cell.evidence["probe_accuracy"], 0.002)
    return belief_of(prior, cell.known, probe_error, cell.evidence["probe_accuracy_error"])


@dataclass(frozen=True, slots=True)
class Score:
    """How a policy fares over cells."""

    regrets: dict[str, float]
    """By set: the mean over its cells of the best candidate's accuracy less the chosen one's."""
    cost: float
    """Over that of training all layers always."""
    of_all: float
    """Over that of trying everything."""
    of_chosen: float
    """Over that of the chosen ones alone."""
    raced: float
    """Share of the cells with a race."""

    @property
    def regret(self) -> float:
        """The mean over sets."""
        return float(np.mean(list(self.regrets.values())))

    @property
    def error(self) -> float:
        """Its standard error."""
        values = list(self.regrets.values())
        return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def judge(cells: Sequence[Cell], policy: Policy) -> Score:
    """Return a policy's regret against each cell's best candidate (its mean over seeds), and its cost.

    The chosen candidate is scored on the other seeds, where there are some.
    """
    by_set: dict[str, list[float]] = {}
    decisions = [policy(cell) for cell in cells]
    for cell, decision in zip(cells, decisions, strict=True):
        same = [other for other in cells if (other.set, other.size) == (cell.set, cell.size)]
        best = max(ALL, key=lambda name: np.mean([other.accuracy[name] for other in same]))
        scored = [other for other in same if other.seed != cell.seed] or same
        by_set.setdefault(cell.set, []).append(
            float(np.mean([other.accuracy[best] - other.accuracy[decision.chosen] for other in scored]))
        )
    spent = sum(decision.cost for decision in decisions)
    alone = sum(
        cell.costs[name][-1]
        for cell, decision in zip(cells, decisions, strict=True)
        for name in decision.chosen.split(" + ")
    )
    return Score(
        regrets={name: float(np.mean(regrets)) for name, regrets in by_set.items()},
        cost=spent / sum(cell.costs["full_near"][-1] for cell in cells),
        of_all=spent / sum(sum(cell.final_costs) for cell in cells),
        of_chosen=spent / alone if alone else 1.0,
        raced=float(np.mean([decision.raced for decision in decisions])),
    )
