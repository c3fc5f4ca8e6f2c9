"""Fit the prior to the grid's cells, and replay policies on them to measure their regret and cost."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t
from sklearn.linear_model import HuberRegressor

from experiments.grid_cells import BELIEVED, CONSIDERED, PROBE, SHIFTED, Cell, joined
from finetune.decide.belief import Belief
from finetune.decide.contest import Contest
from finetune.decide.decision import FALLBACK, PROBE_SUFFICES
from finetune.decide.prior import FREEDOM, Prior, belief_of
from finetune.recipe import Preference

RIDGE = 5.0
"""Ridge penalty on slopes (`alpha` of the regressions, where every set has the weight 1). With a residual of about
0.15, it expects slopes of about 0.15 in log errors: over sixteen sets, candidates differ little in how they depend on
size and similarity."""

REFERENCE = "full_near"
"""Candidate that the others are compared with in each cell; it was trained in all of them."""

FORWARD_SECONDS = 1 / 600
"""Time of a forward equivalent on one core of the machine of the grid, in seconds."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a policy in a cell."""

    chosen: str
    """Name of the candidate, or of the mean of two, that becomes the final model."""
    cost: float
    """Cost in forward equivalents, including rejected trainings, but not the evidence, which every policy needs."""


Policy = Callable[[Cell], Decision]
"""A rule that decides for a cell."""


def fit_prior(cells: Sequence[Cell], uses: Sequence[int] = (0, 1)) -> Prior:
    """Return the prior fitted to some cells.

    Robust regressions (Huber 1964) on the features x of the cells give the coefficients: of the linear probe and of
    `REFERENCE`, log(test errors / cross-validated errors of the probe) = a + b . x; of every other candidate, its
    difference from `REFERENCE` in the same cell, because not every candidate was trained in every cell. Every set has
    the same weight. The scales of the deviations are medians over cells, so that a few unusual sets do not set them;
    sets with unseen groups in the test do not count, because nothing measured on the training images shows that shift.

    Args:
        cells: the cells to fit.
        uses: indices of the features to use in addition to the constant; the slopes of the others are 0.
    """
    coefficients = np.zeros((len(BELIEVED), 3))
    columns = [0, *(1 + place for place in uses)]
    for place, name in sorted(enumerate(BELIEVED), key=lambda each: each[1] != REFERENCE):
        trained = [cell for cell in cells if name in cell.accuracy]
        logs = np.array([_log_share(cell, name, 0.0) for cell in trained])
        is_level = name in {PROBE, REFERENCE}
        if not is_level:
            logs -= [_log_share(cell, REFERENCE, 0.0) for cell in trained]
            coefficients[place] = coefficients[BELIEVED.index(REFERENCE)]
        known = np.array([cell.known for cell in trained])[:, columns[1:]]
        coefficients[place, columns] += _regress(known, logs, [cell.set for cell in trained])
    depth = coefficients[0, 0] - coefficients[:, 0]
    depth /= depth[1:].mean()
    shift, gain, alone = _scales([cell for cell in cells if cell.set not in SHIFTED], coefficients, depth)
    return Prior(
        candidates=BELIEVED,
        coefficients=tuple(map(tuple, coefficients.round(4).tolist())),
        depth=tuple(depth.round(3).tolist()),
        shift=round(shift, 4),
        gain=round(gain, 4),
        own=round(alone, 4),
    )


def _regress(known: NDArray[np.float64], logs: NDArray[np.float64], sets: Sequence[str]) -> NDArray[np.float64]:
    """Return the intercept and the slopes of a robust regression in which every set has the same weight.

    Args:
        known: features of each cell (n_cells, n_features).
        logs: what is to be explained (n_cells,).
        sets: name of each cell's set.
    """
    per_set = Counter(sets)
    weights = np.array([1.0 / per_set[name] for name in sets])
    count = known.shape[1]
    if not count:  # the regression needs a feature
        known = np.zeros((len(known), 1))
    model = HuberRegressor(alpha=RIDGE, max_iter=2000).fit(known, logs, sample_weight=weights)
    return np.array([model.intercept_, *model.coef_][: count + 1])


def _scales(
    cells: Sequence[Cell], coefficients: NDArray[np.float64], depth: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return the scales of the deviations: of the shift, of the gain of fine-tuning, and of single candidates."""
    per_set = Counter(cell.set for cell in cells)
    shifts, gains, alone = [], [], []
    for cell in cells:
        weight = 1.0 / per_set[cell.set]
        places = [place for place, name in enumerate(BELIEVED) if place and name in cell.accuracy]
        known = np.array(cell.known)
        deviation = {
            place: _log_share(cell, BELIEVED[place], float(coefficients[place] @ known)) for place in (0, *places)
        }
        # Least squares of deviation_c - deviation_probe = depth_c g over the candidates c; what is left is their own.
        behind = np.array([deviation[place] - deviation[0] for place in places])
        gain = float(depth[places] @ behind / (depth[places] @ depth[places]))
        shifts.append((deviation[0], weight))
        gains.append((gain, weight))
        freedom = math.sqrt(len(places) / max(len(places) - 1, 1))
        alone += [(float(each) * freedom, weight / len(places)) for each in behind - gain * depth[places]]
    return _scale(shifts), _scale(gains), _scale(alone)


def _log_share(cell: Cell, name: str, expected: float) -> float:
    """Return the logarithm of a candidate's test errors over the errors that are expected.

    Args:
        cell: the cell.
        name: name of the candidate.
        expected: logarithm of the expected multiple of the linear probe's cross-validated errors.
    """
    # Half an error is added to both, because the logarithm of 0 errors is infinite.
    half = 0.5 / cell.num_test
    return math.log((1.0 - final_accuracy(cell, name) + half) / (cell.probe_error * math.exp(expected) + half))


def _scale(values: Sequence[tuple[float, float]]) -> float:
    """Return the scale of the t distribution whose median absolute value is the weighted one of some values."""
    sizes, weights = np.abs([value for value, _ in values]), np.array([weight for _, weight in values])
    order = np.argsort(sizes)
    middle = int(np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2))
    return float(sizes[order][middle] / t.ppf(0.75, FREEDOM))


def priors_without(cells: Sequence[Cell], uses: Sequence[int] = (0, 1)) -> dict[str, Prior]:
    """Return for each set, by name, the prior that is fitted to all other sets."""
    return {
        name: fit_prior([cell for cell in cells if cell.set != name], uses) for name in {cell.set for cell in cells}
    }


def belief_about(cell: Cell, prior: Prior) -> Belief:
    """Return the belief about the accuracies of all candidates of a prior in a cell."""
    classes = len(cell.evidence["class_counts"])
    return belief_of(prior, cell.known, cell.probe_error, cell.evidence["probe_accuracy_error"], classes)


def always(name: str) -> Policy:
    """Return the policy that always trains the same candidate."""
    return lambda cell: finish(cell, [name])


def four_quadrants(cell: Cell) -> Decision:
    """Decide by size and similarity alone, by the textbook rule of four quadrants."""
    near, small = cell.evidence["domain_similarity"] >= 0.5, cell.evidence["num_images"] < 1000
    name = {(True, True): PROBE, (True, False): "full_near", (False, True): "partial", (False, False): "full_far"}
    return finish(cell, [name[near, small]])


def always_full(priors: dict[str, Prior]) -> Policy:
    """Return the policy of `--strategy full`: all layers, at the rate that is expected to be the more accurate one.

    Args:
        priors: for each set, the prior that was fitted without it.
    """

    def decide(cell: Cell) -> Decision:
        contest = contest_about(cell, priors[cell.set], "accuracy", ("full_near", "full_far"))
        return finish(cell, [contest.names[int(contest.belief.mean.argmax())]])

    return decide


def contest_about(cell: Cell, prior: Prior, prefer: Preference, names: Sequence[str] = CONSIDERED) -> Contest:
    """Return the contest between some candidates of a cell."""
    belief = belief_about(cell, prior).among([BELIEVED.index(name) for name in names])
    seconds = tuple(FORWARD_SECONDS * cell.costs[name] for name in names)
    return Contest(names=tuple(names), belief=belief, seconds=seconds, prefer=prefer)


def selector(priors: dict[str, Prior], prefer: Preference, averages: bool = True) -> Policy:
    """Return the selector as a policy.

    Args:
        priors: for each set, the prior that was fitted without it.
        prefer: the preference of the user.
        averages: whether it may average two candidates.
    """

    def decide(cell: Cell) -> Decision:
        if cell.probe_error + cell.evidence["probe_accuracy_error"] < PROBE_SUFFICES:
            return finish(cell, [PROBE])
        contest = contest_about(cell, priors[cell.set], prefer)
        place = contest.pick()
        other = contest.partner(place) if averages and prefer == "accuracy" else None
        return finish(cell, [contest.names[each] for each in (place, other) if each is not None])

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
    if not good and FALLBACK not in names and FALLBACK in cell.accuracy:
        spent += cell.costs[FALLBACK]
        good = [FALLBACK]
    return Decision(joined(good) if good else PROBE, spent)


def final_accuracy(cell: Cell, name: str) -> float:
    """Return the test accuracy of the final model if a candidate, or the average of two, is chosen."""
    return cell.accuracy[finish(cell, name.split(" + ")).chosen]


def _accuracy(cell: Cell, name: str) -> float:
    """Return the test accuracy of a candidate or of an average. Of an average that was not computed, it is the mean of
    the two accuracies, which averages hardly ever fall below."""
    if name in cell.accuracy:
        return cell.accuracy[name]
    return float(np.mean([cell.accuracy[each] for each in name.split(" + ")]))


@dataclass(frozen=True, slots=True)
class Score:
    """Regret, accuracy and cost of a policy over cells."""

    regrets: dict[str, float]
    """Mean regret of each set in accuracy, by name."""
    accuracy: float
    """Mean accuracy over sets, 0 .. 1."""
    cost: float
    """Cost over that of always training all layers, summed over cells."""

    @property
    def regret(self) -> float:
        """Mean regret over sets, in accuracy."""
        return float(np.mean(list(self.regrets.values())))

    @property
    def worst(self) -> float:
        """Largest regret of a set, in accuracy."""
        return max(self.regrets.values())


def evaluate(cells: Sequence[Cell], policy: Policy, full: Policy) -> Score:
    """Return the score of a policy on complete cells.

    Args:
        cells: the cells.
        policy: the policy.
        full: the policy whose cost is the unit.
    """
    regrets: dict[str, list[float]] = {}
    accuracies: dict[str, list[float]] = {}
    decisions = [policy(cell) for cell in cells]
    for cell, decision in zip(cells, decisions, strict=True):
        best = max(final_accuracy(cell, name) for name in CONSIDERED)
        regrets.setdefault(cell.set, []).append(best - _accuracy(cell, decision.chosen))
        accuracies.setdefault(cell.set, []).append(_accuracy(cell, decision.chosen))
    return Score(
        regrets={name: float(np.mean(own)) for name, own in regrets.items()},
        accuracy=float(np.mean([np.mean(own) for own in accuracies.values()])),
        cost=sum(decision.cost for decision in decisions) / sum(full(cell).cost for cell in cells),
    )
