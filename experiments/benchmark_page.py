"""Write the part of the benchmarks page on accuracy against time, and its plot, from the results of the benchmark."""

import math
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.anytime import (
    BUDGETS,
    FAMILIES,
    TRAINING_IMAGES,
    Family,
    Reached,
    Results,
    paired,
    reach,
    right,
    seeds_of,
)
from experiments.pages import mark_of, write_between
from experiments.paths import IMAGES, PAGES
from experiments.rows import Row

NONE = "none has ended"
"""What the table says of a toolkit of which no run has ended within a budget."""


def write_page(results: Results, sets: Sequence[str], seeds: Sequence[int]) -> None:
    """Write the part of docs/explanation/benchmarks.md and its plot, from the sets whose rows are complete."""
    *ours, _ = FAMILIES  # AutoGluon may be missing
    done = [name for name in sets if all(seeds_of(results, each, name, seeds) == [*seeds] for each in ours)]
    if not done:
        print("the page is not written: no set has been run with all toolkits")
        return
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
        *compare_sets(results, done, seeds),
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
        cells = [describe(reach_all(results, each, each, sets, seeds, budget)) for each in FAMILIES]
        for each in others:
            own, other = (reach_all(results, one, each, sets, seeds, budget) for one in (ours, each))
            cells.append(describe_lead(own, other))
        lines.append(f"| {budget} s | {' | '.join(cells)} |")
    return lines


def compare_sets(results: Results, sets: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the table of our lead on each set over whichever other toolkit is best there, as lines."""
    ours, *others = FAMILIES
    lines = [f"| lead over the best other | {' | '.join(sets)} |", "|---" * (1 + len(sets)) + "|"]
    for budget in BUDGETS:
        cells = []
        for name in sets:
            leads = []
            for each in others:
                own, other = (reach_all(results, one, each, [name], seeds, budget) for one in (ours, each))
                if own[0] is not None and other[0] is not None:
                    leads.append((float(own[0].mean() - other[0].mean()), describe_lead(own, other)))
            cells.append(min(leads)[1] if leads else NONE)
        lines.append(f"| {budget} s | {' | '.join(cells)} |")
    return lines


def reach_all(
    results: Results, family: Family, other: Family, sets: Sequence[str], seeds: Sequence[int], budget: float
) -> Reached:
    """Return what a toolkit has reached at a budget on each set, with the seeds with which another one was run."""
    return [reach(results, family, name, seeds_of(results, other, name, seeds), budget) for name in sets]


def describe(reached: Reached) -> str:
    """Return the mean accuracy over the sets on which a run has ended, and their number if some are missing."""
    ended = [each.mean() for each in reached if each is not None]
    if not ended:
        return NONE
    mean = f"{100 * float(np.mean(ended)):.1f}"
    return mean if len(ended) == len(reached) else f"{mean} (on {len(ended)} of {len(reached)})"


def describe_lead(ours: Reached, others: Reached) -> str:
    """Return the mean difference over the sets on which both have ended, with its 95 % interval, in words."""
    both = [(one, other) for one, other in zip(ours, others, strict=True) if one is not None and other is not None]
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
            rows = [
                [results[contender, name, seed] for seed in seeds_of(results, family, name, seeds)] for name in sets
            ]
            lines.append(f"| {family.name}, {words} | {' | '.join(map(describe_runs, rows))} |")
    return lines


def describe_runs(rows: Sequence[Row]) -> str:
    """Return the mean accuracy and the median seconds of the runs that were not refused, in words."""
    ended = [row for row in rows if "seconds" in row]
    if not ended:
        return "refused" if rows else ""
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
            for number_of_seed, seed in enumerate(seeds_of(results, family, name, seeds)):
                ended = [results[each, name, seed] for each in family.contenders]
                found = sorted((row["seconds"], 100 * right(row).mean()) for row in ended if "seconds" in row)
                seconds, accuracy = zip(*found, strict=True)
                label = None if number_of_seed else family.name
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
        # Runs far below all of ours would flatten the rest of the panel.
        ours = [right(results[each, name, seed]).mean() for each in FAMILIES[0].contenders for seed in seeds]
        axis.set(title=name, xscale="log", xlim=(4, BUDGETS[-1]))
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 100 * min(ours) - 35))
        axis.set_xticks(BUDGETS, [f"{budget} s" for budget in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for row in panels:
        row[0].set_ylabel("test accuracy, %")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="upper center", ncols=len(FAMILIES), fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    with mpl.rc_context({"svg.hashsalt": "finetune"}):
        figure.savefig(path, metadata={"Date": None})
