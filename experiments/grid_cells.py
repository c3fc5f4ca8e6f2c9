"""Read the results of experiments.strategy_grid: one cell for each image set at a size with a seed."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.rows import Row, read_rows
from finetune.decide.candidates import SPECS
from finetune.decide.prior import LEAST_ERROR, features
from finetune.decide.workload import BATCH_SIZE, MOST_VIEWS, TRAINING_FOLDS

PROBE = "linear_probe"
"""Name of the linear probe."""

BELIEVED = tuple(name for name in SPECS if name != "scratch")
"""Candidates that the prior knows, the linear probe first."""

CONSIDERED = tuple(name for name, spec in SPECS.items() if spec.is_considered)
"""Candidates that may be chosen without being asked for, the linear probe first."""


SHIFTED = ("arabic28", "dermoscopy6", "magtile5", "signdigits10", "vehicleview5")
"""Sets whose test groups (writers, lesions, tiles, students, blocks of frames) are unseen in training."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The results of the candidates on an image set at a size with a seed."""

    set: str
    """Name of the image set."""
    size: str
    """Images per class, or `all`."""
    seed: int
    """Seed of the subset and of the trainings."""
    evidence: dict[str, Any]
    """Measurements of the training images, as in evidence.json."""
    accuracy: dict[str, float]
    """Top-1 accuracy on the test images, by candidate, by variant of a candidate, and of the mean probabilities of two
    candidates."""
    costs: dict[str, float]
    """Cost of each candidate in forward equivalents, with all trainings of a cross-validation."""
    rejected: frozenset[str]
    """Candidates that ended worse than their linear probe, which then became the final model."""
    correct: dict[str, NDArray[np.bool_]]
    """Whether each test image (n_images,) is classified correctly, by candidate."""

    @property
    def name(self) -> str:
        """Name of the cell."""
        return f"{self.set}, {self.size}, seed {self.seed}"

    @property
    def is_complete(self) -> bool:
        """Whether all candidates that may be chosen were trained."""
        return all(name in self.accuracy for name in CONSIDERED)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.correct[PROBE])

    @property
    def probe_error(self) -> float:
        """Cross-validated error rate of the linear probe, 0 .. 1."""
        return max(1.0 - float(self.evidence["probe_accuracy"]), LEAST_ERROR)

    @property
    def known(self) -> tuple[float, ...]:
        """Features of the cell that the prior depends on."""
        return features(self.evidence["images_per_class"], self.evidence["domain_similarity"])


def load(path: Path) -> list[Cell]:
    """Return the cells of a grid file that have the evidence, the linear probe and at least two trainings."""
    return cells_of(read_rows(path))


def cells_of(rows: Sequence[Row]) -> list[Cell]:
    """Return the cells of some rows that have the evidence, the linear probe and at least two trainings."""
    found: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        if "arm" in row:
            found.setdefault((row["set"], row["size"], row["seed"]), {}).setdefault(row["arm"], row)
    return [
        _cell(*key, own) for key, own in sorted(found.items()) if {PROBE, "evidence"} <= own.keys() and len(own) > 3
    ]


def joined(names: Sequence[str]) -> str:
    """Return the name of the mean of several candidates."""
    return " + ".join(
        sorted(names, key=lambda name: (BELIEVED.index(name) if name in BELIEVED else len(BELIEVED), name))
    )


def _cell(name: str, size: str, seed: int, rows: dict[str, Row]) -> Cell:
    evidence = rows["evidence"]
    trained = {arm: row for arm, row in rows.items() if "test" in row}
    num_test = len(base64.b64decode(rows[PROBE]["test_labels"]))
    return Cell(
        set=name,
        size=size,
        seed=seed,
        evidence=evidence,
        accuracy=dict(_accuracies(trained, rows.get("mean"))),
        costs={arm: cost_of(row, evidence["num_images"]) for arm, row in trained.items() if "steps" in row},
        rejected=frozenset(arm for arm, row in trained.items() if row.get("note")),
        correct={arm: _bits(row["test"]["correct"], num_test) for arm, row in trained.items()},
    )


def _accuracies(trained: dict[str, Row], means: Row | None) -> Iterator[tuple[str, float]]:
    """Yield the name and the test accuracy of every model of a cell."""
    for arm, row in trained.items():
        yield arm, row["test"]["top1"]
        for variant, found in row.items():
            if isinstance(found, dict) and "test" in found:
                yield f"{arm}, {variant}", found["test"]["top1"]
    for row in means["means"] if means else ():
        if len(row["of"]) == 2:
            yield joined(row["of"]), row["test"]["top1"]


def _bits(packed: str, count: int) -> NDArray[np.bool_]:
    """Return packed truth values (count,), eight in a byte."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8))[:count]
    return bits.astype(np.bool_)


def cost_of(row: Row, num_images: int) -> float:
    """Return the cost of a candidate in forward equivalents.

    If only the final training was run, the cost of all folds and the refit is computed from its cost.
    """
    # The costs of older rows are lists: those of the start, of rungs and of the end, cumulative.
    costs = row["forward_equivalents"]
    alone: float = costs[-1] - costs[0] if isinstance(costs, list) else costs
    if "held_out" in row or not row["steps"]:
        return alone
    images = row["steps"] * BATCH_SIZE
    prefix = 0.0
    if row["strategy"] == "partial":
        # The frozen part, a share 1 - tail of the network, computes all views once. A training step costs a forward
        # pass and twice as much for the backward pass: alone = views (1 - tail) + 3 images tail. Solved for tail:
        views = (MOST_VIEWS + 1) * num_images
        tail = (alone - views) / (3 * images - views)
        prefix = views * (1.0 - tail)
    # Each of the folds' trainings and the refit repeats the steps; all share the cached activations.
    return prefix + (TRAINING_FOLDS + 1) * (alone - prefix)
