"""Fit the prior, replay the selector on the strategy grid, and say how good its decisions are.

    python scripts/strategy_report.py --grid docs/strategy_grid.jsonl.gz [--write]

The grid (`strategy_grid.py`) holds what every candidate made of every cell: an image set at a size with a seed. Each
cell is decided with a prior that was fitted without its set. With --write the comparison goes to docs/selector.md.
"""

import argparse
import base64
import gzip
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# This script's folder comes first on the path, where finetune.py stands in for the package.
ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from finetune.prior import Prior, belief_of, features
from finetune.recipe import Preference
from finetune.selection import (
    DISCREPANCY,
    FINALISTS,
    PRICE,
    TOLERANCE,
    finalists,
    is_worth_racing,
    update,
)

PROBE = "linear_probe"

CANDIDATES = ("partial_short", "partial", "norm_tuning", "full_near", "full_far")
"""Besides the linear probe, from the cheapest on."""

ALL = (PROBE, *CANDIDATES)

RIDGE = 2.0
"""Pull of the prior's slopes to 0, in cells."""

ADDED_ERRORS = 0.5
"""To both counts of a ratio of errors, so that it is never 0 or infinite."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What the grid knows of an image set at a size with a seed."""

    set: str
    size: str
    seed: int
    evidence: dict[str, Any]
    accuracy: dict[str, float]
    """On the test images, by candidate."""
    right: dict[str, list[NDArray[np.float64]]]
    """Probability of each held-out image's class at each rung; none where nothing was held out."""
    costs: dict[str, list[float]]
    """Forward equivalents up to each rung, and for the model that ships."""
    averages: dict[tuple[str, ...], float]
    """Test accuracy of candidates' mean probabilities."""
    num_test: int

    @property
    def known(self) -> tuple[float, ...]:
        """Features of the prior."""
        probe_error = 1.0 - self.evidence["probe_accuracy"]
        return features(self.evidence["images_per_class"], self.evidence["domain_similarity"], probe_error)

    @property
    def final_costs(self) -> list[float]:
        """Forward equivalents of each candidate alone."""
        return [self.costs[name][-1] for name in ALL]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy makes of a cell."""

    chosen: str
    cost: float
    """Forward equivalents, with what the decision itself took; the evidence is not counted: every policy has it."""


Policy = Callable[[Cell], Decision]


def load(path: Path) -> list[Cell]:
    """Return the cells of a grid of which all candidates are there."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = [json.loads(line) for line in file]
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        if "arm" in row:
            found.setdefault((row["set"], row["size"], row["seed"]), {})[row["arm"]] = row
    whole = {key: arms for key, arms in found.items() if set(ALL) | {"evidence", "mean"} <= arms.keys()}
    # Seeds that were not cross-validated would have cost what the first one did.
    return [
        cell_of(*key, arms, whole[*key[:2], 0] if "rungs" not in arms[CANDIDATES[0]] else arms)
        for key, arms in whole.items()
        if "rungs" in arms[CANDIDATES[0]] or (*key[:2], 0) in whole
    ]


def cell_of(name: str, size: str, seed: int, arms: dict[str, Any], cross_validated: dict[str, Any]) -> Cell:
    """Return a cell of its rows, with the costs of one that was cross-validated."""
    costs = {arm: cross_validated[arm]["forward_equivalents"] for arm in ALL}
    return Cell(
        set=name,
        size=size,
        seed=seed,
        evidence=arms["evidence"],
        accuracy={arm: arms[arm]["test"]["top1"] for arm in ALL},
        right={arm: [probabilities(packed) for packed in arms[arm].get("rungs", ())] for arm in ALL},
        costs={arm: [cost - costs[arm][0] for cost in costs[arm][1:]] for arm in ALL},
        averages={tuple(row["of"]): row["test"]["top1"] for row in arms["mean"]["means"]},
        num_test=len(base64.b64decode(arms[PROBE]["test_labels"])),
    )


def probabilities(packed: str) -> NDArray[np.float64]:
    """Return the probabilities of the right class of losses that `strategy_grid.py` packed."""
    roots = np.frombuffer(base64.b64decode(packed), dtype=np.uint8) / 64.0
    found: NDArray[np.float64] = np.exp(-(roots**2))
    return found


def fit_prior(cells: Sequence[Cell]) -> Prior:
    """Return the prior of some cells: ridge regression, its slopes pulled to 0."""
    known = np.array([cell.known for cell in cells])
    ratios = np.array([[log_ratio(cell, name) for name in CANDIDATES] for cell in cells])
    pull = np.diag([1e-6, *[RIDGE] * (known.shape[1] - 1)])
    # Sets weigh alike, however many cells they have.
    weights = np.array([1.0 / sum(other.set == cell.set for other in cells) for cell in cells])
    weights *= len(cells) / weights.sum()
    solution = np.linalg.solve((known.T * weights) @ known + pull, (known.T * weights) @ ratios)
    left = ratios - known @ solution
    return Prior(
        candidates=CANDIDATES,
        coefficients=tuple(map(tuple, solution.T.round(4).tolist())),
        covariance=tuple(map(tuple, ((left.T * weights) @ left / max(len(cells) - 2, 1)).round(5).tolist())),
    )


def log_ratio(cell: Cell, name: str) -> float:
    """Return the log of a candidate's test errors over the linear probe's."""
    own, probe = ((1.0 - cell.accuracy[arm]) * cell.num_test + ADDED_ERRORS for arm in (name, PROBE))
    return math.log(own / probe)


def always(name: str) -> Policy:
    """Return the policy that trains one candidate whatever the evidence."""
    return lambda cell: Decision(name, cell.costs[name][-1])


def four_quadrants(cell: Cell) -> Decision:
    """Decide by size and similarity alone, as lectures have it."""
    near, small = cell.evidence["domain_similarity"] >= 0.5, cell.evidence["num_images"] < 1000
    name = {(True, True): PROBE, (True, False): "partial", (False, True): "partial", (False, False): "full_far"}[
        near, small
    ]
    return Decision(name, cell.costs[name][-1])


def size_only(cell: Cell) -> Decision:
    """Decide by size alone."""
    name = "partial" if cell.evidence["num_images"] < 1000 else "full_near"
    return Decision(name, cell.costs[name][-1])


def selector(cells: Sequence[Cell], prefer: Preference, races: bool = True, similarity: bool = True) -> Policy:
    """Return the selector, its prior fitted without the set that it decides for."""
    tolerance = TOLERANCE[prefer]
    priors: dict[str, Prior] = {}

    def decide(cell: Cell) -> Decision:
        if cell.set not in priors:
            priors[cell.set] = fit_prior([other for other in cells if other.set != cell.set])
        known = list(cell.known)
        if not similarity:
            known[2] = 0.0
        probe_error = max(1.0 - cell.evidence["probe_accuracy"], 0.002)
        belief = belief_of(priors[cell.set], known, probe_error, cell.evidence["probe_accuracy_error"])
        costs = cell.final_costs
        left = finalists(belief, costs, tolerance)
        spent = dict.fromkeys(range(len(ALL)), 0.0)
        racers = [number for number in left if ALL[number] != PROBE]  # the probe is measured already
        can_race = races and bool(cell.right[CANDIDATES[0]])
        if can_race and is_worth_racing(belief, racers, len(cell.right[PROBE][-1]), PRICE[prefer]):
            for rung, discrepancy in enumerate(DISCREPANCY):
                right = np.array([cell.right[ALL[number]][rung] for number in racers])
                belief = update(belief, racers, right, discrepancy)
                spent |= {number: cell.costs[ALL[number]][rung] for number in racers}
                left = finalists(belief, costs, tolerance, left)
                racers = [number for number in left if ALL[number] != PROBE]
                if len(racers) < 2:
                    break
        spent[left[0]] = costs[left[0]]
        return Decision(ALL[left[0]], sum(spent.values()))

    return decide


@dataclass(frozen=True, slots=True)
class Score:
    """How a policy fares over cells."""

    regret: float
    error: float
    """Standard error of the regret, over sets."""
    cost: float
    """Over that of training all layers always."""
    of_all: float
    """Over that of trying everything."""


def judge(cells: Sequence[Cell], policy: Policy) -> Score:
    """Return a policy's regret against each cell's best candidate (its mean over seeds), and its cost."""
    by_set: dict[str, list[float]] = {}
    spent = []
    for cell in cells:
        decision = policy(cell)
        same = [other for other in cells if (other.set, other.size) == (cell.set, cell.size)]
        best = max(ALL, key=lambda name: np.mean([other.accuracy[name] for other in same]))
        scored = [other for other in same if other.seed != cell.seed] or same
        by_set.setdefault(cell.set, []).append(
            float(np.mean([other.accuracy[best] - other.accuracy[decision.chosen] for other in scored]))
        )
        spent.append(decision.cost)
    means = [float(np.mean(regrets)) for regrets in by_set.values()]
    full = sum(cell.costs["full_near"][-1] for cell in cells)
    everything = sum(sum(cell.final_costs) for cell in cells)
    return Score(
        regret=float(np.mean(means)),
        error=float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan,
        cost=sum(spent) / full,
        of_all=sum(spent) / everything,
    )


def policies(cells: Sequence[Cell]) -> Iterable[tuple[str, Policy]]:
    """Yield what is compared."""
    for name in ALL:
        yield f"always {name}", always(name)
    yield "four quadrants", four_quadrants
    yield "size only", size_only
    for prefer in TOLERANCE:
        yield f"selector, {prefer}", selector(cells, prefer)
        yield f"selector, {prefer}, no race", selector(cells, prefer, races=False)
    yield "selector, balanced, no similarity", selector(cells, "balanced", similarity=False)


def table(cells: Sequence[Cell]) -> list[str]:
    """Return the comparison as a Markdown table."""
    lines = ["| policy | regret, points | cost over always full | over trying everything |", "|---|---|---|---|"]
    for name, policy in policies(cells):
        score = judge(cells, policy)
        lines.append(
            f"| {name} | {100 * score.regret:.2f} ± {100 * score.error:.2f} | {score.cost:.2f} | {score.of_all:.2f} |"
        )
    return lines


def averages(cells: Sequence[Cell]) -> list[str]:
    """Return the accuracy of averaged probabilities beside that of their best member, as a Markdown table."""
    lines = ["| mean of | test accuracy, % | its best member's | gain, points |", "|---|---|---|---|"]
    rows = []
    for of in cells[0].averages:
        own = np.array([cell.averages[of] for cell in cells])
        best = max((np.array([cell.accuracy[name] for cell in cells]) for name in of), key=lambda found: found.mean())
        gains = own - best
        error = float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        rows.append((float(own.mean()), float(best.mean()), float(gains.mean()), error, of))
    for own_mean, best_mean, gain, error, of in sorted(rows, reverse=True):
        if len(of) <= FINALISTS:
            lines.append(
                f"| {', '.join(of)} | {100 * own_mean:.2f} | {100 * best_mean:.2f} | "
                f"{100 * gain:+.2f} ± {100 * error:.2f} |"
            )
    return lines


def page(cells: Sequence[Cell]) -> str:
    """Return docs/selector.md."""
    sizes = {size: sum(cell.size == size for cell in cells) for size in ("5", "20", "all")}
    counted = ", ".join(f"{count} with {size} images per class" for size, count in sizes.items() if count)
    lines = [
        "# The selector, judged",
        "",
        f"{len(cells)} cells of {len({cell.set for cell in cells})} image sets: {counted}. EfficientNet-Lite0 at",
        "128 px. Every candidate was trained in every cell (`scripts/strategy_grid.py`, which says how), and what the",
        "selector would have done is replayed from the table, with a prior fitted without the cell's own set:",
        "`python scripts/strategy_report.py --grid docs/strategy_grid.jsonl.gz --write`.",
        "",
        "A regret is the test accuracy of the cell's best candidate (its mean over seeds) minus the chosen one's (of",
        "other seeds, where there are several), ± the standard error over sets. Costs are forward equivalents, the",
        "decision's included.",
        "",
        *table(cells),
        "",
        "## Averages instead of a choice",
        "",
        "Probabilities averaged over candidates that were trained anyway:",
        "",
        *averages(cells),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the comparison, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    cells = load(arguments.grid)
    text = page(cells)
    if arguments.write:
        (ROOT / "docs" / "selector.md").write_text(text, "utf-8")
        return
    print(text)
    for cell in cells:
        chosen = [selector(cells, prefer)(cell) for prefer in TOLERANCE]
        print(cell.set, cell.size, cell.seed, [f"{decision.chosen} {decision.cost:.0f}" for decision in chosen])


if __name__ == "__main__":
    main()
