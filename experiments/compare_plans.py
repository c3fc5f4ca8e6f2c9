"""Train plans that differ in a setting on the same images, and compare their accuracy on held-out images.

    python -m experiments.compare_plans --data DIR --runs FOLDER --settings training.co_tuning=0 training.co_tuning=2.3
        [--sets flowers12 ...] [--seeds 1 ...] [--strategies partial full] [--per-class 20] [--steps 150]

DIR holds image sets. Of each set, `--per-class` training images of every class are trained on, and up to 700 of the
others are held out; the test split is not read. A setting has the form of `--set`, or of several joined with commas;
each one is compared with the first. Results are appended to FOLDER/plans.jsonl and are not measured again. The tables
at the end show all settings that were asked for.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.measure_ensembles import interval
from experiments.rows import Row, append_row, read_rows
from experiments.strategy_grid import few_of_each_class
from finetune import choose_strategy, load_images, load_recipe, make_plan, measure_evidence
from finetune.data import ImageSplits, labels_of
from finetune.training import train

SETS = (
    "flowers12", "clothing10", "scene15", "cifar10", "pacs_cartoon7", "ucmerced21", "brainmri3", "fashion10",
    "signdigits10",
)  # fmt: skip
"""Image sets on which plans are compared by default."""

MOST_HELD_OUT = 700
"""Largest number of held-out images."""

IMAGE_SIZE = 128
"""Side of the square images, in pixels."""


def divided(folder: Path, per_class: int, seed: int) -> ImageSplits:
    """Return a set with `per_class` training images of each class, and held-out images from the rest."""
    splits = load_images(str(folder))
    labels = labels_of(splits.train)
    own = few_of_each_class(labels, per_class, seed)
    rest = np.setdiff1d(np.arange(len(labels)), own)
    held_out = np.random.default_rng(seed).permutation(rest)[:MOST_HELD_OUT]
    train, validation = (splits.train.select(np.sort(images)) for images in (own, held_out))
    return replace(splits, train=train, validation=validation, test=None)


def measure(name: str, seed: int, strategy: str, setting: str, asked: argparse.Namespace) -> Row:
    """Train a plan with a setting on a set; return its accuracy and log-loss on the held-out images.

    Raises:
        ValueError: the set has no images left to hold out.
    """
    splits = divided(asked.data / name, asked.per_class, seed)
    asked_for: dict[str, Any] = {"image_size": IMAGE_SIZE, "steps": asked.steps, "refit": False}
    asked_for |= dict(pair.split("=", 1) for pair in setting.split(","))
    recipe = load_recipe(data=name, strategy=strategy, seed=seed, **asked_for)
    evidence = measure_evidence(recipe, splits)
    plan = make_plan(recipe, evidence, choose_strategy(evidence, recipe)).changed(evaluations=1)
    start = time.perf_counter()
    model = train(plan, splits)
    if model.validation is None:
        raise ValueError(f"{name} has no images left to hold out; give a smaller --per-class")
    return {
        "set": name,
        "seed": seed,
        "strategy": strategy,
        "per_class": asked.per_class,
        "steps": asked.steps,
        "setting": setting,
        "similarity": evidence.domain_similarity,
        "probe_top1": evidence.probe.accuracy,
        "top1": round(model.validation.top1, 4),
        "log_loss": round(model.validation.log_loss, 4),
        "note": model.note,
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(rows: Sequence[Row], asked: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the tables, one for each strategy."""
    found = {
        (row["set"], row["seed"], row["strategy"], row["setting"]): row
        for row in rows
        if (row["per_class"], row["steps"]) == (asked.per_class, asked.steps)
    }
    first, *others = asked.settings
    for strategy in asked.strategies:
        yield f"| {strategy}, {asked.per_class} per class | " + " | ".join(asked.settings) + " |"
        yield "|---|" + "---|" * len(asked.settings)
        gains: dict[str, list[float]] = {setting: [] for setting in others}
        ratios: dict[str, list[float]] = {setting: [] for setting in others}
        for name in asked.sets:
            cells = {s: [found[name, seed, strategy, s] for seed in asked.seeds] for s in asked.settings}
            for setting in others:
                gains[setting].append(100 * (_mean(cells[setting], "top1") - _mean(cells[first], "top1")))
                ratios[setting].append(_mean(cells[setting], "log_loss") / _mean(cells[first], "log_loss"))
            yield f"| {name} | " + " | ".join(map(_cell, cells.values())) + " |"
        means = [_with_interval(np.array(values)) for values in gains.values()]
        yield "| points gained (90 % over sets) | | " + " | ".join(means) + " |"
        losses = " | ".join(f"{np.mean(values):.3f}" for values in ratios.values())
        yield f"| log-loss, relative to the first setting | | {losses} |"
        yield ""


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _with_interval(values: NDArray[np.float64]) -> str:
    low, high = interval(values)
    return f"{values.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def _cell(rows: Sequence[Row]) -> str:
    rejected = ", rejected" if any(row["note"] for row in rows) else ""
    return f"{_mean(rows, 'top1'):.3f} / {_mean(rows, 'log_loss'):.3f}{rejected}"


def main() -> None:
    """Train the plans whose results are missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the results")
    parser.add_argument("--settings", nargs="+", required=True, metavar="KEY=VALUE[,KEY=VALUE]")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--strategies", nargs="+", default=["partial", "full"])
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--steps", type=int, default=150)
    asked = parser.parse_args()
    asked.runs.mkdir(parents=True, exist_ok=True)
    file = asked.runs / "plans.jsonl"
    rows = read_rows(file)
    keys = ("set", "seed", "strategy", "setting", "per_class", "steps")
    done = {tuple(row[key] for key in keys) for row in rows}
    for seed in asked.seeds:
        for strategy in asked.strategies:
            for name in asked.sets:
                for setting in asked.settings:
                    if (name, seed, strategy, setting, asked.per_class, asked.steps) in done:
                        continue
                    rows.append(measure(name, seed, strategy, setting, asked))
                    append_row(file, rows[-1])
                    print(rows[-1], flush=True)
    print("\n".join(table(rows, asked)))


if __name__ == "__main__":
    main()
