"""Train every candidate, and variants of it, on image sets at several sizes; the prior and the report use the rows.

    python -m experiments.strategy_grid --data DIR --runs FOLDER [--sets flowers12 ...] [--sizes all 20 5] [--seeds 0]
    python -m experiments.strategy_grid --runs FOLDER --write experiments/results/strategy_grid.jsonl.gz

DIR holds image sets, each with train and test. The first form trains and appends rows to FOLDER/rows.jsonl; rows that
are already there are not trained again, so an interrupted grid continues. The second form compresses the rows into a
file. Image sets that only check the result (`LOCKED`) are refused.

A row is one training in one cell (a set at a size with a seed); its key `arm` names it: a candidate, or a candidate and
what is different about it. It holds the scores, the log-loss and the correctness of every test image and, where images
are held out, of every held-out image; the same scores of the network with test-time flips and of its blend with the
linear probe; and the cost. Sets that a run would cross-validate (fewer than 600 images) are trained once, on all
images, which takes a quarter of the work. The row called `mean` holds the accuracies of averages of two. The prior is
fitted to the test images; the sets of `LOCKED` are not used for it.
"""

import argparse
import base64
import gzip
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.rows import Row, append_row, read_rows
from finetune import Evidence, ImageSplits, Recipe, choose_strategy, load_images, make_plan, measure_evidence
from finetune.data import labels_of
from finetune.decide.candidates import SPECS
from finetune.decide.plan import Plan
from finetune.ensemble.averages import blend, with_flips
from finetune.predict.model import TrainedModel
from finetune.training import Checkpoints, begin, finish

LOCKED = ("emodb7", "dtd10", "trash6")
"""Image sets that nothing is chosen on; experiments.locked_sets scores them once."""

SETS = (
    "flowers12", "scene15", "clothing10", "cifar10", "monkey10", "pacs_cartoon7", "signdigits10", "magtile5",
    "seedling12", "vehicleview5", "ucmerced21", "brainmri3", "fashion10", "wbc4", "arabic28", "dermoscopy6",
)  # fmt: skip
"""Image sets of the grid."""

IMAGE_SIZE = 128
"""Side of the square images, in pixels."""

TRAINED = tuple(name for name, spec in SPECS.items() if spec.is_considered)
"""Candidates that are trained in every cell."""

VARIANTS: dict[str, tuple[str, float, dict[str, float]]] = {
    "full_near, half the steps": ("full_near", 0.5, {}),
    "full_near, twice the steps": ("full_near", 2.0, {}),
    "full_far, twice the steps": ("full_far", 2.0, {}),
    "full_near, lower stages slower": ("full_near", 1.0, {"lowest_rate_fraction": 0.1}),
    "full_far, lower stages slower": ("full_far", 1.0, {"lowest_rate_fraction": 0.1}),
    "full, a quarter of the near rate": ("full_near", 1.0, {"learning_rate": 1e-4}),
    "partial_brief, twice the rate": ("partial_brief", 1.0, {"learning_rate": 1.6e-3}),
}
"""Variants by name: a candidate, a factor on its number of steps, and keys of the recipe's `training`."""


@dataclass(frozen=True, slots=True)
class CellKey:
    """A set at a size with a seed."""

    set: str
    """Name of the image set."""
    size: str
    """Images per class, or `all`."""
    seed: int
    """Seed of the subset and of the trainings."""

    @property
    def name(self) -> str:
        """Start of the names of the cell's files."""
        return f"{self.set}-{self.size}-{self.seed}"


class GridRows:
    """The rows of a folder, and the probabilities of each training."""

    def __init__(self, folder: Path) -> None:
        """Read the rows that a folder holds."""
        self._file = folder / "rows.jsonl"
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.all = read_rows(self._file)

    def has(self, cell: CellKey, name: str) -> bool:
        """Return whether a cell has a row of this name."""
        return any((row["set"], row["size"], row["seed"], row["arm"]) == (*_key(cell), name) for row in self.all)

    def add(self, cell: CellKey, name: str, row: Row) -> None:
        """Append a row."""
        row = {"set": cell.set, "size": cell.size, "seed": cell.seed, "arm": name, **row}
        self.all.append(row)
        append_row(self._file, row)

    def save_probabilities(self, cell: CellKey, name: str, probabilities: NDArray[np.float64]) -> None:
        """Save the probabilities (n_images, n_classes) of the test images, so that they can be averaged later."""
        np.savez_compressed(self._folder / f"{cell.name}-{name}.npz", test=probabilities.astype(np.float16))

    def probabilities(self, cell: CellKey, name: str) -> NDArray[np.float64]:
        """Return saved probabilities."""
        with np.load(self._folder / f"{cell.name}-{name}.npz") as file:
            found: NDArray[np.float64] = file["test"].astype(np.float64)
        return found


def _key(cell: CellKey) -> tuple[str, str, int]:
    return cell.set, cell.size, cell.seed


def losses(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log-loss (n_images,) of each image in nats, at most 15.9."""
    right = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(right, 1.3e-7, 1.0))


def pack_losses(values: NDArray[np.float64]) -> str:
    """Return losses as text, a byte each: 64 sqrt(loss), whose resolution is finest for small losses."""
    return base64.b64encode(np.round(np.sqrt(values) * 64).clip(0, 255).astype(np.uint8).tobytes()).decode()


def pack_bits(values: NDArray[np.bool_]) -> str:
    """Return truth values as text, eight in a byte."""
    return base64.b64encode(np.packbits(values).tobytes()).decode()


def pack_labels(values: NDArray[np.int64]) -> str:
    """Return labels below 256 as text, a byte each."""
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()


def scores(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Row:
    """Return the accuracies in 0 .. 1 and the mean log-loss in nats."""
    right = probabilities.argmax(axis=1) == labels
    return {
        "top1": round(float(right.mean()), 4),
        "balanced_accuracy": round(float(np.mean([right[labels == label].mean() for label in np.unique(labels)])), 4),
        "log_loss": round(float(losses(probabilities, labels).mean()), 4),
    }


def in_detail(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Row:
    """Return the scores, and the loss and correctness of each image."""
    return {
        **scores(probabilities, labels),
        "losses": pack_losses(losses(probabilities, labels)),
        "correct": pack_bits(probabilities.argmax(axis=1) == labels),
    }


def few_of_each_class(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.intp]:
    """Return sorted indices of `count` images of each class, or of all images of a smaller class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    kept = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept))


def run_cell(cell: CellKey, names: Sequence[str], data: Path, rows: GridRows, model: str = "auto") -> None:
    """Train the candidates and variants of a cell whose rows are missing, with a network."""
    missing = [name for name in names if not rows.has(cell, name)]
    if not missing and rows.has(cell, "mean"):
        return
    splits = load_images(str(data / cell.set))
    if cell.size != "all":
        kept = few_of_each_class(labels_of(splits.train), int(cell.size), cell.seed)
        splits = replace(splits, train=splits.train.select(kept))
    recipe = Recipe(data=cell.set, model=model, image_size=IMAGE_SIZE, seed=cell.seed)
    evidence = measure_evidence(recipe, splits)
    if not rows.has(cell, "evidence"):
        keys = {"speed", "stages", "preprocessing", "image_size_reason", "seconds"}
        rows.add(cell, "evidence", json.loads(evidence.model_dump_json(exclude=keys, by_alias=True)))
    for name in missing:
        row, probabilities = train_row(plan_of(name, recipe, evidence), splits)
        rows.save_probabilities(cell, name, probabilities)
        rows.add(cell, name, {"device": evidence.speed.device, **row})
        print(cell.name, name, row["test"]["top1"], f"{row['seconds']:.0f} s", flush=True)
    if not rows.has(cell, "mean"):
        trained = [name for name in TRAINED if name != "linear_probe"]
        rows.add(cell, "mean", {"means": list(averages(cell, trained, labels_of(_test(splits)), rows))})


def plan_of(name: str, recipe: Recipe, evidence: Evidence) -> Plan:
    """Return the plan of a candidate or of a variant."""
    candidate, factor, training = VARIANTS.get(name, (name, 1.0, {}))
    recipe = recipe.changed(training=recipe.training.changed(**training))
    choice = choose_strategy(evidence, recipe).led_by(candidate)
    if factor == 1.0:
        return make_plan(recipe, evidence, choice)
    steps = round(factor * choice.chosen.workload(recipe, evidence).steps)
    return make_plan(recipe.changed(steps=steps), evidence, choice)


def train_row(plan: Plan, splits: ImageSplits) -> tuple[Row, NDArray[np.float64]]:
    """Train a plan; return its row, and its probabilities of the test images (n_images, n_classes).

    Raises:
        ValueError: the set has no test split.
    """
    start = time.perf_counter()
    is_last_alone = plan.steps > 0 and plan.validation == "cross_validation"
    if is_last_alone:
        plan = plan.changed(validation="given", refit=False, refit_steps=0, evaluations=1)
        splits = replace(splits, validation=splits.train)
    test = _test(splits)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.begin()
        state, model = finish(begin(plan, splits, checkpoints=checkpoints, keeps_weights=True))
        seconds = time.perf_counter() - start
        others: dict[str, TrainedModel] = {}
        if plan.steps and not model.rejected:
            others["blend"] = blend(state)
            if plan.augmentation.horizontal_flip:
                others["flips"] = with_flips(state)
        probabilities = model.probabilities(test)
        found: Mapping[str, Row] = {
            name: {"test": scores(other.probabilities(test), labels_of(test))} for name, other in others.items()
        }
    held = model.held_out
    row: Row = {
        "strategy": plan.strategy,
        "learning_rate": plan.head_learning_rate,
        "steps": plan.steps,
        "small_steps": plan.small_steps,
        "note": model.note,
        "test_labels": pack_labels(labels_of(test)),
        "test": in_detail(probabilities, labels_of(test)),
        **({} if is_last_alone or held is None else {"held_out": in_detail(held.probabilities, held.labels)}),
        **found,
        "forward_equivalents": model.work.forward_equivalents,
        "seconds": round(seconds, 1),
    }
    return row, probabilities


def _test(splits: ImageSplits) -> Any:  # noqa: ANN401  (a datasets.Dataset)
    if splits.test is None:
        raise ValueError("the set has no test split")
    return splits.test


def averages(cell: CellKey, names: Sequence[str], labels: NDArray[np.int64], rows: GridRows) -> Iterator[Row]:
    """Yield the scores of the mean probabilities of every two trainings."""
    saved = {name: rows.probabilities(cell, name) for name in names}
    for pair in itertools.combinations(names, 2):
        yield {"of": pair, "test": scores((saved[pair[0]] + saved[pair[1]]) / 2, labels)}


def main() -> None:
    """Train the grid, or compress its rows into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the image sets")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--sizes", nargs="+", default=["all", "20", "5"], choices=["all", "20", "5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", default="auto", help="network, by timm's name; each has a folder of its own")
    parser.add_argument("--variants", nargs="*", default=[], choices=list(VARIANTS), help="variants to train as well")
    parser.add_argument("--write", type=Path, help="file for the compressed rows; nothing is trained")
    asked = parser.parse_args()
    rows = GridRows(asked.runs)
    if asked.write:
        about = {
            "command": "python -m experiments.strategy_grid --data DIR --runs FOLDER",
            "date": str(date.today()),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "versions": {name: version(name) for name in ("torch", "timm", "accelerate", "scikit-learn")},
        }
        with gzip.open(asked.write, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in (about, *rows.all))
        return
    for seed, size, name in itertools.product(asked.seeds, asked.sizes, asked.sets):
        run_cell(CellKey(name, size, seed), (*TRAINED, *asked.variants), asked.data, rows, asked.model)


if __name__ == "__main__":
    main()
