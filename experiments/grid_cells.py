"""Read the results of experiments.strategy_grid: one cell for each image set at a size with a seed."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.rows import Row, read_rows
from finetune.decide.candidates import RUNGS, SPECS
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
    right: dict[str, list[NDArray[np.float64]]]
    """Probability of the correct class of each held-out image (n_images,) at each rung and at the end, by candidate;
    empty lists if no images were held out."""
    costs: dict[str, list[float]]
    """Cost of each candidate up to each rung and in total, in forward equivalents."""
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

    @property
    def final_costs(self) -> list[float]:
        """Total cost of each candidate in forward equivalents, in the order of `ALL`."""
        return [self.costs[name][-1] for name in ALL]

    @property
    def was_held_out(self) -> bool:
        """Whether images were held out, so that a race can be replayed."""
        return bool(self.right[PROBE])


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
        right={each: [_probabilities(rung) for rung in rows[each].get("rungs", ())] if held else [] for each in ALL},
        costs={each: _costs(each, rows[each], evidence["num_images"]) for each in ALL},
        rejected=frozenset(each for each in ALL if rows[each].get("note")),
        num_test=num_test,
        device=rows[CANDIDATES[0]].get("device", ""),
    )


def _probabilities(packed: str) -> NDArray[np.float64]:
    """Return the probabilities of the correct class from packed losses."""
    # A byte holds 64 sqrt(loss); the probability is exp(-loss).
    roots = np.frombuffer(base64.b64decode(packed), dtype=np.uint8) / 64.0
    found: NDArray[np.float64] = np.exp(-(roots**2))
    return found


def _bits(packed: str, count: int) -> NDArray[np.bool_]:
    """Return packed truth values (count,), eight in a byte."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8))[:count]
    return bits.astype(np.bool_)


def _costs(candidate: str, row: Row, num_images: int) -> list[float]:
    """Return the cost up to each rung and in total, in forward equivalents.

    If only the final training was run, the cost of all folds and the refit is computed from its cost.
    """
    first, *rest = row["forward_equivalents"]
    if "rungs" in row:
        own = [cost - first for cost in rest]
        return own if candidate != PROBE else [own[-1]] * (len(RUNGS) + 1)
    alone, images = rest[-1] - first, row["steps"] * BATCH_SIZE
    prefix = 0.0
    if row["strategy"] == "partial":
        # The frozen part, a share 1 - tail of the network, computes all views once. A training step costs a forward
        # pass and twice as much for the backward pass: alone = views (1 - tail) + 3 images tail. Solved for tail:
        views = (MOST_VIEWS + 1) * num_images
        tail = (alone - views) / (3 * images - views)
        prefix = views * (1.0 - tail)
    # Each of the folds' trainings and the refit repeats the steps; all share the cached activations.
    return [
        prefix + trained * (alone - prefix)
        for trained in (*(TRAINING_FOLDS * share for share in RUNGS), TRAINING_FOLDS + 1)
    ]
