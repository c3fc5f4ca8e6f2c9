"""Read the results of experiments.strategy_grid: one cell for each image set at a size with a seed."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.rows import Row, read_rows
from finetune.decide.candidates import SPECS
from finetune.decide.prior import features
from finetune.decide.workload import BATCH_SIZE, MOST_VIEWS, TRAINING_FOLDS

PROBE = "linear_probe"
"""Name of the linear probe."""

SCRATCH = "scratch"
"""Name of the training from random weights, which was tried in some cells and is never chosen automatically."""

CANDIDATES = tuple(name for name in SPECS if name not in {PROBE, SCRATCH})
"""Candidates that are trained in every cell in addition to the linear probe, the cheapest first."""

ALL = (PROBE, *CANDIDATES)
"""The linear probe and the candidates, the cheapest first."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The results of all candidates on an image set at a size with a seed."""

    set: str
    """Name of the image set."""
    size: str
    """Images per class, or `all`."""
    seed: int
    """Seed of the subset and of the trainings."""
    evidence: dict[str, Any]
    """Measurements of the training images, as in evidence.json."""
    accuracy: dict[str, float]
    """Test accuracy by the metric of the set: of each candidate, of random weights if they were trained, and of the
    mean probabilities of several candidates."""
    correct: dict[str, NDArray[np.bool_]]
    """Whether each test image (n_images,) is classified correctly, by candidate."""
    validation_top1: dict[str, float]
    """Accuracy on the held-out images, by candidate; empty if no images were held out."""
    costs: dict[str, float]
    """Cost of each candidate in forward equivalents."""
    rejected: frozenset[str]
    """Candidates that ended worse than the linear probe, which then becomes the final model."""
    num_test: int
    """Number of test images."""
    device: str
    """Device of the trainings; empty for older rows, which were all trained on a CPU."""

    @property
    def name(self) -> str:
        """Name of the cell."""
        return f"{self.set}, {self.size}, seed {self.seed}"

    @property
    def errors(self) -> dict[str, int]:
        """Number of wrong test images, by candidate."""
        return {name: int((~correct).sum()) for name, correct in self.correct.items()}

    @property
    def known(self) -> tuple[float, ...]:
        """Features of the cell that the prior depends on."""
        probe_error = 1.0 - self.evidence["probe_accuracy"]
        return features(self.evidence["images_per_class"], self.evidence["domain_similarity"], probe_error)


def load(path: Path) -> list[Cell]:
    """Return those cells of a grid file in which all candidates were trained."""
    found: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in read_rows(path):
        if "arm" in row:
            found.setdefault((row["set"], row["size"], row["seed"]), {})[row["arm"]] = row
    return [_cell(*key, rows) for key, rows in sorted(found.items()) if {*ALL, "evidence", "mean"} <= rows.keys()]


def joined(names: Sequence[str]) -> str:
    """Return the name of the mean of several candidates."""
    return " + ".join(sorted(names, key=ALL.index))


def _cell(name: str, size: str, seed: int, rows: dict[str, Row]) -> Cell:
    evidence = rows["evidence"]
    metric = evidence["metric"]
    means = {joined(row["of"]): row for row in rows["mean"]["means"]}
    held = "held_out" in rows[CANDIDATES[0]]
    num_test = len(base64.b64decode(rows[PROBE]["test_labels"]))
    return Cell(
        set=name,
        size=size,
        seed=seed,
        evidence=evidence,
        accuracy={each: rows[each]["test"][metric] for each in (*ALL, SCRATCH) if each in rows}
        | {of: row["test"][metric] for of, row in means.items()},
        correct={each: _bits(rows[each]["test"]["correct"], num_test) for each in ALL},
        validation_top1={each: rows[each]["held_out"]["top1"] for each in ALL} if held else {},
        costs={each: cost_of(rows[each], evidence["num_images"]) for each in ALL},
        rejected=frozenset(each for each in ALL if rows[each].get("note")),
        num_test=num_test,
        device=rows[CANDIDATES[0]].get("device", ""),
    )


def _bits(packed: str, count: int) -> NDArray[np.bool_]:
    """Return packed truth values (count,), eight in a byte."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8))[:count]
    return bits.astype(np.bool_)


def cost_of(row: Row, num_images: int) -> float:
    """Return the cost of a candidate in forward equivalents.

    If only the final training was run, the cost of all folds and the refit is computed from its cost.
    """
    # The costs are cumulative. Those of older rows include the costs at steps at which the training was evaluated.
    first, *_, last = row["forward_equivalents"]
    alone: float = last - first
    if "held_out" in row:
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
