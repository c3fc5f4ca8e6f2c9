"""Fit the prior, replay the selector on the strategy grid, and say how good its decisions are.

    python -m experiments.strategy_report --grid experiments/results/strategy_grid.jsonl.gz [--write]

The grid (`strategy_grid.py`) holds what every candidate made of every cell: an image set at a size with a seed. Each
cell is decided with a prior that was fitted without its set. With --write the prior of all sets goes to
finetune/prior.json, the comparison to docs/selector.md and its plot to docs/images/selector.svg.
"""

import argparse
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

# This script's folder comes first on the path, where finetune.py stands in for the package.
ROOT = Path(__file__).resolve().parent.parent

from experiments.grid_cells import ALL, CANDIDATES, PROBE, SCRATCH, Cell, joined, load
from experiments.grid_policies import (
    Policy,
    Score,
    always,
    belief_about,
    finished,
    fit_prior,
    four_quadrants,
    judge,
    priors_without,
    selector,
    size_only,
)
from finetune.decide.forecast import NINETY_PERCENT
from finetune.decide.reasons import NEAR
from finetune.decide.workload import HELD_OUT, SMALL_SET
from finetune.recipe import Preference

DRAWS = 4000
"""Bootstrap samples of the image sets."""

SIZES = {"5": "5 images per class", "20": "20 images per class", "all": "all images"}

FEWEST = "5"
"""The size that is judged apart from the rest."""

COMMAND = "python -m experiments.strategy_report --grid experiments/results/strategy_grid.jsonl.gz --write"

PREFERENCES: tuple[Preference, ...] = ("accuracy", "balanced", "speed")


def policies(cells: Sequence[Cell]) -> Iterator[tuple[str, Policy]]:
    """Yield what is compared."""
    for name in ALL:
        yield f"always {name}", always(name)
    yield "four quadrants", four_quadrants
    yield "size only", size_only
    for prefer in PREFERENCES:
        yield f"selector, {prefer}", selector(cells, prefer)


def ablations(cells: Sequence[Cell]) -> Iterator[tuple[str, Policy]]:
    """Yield selectors that lack something."""
    yield "selector, accuracy", selector(cells, "accuracy")
    yield "accuracy without averages", selector(cells, "accuracy", averages=False)
    yield "accuracy without averages and races", selector(cells, "accuracy", averages=False, races=False)
    yield "selector, balanced", selector(cells, "balanced")
    yield "balanced without races", selector(cells, "balanced", races=False)
    yield "balanced without similarity", selector(cells, "balanced", uses=(0, 2))
    yield "balanced without size", selector(cells, "balanced", uses=(1, 2))
    yield "balanced without the probe's error", selector(cells, "balanced", uses=(0, 1))
    yield "balanced without all three (no prior but the mean)", selector(cells, "balanced", uses=())


def wrapped(text: str) -> list[str]:
    """Return a paragraph's lines; the command stays whole."""
    whole = COMMAND.replace(" ", "\0")
    lines = textwrap.wrap(text.replace(COMMAND, whole), 118, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over image sets, which are drawn with replacement."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def row(name: str, score: Score) -> str:
    """Return a policy's line of a Markdown table."""
    low, high = bootstrap(list(score.regrets.values()))
    return (
        f"| {name} | {100 * score.regret:.2f} | {100 * low:.2f} to {100 * high:.2f} | {score.cost:.2f} | "
        f"{score.of_all:.2f} | {score.of_chosen:.2f} | {100 * score.raced:.0f} % |"
    )


HEADER = [
    "| policy | regret, points | 95 % interval | cost over always full | over all candidates | over the chosen "
    "| races |",
    "|---|---|---|---|---|---|---|",
]


def gap_closed(scores: Mapping[str, Score]) -> str:
    """Return what share of the best fixed candidate's gain over always probing the selector has, and who is ahead."""
    fixed = {name: score for name, score in scores.items() if name.startswith("always")}
    best = min(fixed, key=lambda name: fixed[name].regret)
    probe = scores[f"always {PROBE}"].regret
    told = []
    for prefer in PREFERENCES:
        own = scores[f"selector, {prefer}"]
        share = (probe - own.regret) / (probe - fixed[best].regret)
        ahead = [name for name, score in fixed.items() if score.regret < own.regret and score.cost < own.cost]
        leads = ", ".join(ahead) or "no fixed one"
        told.append(f"{prefer} {100 * share:.0f} % ({leads} is more accurate and cheaper)")
    return (
        f"The best fixed candidate, after the fact, is {best.removeprefix('always ')}; of what it gains over always "
        f"probing the selector gains: {'; '.join(told)}."
    )


def by_size(cells: Sequence[Cell]) -> list[str]:
    """Return regrets and costs of each size apart, as a Markdown table."""
    sizes = [size for size in SIZES if any(cell.size == size for cell in cells)]
    lines = [
        "| policy | " + " | ".join(f"{SIZES[size]}: regret, cost" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for name, policy in policies(cells):
        parts = []
        for size in sizes:
            score = judge([cell for cell in cells if cell.size == size], policy)
            parts.append(f"{100 * score.regret:.2f} ± {100 * score.error:.2f}, {score.cost:.2f}")
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return lines


def four_cells(cells: Sequence[Cell]) -> list[str]:
    """Return what every candidate has by size and similarity, as the textbook's quadrants have them."""
    lines = [
        "| images | sets | " + " | ".join((*ALL, SCRATCH)) + " |",
        "|---|---|" + "---|" * (len(ALL) + 1),
    ]
    for side in ("near", "far"):
        for size in ("20", "all"):
            sized = [cell for cell in cells if cell.size == size]
            own = [cell for cell in sized if (cell.evidence["domain_similarity"] >= NEAR) == (side == "near")]
            means = [f"{np.mean([cell.accuracy[name] for cell in own]):.3f}" for name in ALL]
            tried = [cell for cell in own if SCRATCH in cell.accuracy]
            told = [f"{cell.set} {cell.accuracy[SCRATCH]:.3f} (probe {cell.accuracy[PROBE]:.3f})" for cell in tried]
            scratch = ", ".join(told)
            names = ", ".join(cell.set for cell in own)
            lines.append(f"| {side}, {SIZES[size]} | {names} | {' | '.join(means)} | {scratch} |")
    return lines


def noise_floor(cells: Sequence[Cell]) -> float:
    """Return the mean regret of an oracle that sees half of the test images and is scored on the other half.

    It is what picking among candidates costs where nothing but chance tells them apart.
    """
    regrets = []
    for cell in cells:
        halves = [np.arange(cell.num_test) % 2 == half for half in (0, 1)]
        for seen, scored in (halves, halves[::-1]):
            picked = max(ALL, key=lambda name: cell.correct[name][seen].mean())
            best = max(cell.correct[name][scored].mean() for name in ALL)
            regrets.append(best - cell.correct[picked][scored].mean())
    return float(np.mean(regrets))


def calibration(cells: Sequence[Cell]) -> list[str]:
    """Return how often predicted intervals hold the test accuracy, and their width over the binomial error's."""
    before: list[tuple[bool, float]] = []
    after: list[tuple[bool, float]] = []
    policy, priors = selector(cells, "balanced"), priors_without(cells)
    for cell in cells:
        belief = belief_about(cell, priors[cell.set])
        chosen = policy(cell).chosen
        place = ALL.index(chosen)
        test = float(cell.correct[chosen].mean())
        num_judged = cell.evidence["num_images"] * (1.0 if cell.evidence["num_images"] < SMALL_SET else HELD_OUT)
        mean = min(float(belief.mean[place]), 1.0 - 0.5 / cell.num_test)
        test_variance = mean * (1.0 - mean) / cell.num_test
        both = math.sqrt(test_variance + mean * (1.0 - mean) / num_judged)
        deviation = math.sqrt(float(belief.covariance[place, place]) + test_variance)
        before.append((abs(test - mean) <= NINETY_PERCENT * deviation, deviation / both))
        if chosen in cell.validation_top1:
            mean = min(cell.validation_top1[chosen], 1.0 - 0.5 / num_judged)
            deviation = math.sqrt(mean * (1.0 - mean) * (1.0 / num_judged + 1.0 / cell.num_test))
            after.append((abs(test - mean) <= NINETY_PERCENT * deviation, 1.0))
    lines = [
        "| predicted | cells | 90 % intervals that hold | median width over the binomial error's |",
        "|---|---|---|---|",
    ]
    for name, found in (("before training, by the prior", before), ("after it, by the held-out images", after)):
        if found:
            held = np.mean([hit for hit, _ in found])
            lines.append(
                f"| {name} | {len(found)} | {100 * held:.0f} % | {np.median([width for _, width in found]):.2f} |"
            )
    return lines


def similarity(cells: Sequence[Cell]) -> str:
    """Return the rank correlation of similarity with what fine-tuning gains over the probe."""
    by_set: dict[str, list[tuple[float, float, float]]] = {}
    for cell in cells:
        trained = sum(cell.errors[name] for name in ("partial_short", "partial", "full_near", "full_far")) / 4
        gain = (cell.errors[PROBE] - trained) / cell.num_test
        left = (trained + 0.5) / (cell.errors[PROBE] + 0.5)
        by_set.setdefault(cell.set, []).append((cell.evidence["domain_similarity"], gain, left))
    means = np.array([np.mean(rows, axis=0) for rows in by_set.values()])
    points, share = (spearmanr(means[:, 0], column) for column in (means[:, 1], means[:, 2]))
    return (
        f"Over {len(means)} sets the rank correlation of domain similarity with the points that fine-tuning gains over "
        f"the linear probe is {points.statistic:+.2f} (p = {points.pvalue:.2f}), with the share of the probe's errors "
        f"that it leaves {share.statistic:+.2f} (p = {share.pvalue:.2f})."
    )


def averages(cells: Sequence[Cell]) -> list[str]:
    """Return the accuracy of averaged probabilities beside that of their best member, as a Markdown table."""
    lines = [
        "| mean of | regret, points | gain over its best member, points | cost over always full |",
        "|---|---|---|---|",
    ]
    full = sum(cell.costs["full_near"][-1] for cell in cells)
    found = []
    for one in range(len(CANDIDATES)):
        for other in range(one + 1, len(CANDIDATES)):
            names = (CANDIDATES[one], CANDIDATES[other])
            decisions = [finished(cell, names) for cell in cells]
            own = [cell.accuracy[decision.chosen] for cell, decision in zip(cells, decisions, strict=True)]
            alone = [max(cell.accuracy[finished(cell, [name]).chosen] for name in names) for cell in cells]
            regrets = [max(cell.accuracy[name] for name in ALL) - top for cell, top in zip(cells, own, strict=True)]
            gains = [top - best for top, best in zip(own, alone, strict=True)]
            cost = sum(decision.cost for decision in decisions) / full
            error = 100 * float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
            text = (
                f"| {joined(names)} | {100 * np.mean(regrets):.2f} | {100 * np.mean(gains):+.2f} ± {error:.2f} | "
                f"{cost:.2f} |"
            )
            found.append((float(np.mean(regrets)), text))
    return lines + [text for _, text in sorted(found)]


def losses(cells: Sequence[Cell], prefer: Preference) -> list[str]:
    """Return the cells in which the selector loses most."""
    policy = selector(cells, prefer)
    found = []
    for cell in cells:
        decision = policy(cell)
        best = max(ALL, key=lambda name: cell.accuracy[name])
        found.append((cell.accuracy[best] - cell.accuracy[decision.chosen], cell.name, decision.chosen, best))
    lines = ["| cell | chosen | best | regret, points |", "|---|---|---|---|"]
    worst = sorted(found, reverse=True)[:6]
    return lines + [f"| {name} | {chosen} | {best} | {100 * regret:.1f} |" for regret, name, chosen, best in worst]


def draw(scores: Mapping[str, Score], path: Path) -> None:
    """Draw accuracy against cost."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "finetune"
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for name, score in scores.items():
        is_own = name.startswith("selector")
        axes.errorbar(
            score.cost,
            -100 * score.regret,
            yerr=100 * score.error,
            fmt="D" if is_own else "o",
            color="tab:red" if is_own else "tab:gray",
            capsize=2,
        )
        axes.annotate(name, (score.cost, -100 * score.regret), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.axhline(0.0, color="black", linewidth=0.6)
    axes.set_xlabel("cost over training all layers always (forward equivalents, decision included)")
    axes.set_ylabel("points of accuracy against the oracle")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def scored(cells: Sequence[Cell]) -> tuple[list[Cell], dict[str, Score]]:
    """Return the cells that the comparison rests on, and how every policy fares there."""
    judged = [cell for cell in cells if cell.size != FEWEST]
    return judged, {name: judge(judged, policy) for name, policy in policies(cells)}


def page(cells: Sequence[Cell], judged: Sequence[Cell], scores: Mapping[str, Score]) -> str:
    """Return docs/selector.md; the other two are what `scored` makes of the cells."""
    sizes = {size: [cell for cell in cells if cell.size == size] for size in SIZES}
    counted = ", ".join(f"{len(own)} with {SIZES[size]}" for size, own in sizes.items() if own)
    held = sum(cell.was_held_out for cell in cells)
    devices = Counter(cell.device for cell in cells if cell.device)
    counted += "".join(f" ({count} of all cells on {device})" for device, count in sorted(devices.items()))
    lines = [
        "# The selector, judged",
        "",
        *wrapped(
            f"{len(cells)} cells of {len({cell.set for cell in cells})} image sets: {counted}; EfficientNet-Lite0 at "
            f"128 px. Every candidate was trained in every cell (`experiments/strategy_grid.py`, which says "
            f"how; the rows are in experiments/results/strategy_grid.jsonl.gz), and what the selector would have done is replayed "
            f"from the table, with a prior fitted without the cell's own set: `{COMMAND}`. Races can be replayed in "
            f"the {held} cells whose trainings were judged on held-out images."
        ),
        "",
        *wrapped(
            "A regret is the accuracy (by the set's metric) on the test images of the cell's best candidate, its mean "
            "over seeds, minus that of what was chosen (of other seeds, where there are several); 95 % intervals by "
            "bootstrap over sets. Costs are forward equivalents, the decision's included. An average's regret may be "
            f"below 0: the oracle picks one candidate. The table is of the {len(judged)} cells with more than "
            f"{SIZES[FEWEST]}; those are [apart](#by-size)."
        ),
        "",
        *HEADER,
        *(row(name, score) for name, score in scores.items()),
        "",
        "![Accuracy against cost](selector.svg)",
        "",
        *wrapped(
            f"How much of a regret is chance: who picks by one half of a cell's test images and is scored on the other "
            f"has a regret of {100 * noise_floor(judged):.2f} points."
        ),
        "",
        *wrapped(gap_closed(scores)),
        "",
        *wrapped(
            "Not tested: more than 1,200 training images, other networks, and races where there are few images per "
            "class (most of those trainings were not judged on held-out images). Smaller images first, which `full` "
            "sees on larger sets, had the second seeds of all images, and the first ones had not."
        ),
        "",
        "## By size",
        "",
        *by_size(cells),
        "",
        "## The four cells of size and similarity",
        "",
        *wrapped(
            "Accuracy on the test images, by the metric of each set, mean over the sets; of random weights, for five "
            "times the steps, where they were trained. The textbook has the linear probe win with few near images, and "
            "training everything with many far ones; here it always pays to train more than the head."
        ),
        "",
        *four_cells(cells),
        "",
        "## What each part is worth",
        "",
        *HEADER,
        *(row(name, judge(judged, policy)) for name, policy in ablations(cells)),
        "",
        *wrapped(similarity(cells)),
        "",
        "## Averages instead of a choice",
        "",
        "Probabilities averaged over two candidates, over the same cells:",
        "",
        *averages(judged),
        "",
        "## Where it loses",
        "",
        *(
            line
            for prefer in ("accuracy", "balanced")
            for line in (f"`--prefer {prefer}`:", "", *losses(cells, prefer), "")
        ),
        "## Is it as sure as it should be",
        "",
        *wrapped(
            "Top-1 of what `--prefer balanced` chooses, predicted and found on the test images; the binomial error is "
            "that of the judging and the test images together."
        ),
        "",
        *calibration(cells),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the comparison, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    cells = load(arguments.grid)
    judged, scores = scored(cells)
    text = page(cells, judged, scores)
    if not arguments.write:
        print(text)
        return
    fit_prior(cells).save(ROOT / "finetune" / "prior.json")
    (ROOT / "docs" / "selector.md").write_text(text, "utf-8")
    draw(scores, ROOT / "docs" / "selector.svg")


if __name__ == "__main__":
    main()
