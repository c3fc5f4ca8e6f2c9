"""Fit the prior to the grid's cells, and replay policies on them to measure their regret and cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import PoissonRegressor

from experiments.grid_cells import ALL, CANDIDATES, PROBE, Cell, joined
from finetune.decide.belief import Belief
from finetune.decide.contest import PRICE, TOLERANCE, Contest
from finetune.decide.decision import FALLBACK
from finetune.decide.prior import Prior, belief_of
from finetune.recipe import Preference

RIDGE = 0.02
"""Ridge penalty on the prior's coefficients (`alpha` of the regression)."""

SPREAD_OF_SETS = 0.1
"""Variance between sets of the log share of errors; it limits the weight of cells with many test errors."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a policy in a cell."""

    chosen: str
    """Name of the candidate, or of the mean of several, that becomes the final model."""
    cost: float
    """Cost in forward equivalents, including rejected trainings, but not the evidence, which every policy needs."""


Policy = Callable[[Cell], Decision]
"""A rule that decides for a cell."""


def fit_prior(cells: Sequence[Cell], uses: Sequence[int] = (0, 1, 2)) -> Prior:
    """Return the prior fitted to some cells: a Poisson regression of the candidates' test errors on the linear probe's.

    log(errors of candidate c / errors of the probe) = (a + a_c) + (b + b_c) . x with the features x of the cell. The
    ridge penalty pulls b, a_c and b_c to 0.

    Args:
        cells: the cells to fit.
        uses: indices of the features to use in addition to the constant; the slopes of the others are 0.
    """
    known = np.array([cell.known[1:] for cell in cells])[:, list(uses)].reshape(len(cells), len(uses))
    exposure = np.array([max(cell.errors[PROBE], 0.5) for cell in cells])
    ratios = np.array([_wrong(cell)[1:].sum(axis=1) for cell in cells]) / exposure[:, None]
    weights = 1.0 / (SPREAD_OF_SETS + 1.0 / exposure)
    weights /= [sum(other.set == cell.set for other in cells) for cell in cells]  # all sets have the same weight
    own = np.eye(len(CANDIDATES))
    # Columns: the common slopes, each candidate's constant, each candidate's slopes. With the same penalty on all, the
    # common slopes explain what they can, and the candidates' own slopes the rest.
    design = np.concatenate([np.concatenate([np.tile(x, (len(own), 1)), own, np.kron(own, x)], axis=1) for x in known])
    model = PoissonRegressor(alpha=RIDGE, max_iter=1000)
    model.fit(design, ratios.ravel(), sample_weight=np.repeat(weights, len(own)))
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
    """Return for each set, by name, the prior that is fitted to all other sets."""
    return {
        name: fit_prior([cell for cell in cells if cell.set != name], uses) for name in {cell.set for cell in cells}
    }


def _wrong(cell: Cell) -> NDArray[np.bool_]:
    """Return which test images (n_candidates, n_images) the final model gets wrong if each candidate is chosen.

    The linear probe comes first. If a candidate is rejected, another one becomes the final model.
    """
    return np.array([~cell.correct[finish(cell, [name]).chosen] for name in ALL])


def _chance(cell: Cell, expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the part of the covariance between candidates that is due to the draw of the test images.

    The covariance (n_candidates, n_candidates) is that of ratio / expected. The same images are hard for all
    candidates, so differences between candidates vary less than the ratios do.

    Args:
        cell: the cell.
        expected: expected ratio of each candidate's errors to the probe's (n_candidates,).
    """
    wrong = _wrong(cell).astype(np.float64)
    exposure = max(cell.errors[PROBE], 0.5)
    # Delta method: the influence of an image on W_c / (expected_c W_0), with W the numbers of wrong images.
    influence = wrong[1:] / (expected * exposure)[:, None] - wrong[0] / exposure
    chance: NDArray[np.float64] = cell.num_test * np.cov(influence)
    return chance


def _without(spread: NDArray[np.float64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a covariance minus the part due to chance; at least a quarter of the variance remains in any direction."""
    # With spread = R R', the chance is whitened to R^-1 C R^-T; its eigenvalues are shares of the spread's variance,
    # and are clipped to .75 before they are subtracted. The small diagonal keeps R invertible for equal candidates.
    root = np.linalg.cholesky(spread + 1e-6 * np.eye(len(spread)))
    whitened = np.linalg.solve(root, np.linalg.solve(root, chance).T)
    values, vectors = np.linalg.eigh(whitened)
    root = root @ vectors * np.sqrt(1.0 - np.clip(values, 0.0, 0.75))
    less: NDArray[np.float64] = root @ root.T
    return less


def always(name: str) -> Policy:
    """Return the policy that always trains the same candidate."""
    return lambda cell: Decision(name, cell.costs[name])


def four_quadrants(cell: Cell) -> Decision:
    """Decide by size and similarity alone, by the textbook rule of four quadrants."""
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
    uses: Sequence[int] = (0, 1, 2),
    averages: bool = True,
) -> Policy:
    """Return the selector as a policy, with a prior that is fitted without the set of the cell.

    Args:
        cells: all cells.
        prefer: the preference of the user.
        uses: indices of the prior's features to use.
        averages: whether it may average two candidates.
    """
    priors = priors_without(cells, uses)

    def decide(cell: Cell) -> Decision:
        belief = belief_about(cell, priors[cell.set])
        costs = tuple(cell.costs[name] for name in ALL)
        contest = Contest(names=ALL, belief=belief, costs=costs, tolerance=TOLERANCE[prefer])
        place = contest.pick()
        other = contest.partner(place, PRICE)
        if averages and prefer == "accuracy" and other is not None:
            return finish(cell, [ALL[place], ALL[other]])
        return finish(cell, [ALL[place]])

    return decide


def finish(cell: Cell, names: Sequence[str]) -> Decision:
    """Return the decision that results when candidates are trained to the end.

    Rejected candidates are left out. If all of them are rejected, the fallback is trained.

    Args:
        cell: the cell.
        names: the candidates to train; several are averaged.
    """
    spent = sum(cell.costs[name] for name in names)
    good = [name for name in names if name not in cell.rejected]
    if not good and FALLBACK not in names:
        spent += cell.costs[FALLBACK]
        good = [FALLBACK]
    return Decision(joined(good) if good else PROBE, spent)


def belief_about(cell: Cell, prior: Prior) -> Belief:
    """Return the belief about the accuracies of a cell's candidates before any of them is trained."""
    probe_error = max(1.0 - cell.evidence["probe_accuracy"], 0.002)
    return belief_of(prior, cell.known, probe_error, cell.evidence["probe_accuracy_error"])


@dataclass(frozen=True, slots=True)
class Score:
    """Regret and cost of a policy over cells."""

    regrets: dict[str, float]
    """Mean regret by set, in 0 .. 1: the test accuracy of the best candidate minus that of the chosen one."""
    cost: float
    """Cost as a multiple of always training all layers."""
    of_all: float
    """Cost as a share of trying every candidate."""
    of_chosen: float
    """Cost as a multiple of training the chosen candidates alone."""

    @property
    def regret(self) -> float:
        """Mean regret over the sets."""
        return float(np.mean(list(self.regrets.values())))

    @property
    def error(self) -> float:
        """Standard error of the mean regret over the sets."""
        values = list(self.regrets.values())
        return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def evaluate(cells: Sequence[Cell], policy: Policy) -> Score:
    """Return the regret and the cost of a policy over cells.

    The regret is relative to the candidate with the best mean accuracy over the seeds. The chosen candidate is scored
    on the other seeds if there are any.
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
        cell.costs[name]
        for cell, decision in zip(cells, decisions, strict=True)
        for name in decision.chosen.split(" + ")
    )
    return Score(
        regrets={name: float(np.mean(regrets)) for name, regrets in by_set.items()},
        cost=spent / sum(cell.costs["full_near"] for cell in cells),
        of_all=spent / sum(sum(cell.costs.values()) for cell in cells),
        of_chosen=spent / alone if alone else 1.0,
    )
