"""Fit the prior, replay the selector on the strategy grid, and report the regret and the cost of its decisions.

    python -m experiments.strategy_report --grid experiments/results/strategy_grid.jsonl.gz [--write]

The grid (experiments.strategy_grid) holds the results of every candidate in every cell: an image set at a size with a
seed. Each cell is decided with a prior that was fitted without its set. With --write the prior of all sets goes to
finetune/decide/prior.json, the comparison to docs/explanation/decisions.md and its plot to docs/images/selector.svg.
"""

import argparse
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.grid_cells import Cell, load
from experiments.grid_policies import Score, evaluate, fit_prior
from experiments.grid_tables import (
    HEADER,
    SIZES,
    ablations,
    averages,
    by_size,
    calibration,
    four_cells,
    gap_closed,
    largest_regrets,
    noise_floor,
    policies,
    policy_row,
    similarity,
)
from experiments.paths import IMAGES, PAGES, ROOT

FEWEST = "5"
"""Size of the cells that are not part of the main comparison."""

COMMAND = "python -m experiments.strategy_report --grid experiments/results/strategy_grid.jsonl.gz --write"
"""Command that writes the page."""


def compared(cells: Sequence[Cell]) -> tuple[list[Cell], dict[str, Score]]:
    """Return the cells of the main comparison, and the score of every policy on them."""
    chosen = [cell for cell in cells if cell.size != FEWEST]
    return chosen, {name: evaluate(chosen, policy) for name, policy in policies(cells)}


def page(cells: Sequence[Cell], chosen: Sequence[Cell], scores: Mapping[str, Score]) -> str:
    """Return the decisions page.

    Args:
        cells: all cells.
        chosen: the cells of the main comparison.
        scores: the score of every policy on `chosen`, by name.
    """
    return "\n".join([*_comparison(cells, chosen, scores), *_sizes(cells), *_parts(cells, chosen), *_limits(cells)])


def _comparison(cells: Sequence[Cell], chosen: Sequence[Cell], scores: Mapping[str, Score]) -> list[str]:
    """Return the introduction and the main table."""
    sizes = {size: [cell for cell in cells if cell.size == size] for size in SIZES}
    counted = ", ".join(f"{len(own)} with {SIZES[size]}" for size, own in sizes.items() if own)
    devices = Counter(cell.device for cell in cells if cell.device)
    counted += "".join(f" ({count} of all cells on {device})" for device, count in sorted(devices.items()))
    return [
        "# How good the decisions are",
        "",
        *_wrapped(
            f"The grid has {len(cells)} cells of {len({cell.set for cell in cells})} image sets: {counted}. The "
            f"network is EfficientNet-Lite0 at 128 px. Every candidate was trained in every cell "
            f"(experiments/strategy_grid.py; the rows are in experiments/results/strategy_grid.jsonl.gz). The "
            f"decisions of the selector are replayed from these rows, with a prior fitted without the cell's own set: "
            f"`{COMMAND}`."
        ),
        "",
        *_wrapped(
            "The regret of a policy in a cell is the test accuracy (by the set's metric) of the cell's best candidate, "
            "its mean over seeds, minus that of the chosen one (on other seeds, if there are several). Intervals are "
            "95 %, by bootstrap over sets. Costs are in forward equivalents and include rejected trainings. The regret "
            "of an average may be below 0, because the oracle picks a single candidate. The table shows the "
            f"{len(chosen)} cells with more than {SIZES[FEWEST]}; the others are [below](#by-size)."
        ),
        "",
        *HEADER,
        *(policy_row(name, score) for name, score in scores.items()),
        "",
        "![Accuracy against cost](../images/selector.svg)",
        "",
        *_wrapped(
            f"Part of a regret is chance. A policy that picks by one half of a cell's test images, and is scored on "
            f"the other half, has a regret of {100 * noise_floor(chosen):.2f} points."
        ),
        "",
        *_wrapped(gap_closed(scores)),
        "",
        *_wrapped(
            "Not tested: more than 1,200 training images, and other networks. With all images, the second seeds were "
            "trained with smaller images first, as `full` does on larger sets; the first seeds were not."
        ),
        "",
    ]


def _sizes(cells: Sequence[Cell]) -> list[str]:
    """Return the sections about size and similarity."""
    return [
        "## By size",
        "",
        *by_size(cells),
        "",
        "## The four quadrants of size and similarity",
        "",
        *_wrapped(
            "Test accuracy by the metric of each set, mean over the sets. Random weights (`scratch`) were trained in "
            "some cells, for five times the steps. The textbook recommends the linear probe for few near images, and "
            "training all layers for many far ones. Here it always pays to train more than the head."
        ),
        "",
        *four_cells(cells),
        "",
    ]


def _parts(cells: Sequence[Cell], chosen: Sequence[Cell]) -> list[str]:
    """Return the sections about ablations and averages."""
    return [
        "## What each part is worth",
        "",
        *HEADER,
        *(policy_row(name, evaluate(chosen, policy)) for name, policy in ablations(cells)),
        "",
        *_wrapped(similarity(cells)),
        "",
        "## Averages instead of a choice",
        "",
        "Averaged probabilities of two candidates, on the same cells:",
        "",
        *averages(chosen),
        "",
    ]


def _limits(cells: Sequence[Cell]) -> list[str]:
    """Return the sections about the largest regrets and the calibration."""
    return [
        "## The largest regrets",
        "",
        *(
            line
            for prefer in ("accuracy", "balanced")
            for line in (f"`--prefer {prefer}`:", "", *largest_regrets(cells, prefer), "")
        ),
        "## Calibration",
        "",
        *_wrapped(
            "Top-1 accuracy of the candidate that `--prefer balanced` chooses: predicted, and measured on the test "
            "images. The binomial error is that of the held-out and the test images together."
        ),
        "",
        *calibration(cells),
        "",
    ]


def _wrapped(text: str) -> list[str]:
    """Return the lines of a paragraph; the command stays on one line."""
    whole = COMMAND.replace(" ", "\0")
    lines = textwrap.wrap(text.replace(COMMAND, whole), 118, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def draw(scores: Mapping[str, Score], path: Path) -> None:
    """Draw the regret of each policy against its cost."""
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    for name, score in scores.items():
        is_selector = name.startswith("selector")
        axes.errorbar(
            score.cost,
            -100 * score.regret,
            yerr=100 * score.error,
            fmt="D" if is_selector else "o",
            color="tab:red" if is_selector else "tab:gray",
            capsize=2,
        )
        axes.annotate(name, (score.cost, -100 * score.regret), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.axhline(0.0, color="black", linewidth=0.6)
    axes.set_xlabel("cost over always training all layers (forward equivalents, rejected trainings included)")
    axes.set_ylabel("points of accuracy relative to the oracle")
    figure.tight_layout()
    with mpl.rc_context({"svg.hashsalt": "finetune"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the comparison, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, required=True, help="rows of experiments.strategy_grid")
    parser.add_argument("--write", action="store_true", help="write prior, page and plot instead of printing the page")
    arguments = parser.parse_args()
    cells = load(arguments.grid)
    chosen, scores = compared(cells)
    text = page(cells, chosen, scores)
    if not arguments.write:
        print(text)
        return
    fit_prior(cells).save(ROOT / "finetune" / "decide" / "prior.json")
    (PAGES / "decisions.md").write_text(text, "utf-8")
    draw(scores, IMAGES / "selector.svg")


if __name__ == "__main__":
    main()
