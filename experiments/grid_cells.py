"""Reads what `strategy_grid.py` wrote: one cell for each image set at a size with a seed."""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.decide.candidates import RUNGS, SPECS
from finetune.decide.prior import features
from finetune.decide.workload import BATCH_SIZE, MOST_VIEWS, TRAINING_FOLDS

PROBE = "linear_probe"

SCRATCH = "scratch"
"""Trained in some cells alone, and never chosen by itself."""

CANDIDATES = tuple(name for name in SPECS if name not in {PROBE, SCRATCH})
"""Besides the linear probe, from the cheapest on."""

ALL = (PROBE, *CANDIDATES)


@dataclass(frozen=True, slots=True)
class Cell:
    """What the grid knows of an image set at a size with a seed."""

    set: str
    size: str
    seed: int
    evidence: dict[str, Any]
    accuracy: dict[str, float]
    """On the test images by the metric of the set: of each candidate, of random weights where they were trained, and of
    the mean probabilities of several."""
    correct: dict[str, NDArray[np.bool_]]
    """Whether each test image was right, by candidate."""
    validation_top1: dict[str, float]
    """Share of the held-out images that is right; none where nothing was held out."""
    right: dict[str, list[NDArray[np.float64]]]
    """Probability of each held-out image's class at each rung and at the end; none where nothing was held out."""
    costs: dict[str, list[float]]
    """Forward equivalents of each candidate up to each rung, and in all."""
    harmed: frozenset[str]
    """Candidates whose training did harm, so that the linear probe would ship."""
    num_test: int
    device: str
    """What it was trained on; none where that was a CPU and nobody wrote it down."""

    @property
    def name(self) -> str:
        """What the cell is called."""
        return f"{self.set}, {self.size}, seed {self.seed}"

    @property
    def errors(self) -> dict[str, int]:
        """Wrong test images of each candidate."""
        return {name: int((~correct).sum()) for name, correct in self.correct.items()}

    @property
    def known(self) -> tuple[float, ...]:
        """Features of the prior."""
        probe_error = 1.0 - self.evidence["probe_accuracy"]
        return features(self.evidence["images_per_class"], self.evidence["domain_similarity"], probe_error)

    @property
    def final_costs(self) -> list[float]:
        """Forward equivalents of each candidate alone."""
        return [self.costs[name][-1] for name in ALL]

    @property
    def was_held_out(self) -> bool:
        """Whether a race can be replayed."""
        return bool(self.right[PROBE])


def load(path: Path) -> list[Cell]:
    """Return the cells of a grid of which all candidates are there."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = [json.loads(line) for line in file]
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        if "arm" in row:
            found.setdefault((row["set"], row["size"], row["seed"]), {})[row["arm"]] = row
    return [_cell(*key, arms) for key, arms in sorted(found.items()) if {*ALL, "evidence", "mean"} <= arms.keys()]


def joined(names: Sequence[str]) -> str:
    """Return what the mean of several candidates is called."""
    return " + ".join(sorted(names, key=ALL.index))


def _cell(name: str, size: str, seed: int, arms: dict[str, Any]) -> Cell:
    evidence = arms["evidence"]
    metric = evidence["metric"]
    means = {joined(row["of"]): row for row in arms["mean"]["means"]}
    held = "held_out" in arms[CANDIDATES[0]]
    num_test = len(base64.b64decode(arms[PROBE]["test_labels"]))
    return Cell(
        set=name,
        size=size,
        seed=seed,
        evidence=evidence,
        accuracy={arm: arms[arm]["test"][metric] for arm in (*ALL, SCRATCH) if arm in arms}
        | {of: row["test"][metric] for of, row in means.items()},
        correct={arm: _bits(arms[arm]["test"]["correct"], num_test) for arm in ALL},
        validation_top1={arm: arms[arm]["held_out"]["top1"] for arm in ALL} if held else {},
        right={arm: [_probabilities(packed) for packed in arms[arm].get("rungs", ())] if held else [] for arm in ALL},
        costs={arm: _costs(arm, arms[arm], evidence["num_images"]) for arm in ALL},
        harmed=frozenset(arm for arm in ALL if arms[arm].get("note")),
        num_test=num_test,
        device=arms[CANDIDATES[0]].get("device", ""),
    )


def _probabilities(packed: str) -> NDArray[np.float64]:
    """Return the probabilities of the right class of losses that `strategy_grid.py` packed."""
    roots = np.frombuffer(base64.b64decode(packed), dtype=np.uint8) / 64.0
    found: NDArray[np.float64] = np.exp(-(roots**2))
    return found


def _bits(packed: str, count: int) -> NDArray[np.bool_]:
    """Return truth values that `strategy_grid.py` packed."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8))[:count]
    return bits.astype(np.bool_)


def _costs(arm: str, row: dict[str, Any], num_images: int) -> list[float]:
    """Return forward equivalents up to each rung and in all; of a training that was run alone, those that its folds and
    its refit would have taken together."""
    first, *rest = row["forward_equivalents"]
    if "rungs" in row:
        own = [cost - first for cost in rest]
        return own if arm != PROBE else [own[-1]] * (len(RUNGS) + 1)
    alone, images = rest[-1] - first, row["steps"] * BATCH_SIZE
    prefix = 0.0
    if row["strategy"] == "partial":  # alone = views * (1 - tail) + 3 * images * tail
        views = (MOST_VIEWS + 1) * num_images
        tail = (alone - views) / (3 * images - views)
        prefix = views * (1.0 - tail)
    return [
        prefix + trained * (alone - prefix)
        for trained in (*(TRAINING_FOLDS * share for share in RUNGS), TRAINING_FOLDS + 1)
    ]
