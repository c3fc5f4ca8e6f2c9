"""Know when a model should not answer: where it is unsure, and where an image is unlike its training images.

Both limits come from images of the run. The probability from which on labels are given is found on the held-out images.
The distance up to which an image counts as like the training images is that of the training images from each other: the
distance of an image is that of its nearest training image, one less the cosine of their features (Sun et al. 2022,
"Out-of-distribution detection with deep nearest neighbors").
"""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from finetune.data import Unreadable
from finetune.errors import RunFolderError
from finetune.predict.files import remembered
from finetune.predict.labelling import Say, describe_files, say_nothing, table_of_labels
from finetune.predict.metrics import wilson_interval
from finetune.predict.model import Predictor
from finetune.predict.rows import Columns

FARTHEST = 0.99
"""Share of the training images that are nearer to another one than the largest distance at which labels are given."""

UNSURE, UNLIKE = "unsure", "unlike the training images"
"""Reasons why a label is withheld."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastProbability:
    """The smallest probability at which labels are given, and what it does on the held-out images."""

    value: float
    """Smallest probability of the most probable class, 0 .. 1."""
    share: float
    """Share of the held-out images that are labelled."""
    right: float
    """Share of the labelled ones whose label is right."""
    interval: tuple[float, float]
    """95 % interval of that share (Wilson)."""


def find_least_probability(
    probabilities: NDArray[np.float64], is_right: NDArray[np.bool_], wanted: float
) -> LeastProbability | None:
    """Return the smallest probability from which on a share of the labels is right; None if there is none.

    Args:
        probabilities: probability of the most probable class of each held-out image, (n,).
        is_right: whether that class is right, (n,).
        wanted: share of the labels that shall be right, 0 .. 1.
    """
    order = np.argsort(-probabilities, kind="stable")
    sorted_probabilities, right = probabilities[order], np.cumsum(is_right[order])
    count = np.arange(1, len(order) + 1)
    # right / (count + 1): one further image is counted as wrong, because the best of many limits is chosen. A limit
    # takes all images of equal probability.
    is_last = np.append(np.diff(sorted_probabilities) < 0, True)
    enough = np.flatnonzero(is_last & (right / (count + 1) >= wanted))
    if not len(enough):
        return None
    last = int(enough[-1])
    return LeastProbability(
        value=float(sorted_probabilities[last]),
        share=float(count[last] / len(order)),
        right=float(right[last] / count[last]),
        interval=wilson_interval(int(right[last]), int(count[last])),
    )


def least_probability_in_set(own: NDArray[np.float64], coverage: float) -> float:
    """Return the smallest probability of the classes in a set that holds the right class with a given probability.

    This is split conformal prediction with the score 1 - p (Sadinle et al. 2019; Angelopoulos & Bates 2021).

    Args:
        own: probability of the right class of each held-out image, (n,).
        coverage: share of the sets that shall hold the right class, 0 .. 1.
    """
    # The ceil((n + 1) coverage)-th smallest score of n; above n, every class is in the set.
    rank = int(np.ceil((len(own) + 1) * coverage))
    return 0.0 if rank > len(own) else float(np.sort(own)[len(own) - rank])


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Training images, as features, to which new images are compared."""

    features: NDArray[np.float32]
    """Features of the images, each of length 1, (n, width)."""
    limit: float
    """Distance up to which an image is like the training images."""

    @classmethod
    def among(cls, features: NDArray[np.float32]) -> Self:
        """Return the neighbours for the features (n, width) of at least two training images."""
        own = _unit(features)
        cosines = own @ own.T
        np.fill_diagonal(cosines, -1.0)
        return cls(features=own, limit=float(np.quantile(1.0 - cosines.max(axis=1), FARTHEST)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the neighbours in a file.

        Raises:
            RunFolderError: there is no such file, or it is damaged.
        """
        if not path.exists():
            raise RunFolderError(
                f"{path} is missing, because an earlier version made this run; train it again to tell unlike images"
            )
        try:
            stored = load_file(path)
            features, limit = stored["features"].astype(np.float32), float(stored["limit"][0])
        except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
            raise RunFolderError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
        if features.ndim != 2 or not np.isfinite(features).all() or not np.isfinite(limit):
            raise RunFolderError(f"{path} is damaged: its numbers are not those of features")
        return cls(features=features, limit=limit)

    def save(self, path: Path) -> None:
        """Write the neighbours into a file, in float16."""
        path.write_bytes(save({"features": self.features.astype(np.float16), "limit": np.asarray([self.limit])}))

    def distances(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the distance of each image from its nearest neighbour, 0 .. 2, for features (k, width): (k,).

        Raises:
            RunFolderError: the features are of another network.
        """
        if features.shape[1] != self.features.shape[1]:
            raise RunFolderError(
                f"the neighbours of this run have {self.features.shape[1]} features, but its network has "
                f"{features.shape[1]}; train it again"
            )
        return np.asarray(1.0 - (_unit(features) @ self.features.T).max(axis=1), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an image must have to be labelled."""

    least: LeastProbability
    """Smallest probability of the most probable class."""
    neighbours: Neighbours
    """Training images, one of which it must be like."""

    def why_withheld(self, probabilities: NDArray[np.floating], distances: NDArray[np.floating]) -> list[str]:
        """Return, for each image, the reason why its label is withheld, or "".

        Args:
            probabilities: probability of the most probable class, (k,).
            distances: distance from the nearest training image, (k,).
        """
        return [
            UNLIKE if distance > self.neighbours.limit else UNSURE if probability < self.least.value else ""
            for probability, distance in zip(probabilities, distances, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """What a model does where it may be wrong."""

    limits: Limits | None = None
    """What an image must have to be labelled; None: all images are labelled."""
    least_in_set: float | None = None
    """Smallest probability of the classes of a set; None: no sets are made."""


def label_with_doubt(
    model: Predictor, chunks: Iterator[list[str]], top_k: int, doubt: Doubt, say: Say = say_nothing
) -> Iterator[tuple[Columns, list[Unreadable]]]:
    """Yield tables like those of `label_files`, with what is doubtful about each label.

    Where a label is withheld, `label` is empty, and `guess` still names the most probable class. `withheld` has the
    reason, and `distance` that of the nearest training image. `set` is a JSON list of the classes that the right one is
    expected to be among, the most probable one first.

    Args:
        model: the model that predicts the labels.
        chunks: paths of the files of each chunk.
        top_k: number of classes to name for each image.
        doubt: the limits.
        say: called with each sentence about how images of several pages, more channels, ... are read.
    """
    names = model.class_names
    waiting: deque[list[str]] = deque()
    for found in model.label(remembered(chunks, waiting), with_features=doubt.limits is not None):
        describe_files(found.kinds, model.reading, say)
        paths, left_out = found.divided(waiting.popleft())
        probabilities = found.rows[:, : len(names)].reshape(len(paths), len(names))
        columns = table_of_labels(names, paths, probabilities, top_k)
        added: Columns = {}
        if doubt.limits is not None and paths:
            distances = doubt.limits.neighbours.distances(found.rows[:, len(names) :])
            withheld = doubt.limits.why_withheld(probabilities.max(axis=1), distances)
            guesses = columns["label"]
            columns["label"] = ["" if why else str(label) for why, label in zip(withheld, guesses, strict=True)]
            added |= {"guess": guesses, "withheld": withheld, "distance": distances.tolist()}
        if doubt.least_in_set is not None:
            added["set"] = [_set_of(row, names, doubt.least_in_set) for row in probabilities]
        first = {name: columns.pop(name) for name in ("path", "label", "probability")}
        yield first | added | columns, left_out


def _set_of(probabilities: NDArray[np.float64], names: tuple[str, ...], least: float) -> str:
    """Return the classes whose probability (n_classes,) is large enough, and at least the best, as a JSON list."""
    order = np.argsort(-probabilities, kind="stable")
    count = max(1, int((probabilities >= least).sum()))
    return json.dumps([names[place] for place in order[:count]], ensure_ascii=False)


def _unit(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return features (n, width) of length 1 each."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)
