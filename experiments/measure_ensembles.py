"""Train ensembles, averages and the single model on several image sets, and write the gains of the averages.

    python -m experiments.measure_ensembles --data DIR --runs FOLDER [--few] [--sets flowers12 ...] [--seeds 0 1 2]
    python -m experiments.measure_ensembles --runs FOLDER [--few] --write docs/explanation/ensembles.md

DIR holds image sets, each with train and test. The first form appends a row to FOLDER/rows.jsonl for each set and seed;
rows that are already there are not measured again. A row holds the test results of the single model; of the same model
without its moving average, with test-time flips, and blended with the linear probe; and of averages of seeds, snapshots
and backbones. The recommended option is selected on the held-out images as in a run with `--ensemble`; the test images
are not used for any choice. With --few the sets are small enough for a run to cross-validate, and the mean of its folds
is measured.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.pages import write_between
from experiments.rows import Row, append_row, read_rows
from finetune import ImageSplits, Recipe, choose_strategy, load_images, make_plan, measure_evidence
from finetune.data import labels_of
from finetune.decide.plan import Plan
from finetune.ensemble.averages import blend, fold_models, soup, with_flips
from finetune.ensemble.members import BLENDED, FLIPPED
from finetune.ensemble.recommendation import Offer, recommend
from finetune.predict.metrics import metric_value, score
from finetune.predict.model import Predictor, average
from finetune.recipe import SMALL_MODELS
from finetune.training import begin, finish, train

SETS = ("flowers12", "clothing10", "ucmerced21", "brainmri3", "fashion10", "cifar10")
"""Image sets that are measured by default."""

IMAGES = 600
"""Number of training images of each set; a fifth of them is held out."""

FEW = 200
"""Number of training images of each set with --few, few enough for a run to cross-validate."""

STEPS = 100
"""Number of training steps."""

SEEDS = 3
"""Number of members of an ensemble of seeds."""

SNAPSHOTS = 3
"""Number of members of an ensemble of snapshots."""


def plan_of(recipe: Recipe, splits: ImageSplits) -> tuple[Plan, float]:
    """Return the plan of a recipe, and the expected time of a prediction in milliseconds per image."""
    evidence = measure_evidence(recipe, splits)
    plan = make_plan(recipe, evidence, choose_strategy(evidence, recipe))
    return plan, 1e3 / evidence.speed.forward_images_per_second


def run_few(name: str, seed: int, data: Path) -> Row:
    """Train the single model and the mean of its folds on few images of a set; return the row."""
    splits = load_images(str(data / name), limit=FEW, seed=seed)
    plan, latency = plan_of(Recipe(data=name, image_size=128, seed=seed, steps=STEPS), splits)
    started = time.perf_counter()
    state, single = finish(begin(plan, splits, keeps_weights=True))
    mean = single if single.rejected else average([single, *fold_models(state, single)])
    options = {
        "single": tested(single, splits, plan, latency),
        "mean of folds": tested(mean, splits, plan, latency * (1 + plan.folds)),
    }
    seconds = round(time.perf_counter() - started, 1)
    return {
        "set": name, "seed": seed, "strategy": plan.strategy, "metric": plan.metric, "options": options,
        "recommended": {}, "seconds": seconds,
    }  # fmt: skip


def run_cell(name: str, seed: int, data: Path) -> Row:
    """Train the single model and all averages on a set with a seed; return the row."""
    splits = load_images(str(data / name), limit=IMAGES, seed=seed)
    recipe = Recipe(data=name, image_size=128, seed=seed, refit=False, steps=STEPS)
    plan, latency = plan_of(recipe, splits)
    started = time.perf_counter()
    first, single = finish(begin(plan, splits, keeps_weights=True))
    unaveraged = train(plan.changed(average_decay=0.0), splits)
    seeds, snapshots = [(first, single)], [(first, single)]
    for number in range(1, SEEDS):
        seeds.append(finish(begin(plan.changed(training_seed=seed + number), splits, keeps_weights=True)))
    for number in range(1, SNAPSHOTS):
        snapshots.append(finish(begin(plan.changed(cycle=number), splits, previous=first, keeps_weights=True)))
    backbones, slower = [single], latency
    for network in SMALL_MODELS[1:]:
        own, milliseconds = plan_of(recipe.changed(model=network), splits)
        backbones.append(train(own, splits))
        slower += milliseconds
    models: dict[str, tuple[Predictor, float]] = {
        "single": (single, latency),
        "without its moving average": (unaveraged, latency),
        BLENDED: (blend(first), latency),
        "mean of seeds": (average([model for _, model in seeds]), SEEDS * latency),
        "mean of snapshots": (average([model for _, model in snapshots]), SNAPSHOTS * latency),
        "mean of backbones": (average(backbones), slower),
    }
    soups = {"soup of seeds": soup(seeds), "soup of snapshots": soup(snapshots)}
    models |= {label: (mixed, latency) for label, mixed in soups.items() if mixed is not None}
    if plan.augmentation.horizontal_flip:
        models[FLIPPED] = (with_flips(first), 2 * latency)
    row: Row = {"set": name, "seed": seed, "strategy": plan.strategy, "metric": plan.metric, "options": {}}
    for label, (model, milliseconds) in models.items():
        row["options"][label] = tested(model, splits, plan, milliseconds)
    for label in soups.keys() & models.keys():
        mean = label.replace("soup", "mean")
        row["options"][label]["train_seconds"] = row["options"][mean]["train_seconds"]
    row |= {"recommended": dict(recommendations(models)), "seconds": round(time.perf_counter() - started, 1)}
    return row


def tested(model: Predictor, splits: ImageSplits, plan: Plan, milliseconds: float) -> Row:
    """Return the test results of a model, its training time in seconds and its prediction time in ms per image.

    Raises:
        ValueError: the set has no test split.
    """
    if splits.test is None:
        raise ValueError("the set has no test split")
    probabilities, labels = model.probabilities(splits.test), labels_of(splits.test)
    found = score(probabilities, labels, list(splits.class_names))
    return {
        "accuracy": round(metric_value(plan.metric, probabilities.argmax(axis=1), labels), 4),
        "log_loss": round(found.log_loss, 4),
        "calibration_error": round(found.calibration_error, 4),
        "train_seconds": round(model.seconds, 1),
        "predict_milliseconds": round(milliseconds, 3),
    }


def recommendations(models: dict[str, tuple[Predictor, float]]) -> Iterator[tuple[str, str]]:
    """Yield the kinds of ensembles, and the option that a run with each kind would recommend."""
    for kind in ("seeds", "snapshots", "backbones"):
        entered = [f"mean of {kind}", "single"]
        if kind != "backbones":
            entered += [name for name in (FLIPPED, BLENDED, f"soup of {kind}") if name in models]
        offers = [
            Offer(name=name, model=models[name][0], train_seconds=0.0, predict_milliseconds=models[name][1])
            for name in entered
        ]
        yield kind, next(option.name for option in recommend(offers, requested=0) if option.recommended)


def gains(rows: Sequence[Row], options: Sequence[Row]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean gain over the single model, in points, and the relative log-loss of each set, (n_sets,) each.

    Args:
        rows: the rows of all sets and seeds.
        options: the option to compare with the single model, in each row.
    """
    points: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    for row, option in zip(rows, options, strict=True):
        single = row["options"]["single"]
        points.setdefault(row["set"], []).append(100 * (option["accuracy"] - single["accuracy"]))
        losses.setdefault(row["set"], []).append(option["log_loss"] / single["log_loss"])
    return tuple(np.array([np.mean(own) for own in found.values()]) for found in (points, losses))  # type: ignore[return-value]


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 90 % interval of the mean over sets, by drawing sets with replacement."""
    drawn = np.random.default_rng(0).choice(values, (4000, len(values))).mean(axis=1)
    return float(np.quantile(drawn, 0.05)), float(np.quantile(drawn, 0.95))


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| | gain, points (90 %) | log-loss, relative | calibration error | training, x | prediction, x |"
    yield "|---|---|---|---|---|---|"
    names = sorted({name for row in rows for name in row["options"]} - {"single"})
    lines = {name: [row["options"].get(name, row["options"]["single"]) for row in rows] for name in names}
    for kind in rows[0]["recommended"]:
        lines[f"recommended of {kind}"] = [row["options"][row["recommended"][kind]] for row in rows]
    for name, options in lines.items():
        points, losses = gains(rows, options)
        low, high = interval(points)
        error = np.mean([option["calibration_error"] for option in options])
        singles = [row["options"]["single"] for row in rows]
        costs = [
            np.mean([option[key] / single[key] for option, single in zip(options, singles, strict=True)])
            for key in ("train_seconds", "predict_milliseconds")
        ]
        yield (
            f"| {name} | {points.mean():+.2f} ({low:+.2f} to {high:+.2f}) | {losses.mean():.3f} | {error:.3f} | "
            f"{costs[0]:.1f} | {costs[1]:.1f} |"
        )


def write_table(path: Path, rows: Sequence[Row], is_few: bool) -> None:
    """Replace the table between the marks of a page."""
    what = "folds, " if is_few else ""
    sets, seeds = sorted({row["set"] for row in rows}), sorted({row["seed"] for row in rows})
    source = (
        f"{len(sets)} sets ({', '.join(sets)}), {len(rows)} cells, seeds {', '.join(map(str, seeds))}; 2 CPU cores "
        f"(x86_64), {date.today()}."
    )
    lines = "\n".join(table(rows))
    begin = f"<!-- begins: {what}written by experiments.measure_ensembles -->"
    write_between(path, begin, f"{lines}\n\n{source}")


def main() -> None:
    """Train what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the image sets")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--few", action="store_true", help=f"{FEW} training images of each set, cross-validated")
    parser.add_argument("--write", type=Path, help="page whose table is replaced; nothing is trained")
    asked = parser.parse_args()
    asked.runs.mkdir(parents=True, exist_ok=True)
    file = asked.runs / ("few.jsonl" if asked.few else "rows.jsonl")
    rows = read_rows(file)
    if asked.write:
        write_table(asked.write, rows, asked.few)
        return
    for seed in asked.seeds:
        for name in asked.sets:
            if any((row["set"], row["seed"]) == (name, seed) for row in rows):
                continue
            rows.append((run_few if asked.few else run_cell)(name, seed, asked.data))
            append_row(file, rows[-1])
            print(name, seed, rows[-1]["recommended"], f"{rows[-1]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
