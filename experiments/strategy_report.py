"""Fit the prior, replay the decisions on the strategy grid, and report their regret, their cost and their intervals.

    python -m experiments.strategy_report [--write]

The grid (experiments.strategy_grid) holds the results of every candidate in every cell: an image set at a size with a
seed. Each cell is decided with a prior that was fitted without its set. With --write the prior of all sets goes to
finetune/decide/prior.json, the tables to docs/explanation/decisions.md, between its markers, and the plot to
docs/images/selector.svg.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.grid_cells import BELIEVED, CONSIDERED, PROBE, SHIFTED, Cell, joined, load
from experiments.grid_policies import (
    Policy,
    Score,
    always,
    always_full,
    belief_about,
    evaluate,
    final_accuracy,
    fit_prior,
    four_quadrants,
    priors_without,
    selector,
)
from experiments.pages import mark_of, write_between
from experiments.paths import IMAGES, PAGES, ROOT
from experiments.rows import read_rows
from finetune.decide.prior import Prior
from finetune.recipe import Preference

GRID = ROOT / "experiments" / "results" / "strategy_grid.jsonl.gz"
"""Rows of experiments.strategy_grid."""

OTHER_GRID = ROOT / "experiments" / "results" / "strategy_grid_lite2.jsonl.gz"
"""Rows of experiments.strategy_grid with EfficientNet-Lite2, which the prior is not fitted to."""

LOCKED_ROWS = ROOT / "experiments" / "results" / "locked_sets.jsonl"
"""Rows of experiments.locked_sets."""

SIZES = {"all": "all images", "20": "20 images per class", "5": "5 images per class"}
"""Sizes of the cells, in words."""

PREFERENCES: tuple[Preference, ...] = ("balanced", "accuracy", "speed")
"""Preferences of the selector."""


def policies(priors: Mapping[str, Prior]) -> dict[str, Policy]:
    """Return the policies to compare, by name."""
    own = dict(priors)
    return {
        **{f"always {name}": always(name) for name in CONSIDERED},
        "`--strategy full`": always_full(own),
        "four quadrants": four_quadrants,
        **{f"`--prefer {prefer}`": selector(own, prefer) for prefer in PREFERENCES},
        "`accuracy` without averages": selector(own, "accuracy", averages=False),
    }


def comparison(cells: Sequence[Cell], priors: Mapping[str, Prior]) -> Iterator[str]:
    """Yield the tables of all policies at each size."""
    full = always_full(dict(priors))
    for size, words in SIZES.items():
        own = [cell for cell in cells if cell.size == size and cell.is_complete]
        yield from (
            f"### {words.capitalize()}, {len(own)} sets",
            "",
            "| policy | accuracy, % | mean regret, points | largest | cost over `--strategy full` |",
            "|---|---|---|---|---|",
        )
        for name, policy in policies(priors).items():
            score = evaluate(own, policy, full)
            worst = max(score.regrets, key=lambda each: score.regrets[each])
            yield (
                f"| {name} | {100 * score.accuracy:.2f} | {100 * score.regret:.2f} ± {100 * _error(score):.2f} | "
                f"{100 * score.worst:.1f} ({worst}) | {score.cost:.2f} |"
            )
        yield ""


def _error(score: Score) -> float:
    """Return the standard error of the mean regret over sets."""
    values = list(score.regrets.values())
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def ablations(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the table of `--prefer balanced` with fewer features."""
    own = [cell for cell in cells if cell.size == "all" and cell.is_complete]
    yield from ("| features of the prior | accuracy, % | mean regret, points | cost |", "|---|---|---|---|")
    for words, uses in {"size and similarity": (0, 1), "size": (0,), "similarity": (1,), "none": ()}.items():
        priors = priors_without(cells, uses)
        score = evaluate(own, selector(priors, "balanced"), always_full(priors))
        yield f"| {words} | {100 * score.accuracy:.2f} | {100 * score.regret:.2f} | {score.cost:.2f} |"


def variants(cells: Sequence[Cell], reference: str) -> Iterator[str]:
    """Yield the table of everything that was trained, compared with one candidate in the same cells."""
    yield from ("| training | sets | all images | sets | 20 or 5 per class | cost |", "|---|---|---|---|---|---|")
    names = sorted({name for cell in cells for name in cell.costs} - {reference, "scratch"})
    names += [joined(pair) for pair in (("partial", "full_far"), ("full_near", "full_far"), ("partial", "full_near"))]
    for name in names:
        row = [f"| {name} "]
        for sizes in (("all",), ("20", "5")):
            by_set: dict[str, list[float]] = {}
            for cell in cells:
                if cell.size in sizes and name in cell.accuracy and reference in cell.accuracy:
                    is_choice = name in BELIEVED or " + " in name
                    own = final_accuracy(cell, name) if is_choice else cell.accuracy[name]
                    by_set.setdefault(cell.set, []).append(100 * (own - final_accuracy(cell, reference)))
            means = [float(np.mean(values)) for values in by_set.values()]
            error = np.std(means, ddof=1) / np.sqrt(len(means)) if len(means) > 1 else float("nan")
            row.append(f"| {len(means)} | {np.mean(means):+.2f} ± {error:.2f} " if means else "| 0 | ")
        costs = [
            cell.costs[name] / cell.costs[reference] for cell in cells if name in cell.costs and reference in cell.costs
        ]
        yield "".join(row) + (f"| {np.mean(costs):.2f} |" if costs else "| both |")


def flips(cells: Sequence[Cell]) -> str:
    """Return a sentence about the gain of test-time flips."""
    gains = [
        100 * (cell.accuracy[f"{name}, flips"] - cell.accuracy[name])
        for cell in cells
        for name in cell.costs
        if f"{name}, flips" in cell.accuracy
    ]
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    return f"Test-time flips gained {np.mean(gains):+.2f} ± {error:.2f} points in {len(gains)} trainings."


def coverage(cells: Sequence[Cell], priors: Mapping[str, Prior]) -> Iterator[str]:
    """Yield the table of how often the 90 % intervals contain the test accuracy."""
    yield from (
        "| test images | size | trainings | intervals that hold | median width, points |",
        "|---|---|---|---|---|",
    )
    for words, is_shifted in (("of the same groups", False), ("of unseen groups", True)):
        for size in SIZES:
            held, widths = [], []
            for cell in cells:
                if cell.size == size and (cell.set in SHIFTED) == is_shifted:
                    intervals = belief_about(cell, priors[cell.set]).intervals
                    for name in (PROBE, "partial", "full_near", "full_far"):
                        if name in cell.accuracy:
                            low, high = intervals[BELIEVED.index(name)]
                            held.append(low <= final_accuracy(cell, name) <= high)
                            widths.append(100 * (high - low))
            yield (f"| {words} | {SIZES[size]} | {len(held)} | {100 * np.mean(held):.0f} % | {np.median(widths):.1f} |")


def other_network(cells: Sequence[Cell], priors: Mapping[str, Prior]) -> Iterator[str]:
    """Yield the table of another network: every candidate, and what is chosen with the prior of the first network."""
    yield f"| set | per class | {' | '.join(CONSIDERED)} | balanced takes | regret, points | intervals that hold |"
    yield "|---|---|" + "---|" * (len(CONSIDERED) + 3)
    found: dict[str, list[tuple[list[float], float]]] = {}
    for cell in sorted(cells, key=lambda cell: (tuple(SIZES).index(cell.size), cell.set)):
        chosen = selector(dict(priors), "balanced")(cell).chosen
        own = {name: final_accuracy(cell, name) for name in CONSIDERED}
        intervals = belief_about(cell, priors[cell.set]).intervals
        held = [
            intervals[BELIEVED.index(name)][0] <= accuracy <= intervals[BELIEVED.index(name)][1]
            for name, accuracy in own.items()
        ]
        values = " | ".join(f"{100 * accuracy:.1f}" for accuracy in own.values())
        regret = 100 * (max(own.values()) - own[chosen])
        found.setdefault(cell.size, []).append(([*own.values()], own[chosen]))
        yield f"| {cell.set} | {cell.size} | {values} | {chosen} | {regret:.1f} | {sum(held)} of {len(held)} |"
    for size, rows in found.items():
        means = " | ".join(f"{100 * accuracy:.1f}" for accuracy in np.mean([values for values, _ in rows], axis=0))
        taken = 100 * np.mean([own for _, own in rows])
        lost = 100 * np.mean([max(values) - own for values, own in rows])
        yield f"| mean of {len(rows)} | {size} | {means} | {taken:.1f} | {lost:.1f} | |"


def locked(path: Path) -> Iterator[str]:
    """Yield the table of the locked sets, which experiments.locked_sets scored once."""
    about, *rows = read_rows(path)
    sets = sorted({row["set"] for row in rows})
    yield f"Scored on {about['date']} at commit {about['commit']}, seed 0, one thread of {about['machine']}:"
    yield ""
    yield f"| run | {' | '.join(f'{name}: accuracy, time' for name in sets)} | mean | time |"
    yield "|---|" + "---|" * (len(sets) + 2)
    for run in dict.fromkeys(row["run"] for row in rows):
        own = {row["set"]: row for row in rows if row["run"] == run}
        cells = [
            f"{100 * own[name]['accuracy']:.1f} %, {own[name]['seconds']:.0f} s ({own[name]['trained']})"
            for name in sets
        ]
        mean = 100 * np.mean([row["accuracy"] for row in own.values()])
        yield f"| {run} | {' | '.join(cells)} | {mean:.2f} | {sum(row['seconds'] for row in own.values()):.0f} s |"


def page(cells: Sequence[Cell], priors: Mapping[str, Prior]) -> str:
    """Return the generated part of the page."""
    counts = ", ".join(f"{sum(cell.size == size for cell in cells)} with {words}" for size, words in SIZES.items())
    return "\n".join(
        [
            f"{len(cells)} cells of {len({cell.set for cell in cells})} image sets: {counts}.",
            "",
            *comparison(cells, priors),
            "![Accuracy against cost, all images](../images/selector.svg)",
            "",
            "### What the features are worth (`--prefer balanced`, all images)",
            "",
            *ablations(cells),
            "",
            "### Everything that was trained, compared with full_far, in points",
            "",
            "A rejected candidate counts as its fallback, also in an average; a rejected variant as its linear probe.",
            "",
            *variants(cells, "full_far"),
            "",
            flips(cells),
            "",
            "### Intervals",
            "",
            *coverage(cells, priors),
            "",
            "### Another network: EfficientNet-Lite2, with the prior of EfficientNet-Lite0",
            "",
            *other_network([cell for cell in load(OTHER_GRID) if cell.is_complete], priors),
            "",
            "### The locked sets",
            "",
            *(locked(LOCKED_ROWS) if LOCKED_ROWS.exists() else ()),
            "",
        ]
    )


def draw(cells: Sequence[Cell], priors: Mapping[str, Prior], path: Path) -> None:
    """Draw the regret of each policy against its cost, with all images."""
    own = [cell for cell in cells if cell.size == "all" and cell.is_complete]
    full = always_full(dict(priors))
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    for name, policy in policies(priors).items():
        score = evaluate(own, policy, full)
        color = "tab:red" if "prefer" in name else "tab:gray"
        axes.errorbar(score.cost, -100 * score.regret, yerr=100 * _error(score), fmt="o", color=color, capsize=2)
        text = name.replace("`", "")
        axes.annotate(text, (score.cost, -100 * score.regret), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.axhline(0.0, color="black", linewidth=0.6)
    axes.set_xlabel("cost over --strategy full (forward equivalents, rejected trainings included)")
    axes.set_ylabel("points of accuracy relative to the oracle")
    figure.tight_layout()
    with mpl.rc_context({"svg.hashsalt": "finetune"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the report, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write prior, page and plot instead of printing the page")
    arguments = parser.parse_args()
    cells = load(GRID)
    priors = priors_without(cells)
    text = page(cells, priors)
    if not arguments.write:
        print(text)
        return
    fit_prior(cells).save(ROOT / "finetune" / "decide" / "prior.json")
    target = PAGES / "decisions.md"
    write_between(target, mark_of("strategy_report"), f"\n{text}")
    draw(cells, priors, IMAGES / "selector.svg")


if __name__ == "__main__":
    main()
