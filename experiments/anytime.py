"""Define the contenders of the anytime benchmark, and the curve of accuracy against time that each of them reaches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.rows import Row

BUDGETS = (30, 120, 600)
"""Time budgets at which the contenders are compared, in seconds."""

GRACE = 1.1
"""Multiple of a budget up to which a run counts as ended by then, for each toolkit: no run ends on the second."""

SETS = ("wbc4", "emodb7", "flowers12", "dtd10", "magtile5", "monkey10")
"""Image sets of the comparison: microscopy, spectrograms of speech, flowers, textures, industrial tiles, animals."""

TRAINING_IMAGES = 400
"""Largest number of training images of a set, so that ten epochs fit the longest budget on one core."""

FASTAI_EPOCHS = (1, 3, 10)
"""Epochs of `fine_tune`, each a training of its own."""

SCRIPT_EPOCHS = (0, 3, 10)
"""Epochs of the script, each a training of its own; 0 stands for a logistic regression on frozen features."""

RESERVE = 15
"""Part of a budget that is kept from AutoGluon's time limit for the prediction of the test images, in seconds."""

Results = dict[tuple[str, str, int], Row]
"""Results by contender, set and seed."""

Reached = Sequence[NDArray[np.float64] | None]
"""What a toolkit has reached at a budget on each set, from `reach`."""


@dataclass(frozen=True, slots=True)
class Family:
    """A toolkit with the settings in which it competes."""

    name: str
    """Name on the page."""
    contenders: Mapping[str, str]
    """Names on the page of the settings, by contender; of each a row is measured."""


FAMILIES = (
    Family("finetune", {f"finetune {seconds}": f"`--time-budget {seconds}s`" for seconds in BUDGETS}),
    Family("fastai", {f"fastai {epochs}": f"`fine_tune({epochs})`" for epochs in FASTAI_EPOCHS}),
    Family(
        "script",
        {
            f"script {epochs}": f"{epochs} epochs" if epochs else "logistic regression on features"
            for epochs in SCRIPT_EPOCHS
        },
    ),
    Family("AutoGluon", {f"autogluon {seconds}": f"`time_limit={seconds - RESERVE}`" for seconds in BUDGETS}),
)  # fmt: skip
"""The toolkits that are compared, ours first."""


def within(results: Results, family: Family, name: str, seed: int, budget: float) -> Row | None:
    """Return what a toolkit has reached at a budget: the result of its longest run that has ended by then, or within
    `GRACE` of it.

    No test score takes part in the selection. None: no run has ended.

    Args:
        results: results by contender, set and seed.
        family: the toolkit.
        name: image set.
        seed: seed of the runs.
        budget: time in seconds.
    """
    rows = [results[contender, name, seed] for contender in family.contenders if (contender, name, seed) in results]
    ended = [row for row in rows if row.get("seconds", math.inf) <= GRACE * budget]
    return max(ended, key=lambda row: float(row["seconds"])) if ended else None


def reach(
    results: Results, family: Family, name: str, seeds: Sequence[int], budget: float
) -> NDArray[np.float64] | None:
    """Return what a toolkit has reached at a budget on a set; None: with one of the seeds no run has ended, or no seed
    is given.

    For each test image it is the weight times the share of the seeds that classify it correctly, (n_images,).
    """
    rows = [within(results, family, name, seed, budget) for seed in seeds]
    ended = [right(row) for row in rows if row is not None]
    return np.mean(ended, axis=0) if rows and len(ended) == len(rows) else None


def seeds_of(results: Results, family: Family, name: str, seeds: Sequence[int]) -> list[int]:
    """Return those of the seeds with which all settings of a toolkit were run on a set."""
    return [seed for seed in seeds if all((each, name, seed) in results for each in family.contenders)]


def right(row: Row) -> NDArray[np.float64]:
    """Return for each test image 0 if it was misclassified, else its weight, (n_images,); the mean is the accuracy.

    All images weigh 1, or, where classes are unequal, every class weighs the same: the mean is then the balanced
    accuracy.
    """
    correct = np.array([int(one) for one in row["correct"]], np.float64)
    counts = row.get("test_counts")
    # An image of a class with n_k of the n images weighs n / (K n_k), where K is the number of classes.
    return correct if counts is None else correct * np.repeat(len(correct) / (len(counts) * np.array(counts)), counts)


def paired(one: Sequence[NDArray[np.float64]], other: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return the mean difference in accuracy over image sets and half of its 95 % interval, in points.

    Sets and seeds are taken as they are, the test images as samples: with differences d_i of the images of a set of n,
    the variance of its mean is s^2(d) / n, and that of the mean over k sets the sum of these over k^2.

    Args:
        one: for each set, the weight of each image times the share of the seeds with which it was classified correctly,
            (n_images,).
        other: the same of the other contender.
    """
    differences = [first - second for first, second in zip(one, other, strict=True)]
    variance = sum(float(each.var(ddof=1)) / len(each) for each in differences) / len(differences) ** 2
    return 100 * float(np.mean([each.mean() for each in differences])), 196 * variance**0.5
