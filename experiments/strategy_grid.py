"""Train every candidate on every image set at several sizes; priors and ablations are replayed from the rows.

    python -m experiments.strategy_grid --data DIR --runs FOLDER [--sets flowers12 ...] [--sizes all 5 20] [--seeds 0 1]
    python -m experiments.strategy_grid --runs FOLDER --write experiments/results/strategy_grid.jsonl.gz

DIR holds image sets, each with train and test. The first form trains and appends rows to FOLDER/rows.jsonl; rows that
are already there are not trained again, so an interrupted grid continues. The second form compresses the rows into a
file.

A row is one candidate in one cell (a set at a size with a seed); its key `arm` names the candidate. It holds the
log-loss and correctness of every held-out image (by cross-validation wherever a run cross-validates) and of every test
image, each for the training and for its blend with the linear probe; and the cost. Older rows also hold held-out losses
after a third and two thirds of the steps, which are not read. Cells that are not cross-validated (`CROSS_VALIDATED`)
hold the test images alone, which takes a quarter of the work; their trainings were compared with the linear probe on
the training images. Rows called `mean` hold the accuracies of averaged probabilities. The prior is fitted to the test
images; they are not used for any other choice.
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
from finetune.decide.workload import SCRATCH_FACTOR
from finetune.ensemble.averages import BLEND, blend
from finetune.predict.metrics import softmax
from finetune.training import Checkpoints, begin, evaluate_at, finish

SETS = (
    "flowers12", "scene15", "clothing10", "cifar10", "pacs_cartoon7", "signdigits10", "magtile5", "ucmerced21",
    "brainmri3", "fashion10", "wbc4",
)  # fmt: skip
"""Image sets of the grid."""

IMAGE_SIZE = 128
"""Side of the square images, in pixels."""

STEPS = {"5": 100, "20": 150, "all": 300}
"""Number of optimizer steps at each size; a size is a number of images per class, or `all`."""

SEEDS = {"5": 5, "20": 2, "all": 2}
"""Number of seeds at each size; a seed determines the subset and the training."""

CROSS_VALIDATED = {"5": 0, "20": 0, "all": 2}
"""Number of seeds at each size with which trainings are cross-validated wherever a run would be, which takes four times
as long; with the other seeds only the final training is run."""


TRAINED = tuple(name for name in SPECS if name != "scratch")
"""Candidates that are trained in every cell; random weights are trained in some cells only."""


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
    """The rows of a folder, and the probabilities of each trained candidate."""

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

    def save_probabilities(self, cell: CellKey, name: str, probabilities: Mapping[str, NDArray[np.float64]]) -> None:
        """Save a candidate's probabilities (n_images, n_classes), so that they can be averaged later."""
        saved: dict[str, Any] = {part: values.astype(np.float16) for part, values in probabilities.items()}
        np.savez_compressed(self._folder / f"{cell.name}-{name}.npz", **saved)

    def probabilities(self, cell: CellKey, name: str) -> dict[str, NDArray[np.float64]]:
        """Return a candidate's saved probabilities."""
        with np.load(self._folder / f"{cell.name}-{name}.npz") as file:
            return {part: file[part].astype(np.float64) for part in file.files}


def _key(cell: CellKey) -> tuple[str, str, int]:
    return cell.set, cell.size, cell.seed


def cells(sets: Sequence[str], sizes: Sequence[str], seeds: Sequence[int] | None) -> Iterator[CellKey]:
    """Yield the cells; all sets with one seed come before the next seed."""
    for seed in seeds if seeds is not None else range(max(SEEDS.values())):
        for size in sizes:
            if seed < SEEDS[size]:
                yield from (CellKey(name, size, seed) for name in sets)


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


def run_cell(cell: CellKey, candidates: Sequence[str], data: Path, rows: GridRows) -> None:
    """Train the candidates of a cell whose rows are missing."""
    missing = [name for name in candidates if not rows.has(cell, name)]
    if not missing and rows.has(cell, "mean"):
        return
    splits = load_images(str(data / cell.set))
    if cell.size != "all":
        kept = few_of_each_class(labels_of(splits.train), int(cell.size), cell.seed)
        splits = replace(splits, train=splits.train.select(kept))
    recipe = Recipe(data=cell.set, image_size=IMAGE_SIZE, seed=cell.seed)
    evidence = measure_evidence(recipe, splits)
    if not rows.has(cell, "evidence"):
        keys = {"speed", "stages", "preprocessing", "image_size_reason", "seconds"}
        rows.add(cell, "evidence", json.loads(evidence.model_dump_json(exclude=keys, by_alias=True)))
    for name in missing:
        row, probabilities = train_candidate(cell, name, recipe, evidence, splits)
        rows.save_probabilities(cell, name, probabilities)
        rows.add(cell, name, row)
        print(cell.name, name, row["test"]["top1"], f"{row['seconds']:.0f} s", flush=True)
    if not rows.has(cell, "mean"):
        rows.add(cell, "mean", {"means": list(averages(cell, TRAINED, rows))})


def train_candidate(
    cell: CellKey, name: str, recipe: Recipe, evidence: Evidence, splits: ImageSplits
) -> tuple[Row, dict[str, NDArray[np.float64]]]:
    """Train a candidate; return its row, and its probabilities of the held-out and the test images by part.

    Raises:
        ValueError: the set has no test split.
    """
    if splits.test is None:
        raise ValueError(f"{cell.set} has no test split")
    start = time.perf_counter()
    if name != "linear_probe":
        recipe = recipe.changed(steps=STEPS[cell.size] * (SCRATCH_FACTOR if name == "scratch" else 1))
    plan = make_plan(recipe, evidence, choose_strategy(evidence, recipe).led_by(name))
    is_last_alone = plan.steps > 0 and plan.validation == "cross_validation" and cell.seed >= CROSS_VALIDATED[cell.size]
    if is_last_alone:  # only the test images of these seeds are used, so no images need to be held out
        plan = plan.changed(validation="given", refit=False, refit_steps=0, evaluations=1)
        splits = replace(splits, validation=splits.train)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.begin()
        state = begin(plan, splits, checkpoints=checkpoints, keeps_weights=True)
        before = state.work
        state, found = evaluate_at(state)
        state, model = finish(state)
        test_labels = labels_of(splits.test)
        tested = {"test": model.probabilities(splits.test)}
        final = found.probe if model.note and found.probe is not None else found.logits
        held = {"held_out": softmax(final / model.temperature)}
        if plan.steps and name != "scratch" and not model.note:
            blended = blend(state)
            tested["blended_test"] = blended.probabilities(splits.test)
            if blended.held_out is not None:
                held["blended_held_out"] = blended.held_out.probabilities
    evaluation: Row = {
        "validation": plan.validation,
        "labels": pack_labels(found.labels),
        "temperature": round(model.temperature, 3),
        **{part: in_detail(probabilities, found.labels) for part, probabilities in held.items()},
    }
    row: Row = {
        "device": evidence.speed.device,
        "strategy": plan.strategy,
        "learning_rate": plan.head_learning_rate,
        "steps": plan.steps,
        "note": model.note,
        "blend": BLEND,
        "test_labels": pack_labels(test_labels),
        **({} if is_last_alone else evaluation),
        **{part: in_detail(probabilities, test_labels) for part, probabilities in tested.items()},
        "forward_equivalents": [done.forward_equivalents for done in (before, model.work)],
        "seconds": round(time.perf_counter() - start, 1),
        "training_seconds": round(model.seconds, 1),
    }
    return row, tested if is_last_alone else {**held, **tested}


def averages(cell: CellKey, candidates: Sequence[str], rows: GridRows) -> Iterator[Row]:
    """Yield the scores of the mean probabilities of every subset of the candidates."""
    detail = {row["arm"]: row for row in rows.all if (row["set"], row["size"], row["seed"]) == _key(cell)}
    tuned = [name for name in candidates if name != "linear_probe"]
    saved = {name: rows.probabilities(cell, name) for name in tuned}
    parts = {"test": "test_labels", "held_out": "labels"}
    labels = {
        part: np.frombuffer(base64.b64decode(detail[tuned[0]][name]), dtype=np.uint8).astype(np.int64)
        for part, name in parts.items()
        if name in detail[tuned[0]]
    }
    for count in range(2, len(tuned) + 1):
        for subset in itertools.combinations(tuned, count):
            means = {part: np.mean([saved[name][part] for name in subset], axis=0) for part in labels}
            yield {"of": subset, **{part: scores(means[part], labels[part]) for part in labels}}


def main() -> None:
    """Train the grid, or compress its rows into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the image sets")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--sizes", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument(
        "--scratch", action="store_true", help="also train from random weights, which takes five times as long"
    )
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
    candidates = (*TRAINED, "scratch") if asked.scratch else TRAINED
    for cell in cells(asked.sets, asked.sizes, asked.seeds):
        run_cell(cell, candidates, asked.data, rows)


if __name__ == "__main__":
    main()
