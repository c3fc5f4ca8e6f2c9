"""Write the part of the benchmarks page on accuracy against time, and its plot, from the results of the benchmark."""

import math
import os
import platform
from collections.abc import Sequence
from datetime import date
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.anytime import BUDGETS, FAMILIES, TRAINING_IMAGES, Family, Results, paired, right, within
from experiments.pages import mark_of, write_between
from experiments.paths import IMAGES, PAGES
from experiments.rows import Row

NONE = "none has ended"
"""What the table says of a toolkit of which no run has ended within a budget."""


def write_page(results: Results, sets: Sequence[str], seeds: Sequence[int]) -> None:
    """Write the part of docs/explanation/benchmarks.md and its plot, from the sets whose rows are complete."""
    contenders = [contender for family in FAMILIES for contender in family.contenders]
    done = [name for name in sets if all((each, name, seed) in results for each in contenders for seed in seeds)]
    plot(results, done, seeds, IMAGES / "benchmarks.svg")
    lines = [
        f"{len(os.sched_getaffinity(0))} core of {platform.machine()}, {date.today()}, EfficientNet-Lite0 at 128 px, "
        f"{len(done)} sets with at most {TRAINING_IMAGES} training",
        f"images each, seed {', '.join(map(str, seeds))}. Command: "
        f"`python -m experiments.benchmark --data DIR --sets {' '.join(done)} --seeds {' '.join(map(str, seeds))}`.",
        "",
        *describe_balanced(results, done),
        "![Test accuracy against seconds](../images/benchmarks.svg)",
        "",
        *compare(results, done, seeds),
        "",
        *runs(results, done, seeds),
    ]
    write_between(PAGES / "benchmarks.md", mark_of("benchmark"), "\n".join(lines))


def describe_balanced(results: Results, sets: Sequence[str]) -> list[str]:
    """Return which sets are scored by balanced accuracy, as lines; none if all are scored by accuracy."""
    balanced = [name for name in sets if any(row["set"] == name and "test_counts" in row for row in results.values())]
    if not balanced:
        return []
    return [
        f"The largest class of {' and '.join(balanced)} has at least five times the images of the smallest.",
        "There, accuracy is balanced accuracy, for every toolkit.",
        "",
    ]


def compare(results: Results, sets: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the table of all budgets, as lines: mean accuracies, and our lead over each other toolkit."""
    ours, *others = FAMILIES
    lead = [f"lead over {each.name}, points" for each in others]
    lines = [
        f"| budget | {' | '.join(each.name for each in FAMILIES)} | {' | '.join(lead)} |",
        "|---" * (1 + len(FAMILIES) + len(others)) + "|",
    ]
    for budget in BUDGETS:
        reached = {each.name: reach(results, each, sets, seeds, budget) for each in FAMILIES}
        cells = [describe(found) for found in reached.values()]
        cells += [describe_lead(reached[ours.name], reached[each.name]) for each in others]
        lines.append(f"| {budget} s | {' | '.join(cells)} |")
    return lines


def reach(
    results: Results, family: Family, sets: Sequence[str], seeds: Sequence[int], budget: float
) -> list[Row | None]:
    """Return what a toolkit has reached at a budget on each set with each seed; None where no run has ended."""
    return [within(results, family, name, seed, budget) for name, seed in product(sets, seeds)]


def describe(reached: Sequence[Row | None]) -> str:
    """Return the mean accuracy over the sets on which a run has ended, and their number if some are missing."""
    rows = [row for row in reached if row is not None]
    if not rows:
        return NONE
    mean = f"{100 * float(np.mean([right(row).mean() for row in rows])):.1f}"
    return mean if len(rows) == len(reached) else f"{mean} (on {len(rows)} of {len(reached)})"


def describe_lead(ours: Sequence[Row | None], others: Sequence[Row | None]) -> str:
    """Return the mean difference over the sets on which both have ended, with its 95 % interval, in words."""
    both = [(right(one), right(other)) for one, other in zip(ours, others, strict=True) if one and other]
    if not both:
        return ""
    mean, half = paired([one for one, _ in both], [other for _, other in both])
    where = "" if len(both) == len(ours) else f", on {len(both)}"
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}{where})"


def runs(results: Results, sets: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the table of all runs, as lines: accuracy and seconds on each set."""
    lines = [f"| run: accuracy, seconds | {' | '.join(sets)} |", "|---" * (1 + len(sets)) + "|"]
    for family in FAMILIES:
        for contender, words in family.contenders.items():
            rows = [[results[contender, name, seed] for seed in seeds] for name in sets]
            lines.append(f"| {family.name}, {words} | {' | '.join(map(describe_runs, rows))} |")
    return lines


def describe_runs(rows: Sequence[Row]) -> str:
    """Return the mean accuracy and the median seconds of the runs that were not refused, in words."""
    ended = [row for row in rows if "seconds" in row]
    if not ended:
        return "refused"
    accuracy = 100 * float(np.mean([right(row).mean() for row in ended]))
    return f"{accuracy:.1f}, {float(np.median([row['seconds'] for row in ended])):.0f} s"


def plot(results: Results, sets: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """Draw the accuracy that each toolkit has reached against the seconds since its start, one panel a set."""
    columns = math.ceil(math.sqrt(len(sets)))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.8 * rows))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axis in panels.flat[len(sets) :]:
        axis.set_visible(False)
    for axis, name in zip(panels.flat, sets, strict=False):
        for number, family in enumerate(FAMILIES):
            for seed in seeds:
                ended = [results[each, name, seed] for each in family.contenders]
                found = sorted((row["seconds"], 100 * right(row).mean()) for row in ended if "seconds" in row)
                seconds, accuracy = zip(*found, strict=True)
                label = family.name if seed == seeds[0] else None
                # A curve holds its accuracy until the next run has ended.
                axis.step(
                    (*seconds, BUDGETS[-1]),
                    (*accuracy, accuracy[-1]),
                    where="post",
                    color=f"C{number}",
                    label=label,
                    linewidth=2 if number == 0 else 1.2,
                )
                axis.plot(seconds, accuracy, "o", color=f"C{number}", markersize=4)
        axis.set(title=name, xscale="log", xlim=(4, BUDGETS[-1]))
        axis.set_xticks(BUDGETS, [f"{budget} s" for budget in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for row in panels:
        row[0].set_ylabel("test accuracy, %")
    panels[0, 0].legend(fontsize=8)
    figure.tight_layout()
    with mpl.rc_context({"svg.hashsalt": "finetune"}):
        figure.savefig(path, metadata={"Date": None})
