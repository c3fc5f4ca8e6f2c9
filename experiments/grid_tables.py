"""Make the tables of the decisions page from the grid's cells."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from experiments.grid_cells import ALL, CANDIDATES, PROBE, SCRATCH, Cell, joined
from experiments.grid_policies import (
    Policy,
    Score,
    always,
    belief_about,
    evaluate,
    finish,
    four_quadrants,
    priors_without,
    selector,
    size_only,
)
from finetune.decide.forecast import NINETY_PERCENT
from finetune.decide.reasons import NEAR
from finetune.decide.workload import HELD_OUT, SMALL_SET
from finetune.recipe import Preference

DRAWS = 4000
"""Number of bootstrap samples of the image sets."""

SIZES = {"5": "5 images per class", "20": "20 images per class", "all": "all images"}
"""Sizes of the cells, in words."""

PREFERENCES: tuple[Preference, ...] = ("accuracy", "balanced", "speed")
"""Preferences of the selector."""

HEADER = [
    "| policy | regret, points | 95 % interval | cost over always full | over all candidates | over the chosen one |",
    "|---|---|---|---|---|---|",
]
"""Head of the tables of policies."""


def policies(cells: Sequence[Cell]) -> Iterator[tuple[str, Policy]]:
    """Yield the name and the policy of each comparison."""
    for name in ALL:
        yield f"always {name}", always(name)
    yield "four quadrants", four_quadrants
    yield "size only", size_only
    for prefer in PREFERENCES:
        yield f"selector, {prefer}", selector(cells, prefer)


def ablations(cells: Sequence[Cell]) -> Iterator[tuple[str, Policy]]:
    """Yield the name and the policy of the selector without one or more of its parts."""
    yield "selector, accuracy", selector(cells, "accuracy")
    yield "accuracy without averages", selector(cells, "accuracy", averages=False)
    yield "selector, balanced", selector(cells, "balanced")
    yield "balanced without similarity", selector(cells, "balanced", uses=(0, 2))
    yield "balanced without size", selector(cells, "balanced", uses=(1, 2))
    yield "balanced without the probe's error", selector(cells, "balanced", uses=(0, 1))
    yield "balanced without all three (the prior is a mean)", selector(cells, "balanced", uses=())


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over image sets, by drawing sets with replacement."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def policy_row(name: str, score: Score) -> str:
    """Return a policy's line of a table."""
    low, high = bootstrap(list(score.regrets.values()))
    return (
        f"| {name} | {100 * score.regret:.2f} | {100 * low:.2f} to {100 * high:.2f} | {score.cost:.2f} | "
        f"{score.of_all:.2f} | {score.of_chosen:.2f} |"
    )


def gap_closed(scores: Mapping[str, Score]) -> str:
    """Return a sentence about the share that the selector reaches of the best fixed candidate's gain over the probe."""
    fixed = {name: score for name, score in scores.items() if name.startswith("always")}
    best = min(fixed, key=lambda name: fixed[name].regret)
    probe = scores[f"always {PROBE}"].regret
    parts = []
    for prefer in PREFERENCES:
        own = scores[f"selector, {prefer}"]
        share = (probe - own.regret) / (probe - fixed[best].regret)
        ahead = [name for name, score in fixed.items() if score.regret < own.regret and score.cost < own.cost]
        better = ", ".join(ahead) or "no fixed candidate"
        parts.append(f"{100 * share:.0f} % with {prefer} ({better} is more accurate and cheaper)")
    return (
        f"In hindsight, the best fixed candidate is {best.removeprefix('always ')}. The selector has this share of its "
        f"gain over always probing: {'; '.join(parts)}."
    )


def by_size(cells: Sequence[Cell]) -> list[str]:
    """Return the table of the regret and the cost of each policy at each size."""
    sizes = [size for size in SIZES if any(cell.size == size for cell in cells)]
    lines = [
        "| policy | " + " | ".join(f"{SIZES[size]}: regret, cost" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for name, policy in policies(cells):
        parts = []
        for size in sizes:
            score = evaluate([cell for cell in cells if cell.size == size], policy)
            parts.append(f"{100 * score.regret:.2f} ± {100 * score.error:.2f}, {score.cost:.2f}")
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return lines


def four_cells(cells: Sequence[Cell]) -> list[str]:
    """Return the table of every candidate's accuracy by size and similarity, the four quadrants of the textbooks."""
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
            scratch = ", ".join(
                f"{cell.set} {cell.accuracy[SCRATCH]:.3f} (probe {cell.accuracy[PROBE]:.3f})" for cell in tried
            )
            names = ", ".join(cell.set for cell in own)
            lines.append(f"| {side}, {SIZES[size]} | {names} | {' | '.join(means)} | {scratch} |")
    return lines


def noise_floor(cells: Sequence[Cell]) -> float:
    """Return the mean regret of an oracle that sees half of the test images and is scored on the other half.

    A choice among candidates that differ by chance alone has this regret.
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
    """Return the table of how often predicted intervals contain the test accuracy, and of their widths."""
    before: list[tuple[bool, float]] = []
    after: list[tuple[bool, float]] = []
    policy, priors = selector(cells, "balanced"), priors_without(cells)
    for cell in cells:
        belief = belief_about(cell, priors[cell.set])
        chosen = policy(cell).chosen
        place = ALL.index(chosen)
        test = float(cell.correct[chosen].mean())
        num_held_out = cell.evidence["num_images"] * (1.0 if cell.evidence["num_images"] < SMALL_SET else HELD_OUT)
        # Variance of an accuracy p on n images: p (1 - p) / n.
        mean = min(float(belief.mean[place]), 1.0 - 0.5 / cell.num_test)
        test_variance = mean * (1.0 - mean) / cell.num_test
        both = math.sqrt(test_variance + mean * (1.0 - mean) / num_held_out)
        deviation = math.sqrt(float(belief.covariance[place, place]) + test_variance)
        before.append((abs(test - mean) <= NINETY_PERCENT * deviation, deviation / both))
        if chosen in cell.validation_top1:
            mean = min(cell.validation_top1[chosen], 1.0 - 0.5 / num_held_out)
            deviation = math.sqrt(mean * (1.0 - mean) * (1.0 / num_held_out + 1.0 / cell.num_test))
            after.append((abs(test - mean) <= NINETY_PERCENT * deviation, 1.0))
    lines = [
        "| predicted | cells | 90 % intervals that hold | median width over the binomial error's |",
        "|---|---|---|---|",
    ]
    for name, found in (("before training, by the prior", before), ("after training, by held-out images", after)):
        if found:
            held = np.mean([hit for hit, _ in found])
            lines.append(
                f"| {name} | {len(found)} | {100 * held:.0f} % | {np.median([width for _, width in found]):.2f} |"
            )
    return lines


def similarity(cells: Sequence[Cell]) -> str:
    """Return a sentence about the rank correlation of similarity with the gain of fine-tuning over the linear probe."""
    by_set: dict[str, list[tuple[float, float, float]]] = {}
    for cell in cells:
        trained = sum(cell.errors[name] for name in ("partial_brief", "partial", "full_near", "full_far")) / 4
        gain = (cell.errors[PROBE] - trained) / cell.num_test
        left = (trained + 0.5) / (cell.errors[PROBE] + 0.5)
        by_set.setdefault(cell.set, []).append((cell.evidence["domain_similarity"], gain, left))
    means = np.array([np.mean(rows, axis=0) for rows in by_set.values()])
    points, share = (spearmanr(means[:, 0], column) for column in (means[:, 1], means[:, 2]))
    return (
        f"Over {len(means)} sets the rank correlation of domain similarity with the points that fine-tuning gains over "
        f"the linear probe is {points.statistic:+.2f} (p = {points.pvalue:.2f}); with the share of the probe's errors "
        f"that remains after fine-tuning it is {share.statistic:+.2f} (p = {share.pvalue:.2f})."
    )


def averages(cells: Sequence[Cell]) -> list[str]:
    """Return the table that compares averaged probabilities of two candidates with the better of the two."""
    lines = [
        "| mean of | regret, points | gain over the better of the two, points | cost over always full |",
        "|---|---|---|---|",
    ]
    full = sum(cell.costs["full_near"] for cell in cells)
    found = []
    for one in range(len(CANDIDATES)):
        for other in range(one + 1, len(CANDIDATES)):
            names = (CANDIDATES[one], CANDIDATES[other])
            decisions = [finish(cell, names) for cell in cells]
            own = [cell.accuracy[decision.chosen] for cell, decision in zip(cells, decisions, strict=True)]
            alone = [max(cell.accuracy[finish(cell, [name]).chosen] for name in names) for cell in cells]
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


def largest_regrets(cells: Sequence[Cell], prefer: Preference) -> list[str]:
    """Return the table of the cells in which the selector has the largest regrets."""
    policy = selector(cells, prefer)
    found = []
    for cell in cells:
        decision = policy(cell)
        best = max(ALL, key=lambda name: cell.accuracy[name])
        found.append((cell.accuracy[best] - cell.accuracy[decision.chosen], cell.name, decision.chosen, best))
    lines = ["| cell | chosen | best | regret, points |", "|---|---|---|---|"]
    worst = sorted(found, reverse=True)[:6]
    return lines + [f"| {name} | {chosen} | {best} | {100 * regret:.1f} |" for regret, name, chosen, best in worst]
