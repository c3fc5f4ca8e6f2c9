"""Know when a model should not answer: where it is unsure, and where an image is unlike its training images.

Both limits come from images of the run. The probability from which on labels are given is found on the held-out images.
The distance up to which an image counts as like the training images is that of the training images from each other
(`finetune/predict/neighbours.py`).
"""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.data import Unreadable
from finetune.errors import RecipeError
from finetune.predict.files import Compute, remembered
from finetune.predict.intervals import wilson_interval
from finetune.predict.labelling import Labeller, Say, describe_files, say_nothing, table_of_labels
from finetune.predict.rows import Columns
from finetune.value import FrozenModel

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
class Limits:
    """What an image must have to be labelled."""

    least: LeastProbability
    """Smallest probability of the most probable class."""
    farthest: float
    """Largest distance from the nearest training image."""

    def why_withheld(self, probabilities: NDArray[np.floating], distances: NDArray[np.floating]) -> list[str]:
        """Return, for each image, the reason why its label is withheld, or "".

        Args:
            probabilities: probability of the most probable class, (k,).
            distances: distance from the nearest training image, (k,).
        """
        return [
            UNLIKE if distance > self.farthest else UNSURE if probability < self.least.value else ""
            for probability, distance in zip(probabilities, distances, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """What a model does where it may be wrong."""

    limits: Limits | None = None
    """What an image must have to be labelled; None: all images are labelled."""
    least_in_set: float | None = None
    """Smallest probability of the classes of a set; None: no sets are made."""

    def sentences(self) -> list[str]:
        """Return sentences about the limits, for the person who asked for them."""
        lines = []
        if self.limits is not None:
            least = self.limits.least
            low, high = (100 * end for end in least.interval)
            lines += [
                f"labels are given from a probability of {least.value:.3g} on: to {100 * least.share:.0f} % of the "
                f"held-out images, of which {100 * least.right:.1f} % are right (95 % interval: {low:.1f} to "
                f"{high:.1f})",
                f"and to images at a distance of at most {self.limits.farthest:.3g} from a training image: 99 % of the "
                f"training images are that near to another one",
            ]
        if self.least_in_set is not None:
            lines.append(f"sets have all classes with a probability of at least {self.least_in_set:.3g}")
        return lines


class Experience(FrozenModel):
    """What a model is known to do: its answers for the held-out images, and how near its training images are."""

    probability: tuple[float, ...]
    """Probability of the most probable class of each held-out image, 0 .. 1."""
    is_right: tuple[bool, ...]
    """Whether that class is right."""
    label_probability: tuple[float, ...]
    """Probability of the right class of each held-out image, 0 .. 1."""
    farthest: float
    """Distance up to which an image is like the training images, 0 .. 2."""

    def doubt(self, unknown_at: float | None, sets: float | None) -> Doubt:
        """Return the limits of the answers.

        Args:
            unknown_at: share of the given labels that shall be right, 0 .. 1; None: all labels are given.
            sets: share of the sets that shall hold the right class, 0 .. 1; None: no sets.

        Raises:
            RecipeError: no probability is high enough for that share.
        """
        limits = None
        if unknown_at is not None:
            is_right = np.array(self.is_right, dtype=bool)
            least = find_least_probability(np.array(self.probability), is_right, unknown_at)
            if least is None:
                raise RecipeError(
                    f"at no probability are {100 * unknown_at:.4g} % of the labels of the {len(is_right)} held-out "
                    f"images right; give --unknown-at a smaller share ({100 * is_right.mean():.0f} % of all labels are "
                    f"right), or let --sets name several classes"
                )
            limits = Limits(least=least, farthest=self.farthest)
        own = np.array(self.label_probability)
        return Doubt(limits=limits, least_in_set=None if sets is None else least_probability_in_set(own, sets))


def label_with_doubt(
    model: Labeller,
    label: Compute,
    chunks: Iterator[list[str]],
    top_k: int,
    doubt: Doubt,
    say: Say = say_nothing,
) -> Iterator[tuple[Columns, list[Unreadable]]]:
    """Yield tables like those of `label_files`, with what is doubtful about each label.

    Where a label is withheld, `label` is empty, and `guess` still names the most probable class. `withheld` has the
    reason, and `distance` that of the nearest training image. `set` is a JSON list of the classes that the right one is
    expected to be among, the most probable one first.

    Args:
        model: the model that predicts the labels.
        label: yields the probabilities (k, n_classes) of the files of each chunk, followed by the distance of each from
            its nearest training image, (k, n_classes + 1), if there are limits.
        chunks: paths of the files of each chunk.
        top_k: number of classes to name for each image.
        doubt: the limits.
        say: called with each sentence about how images of several pages, more channels, ... are read.
    """
    names = model.class_names
    waiting: deque[list[str]] = deque()
    for found in label(remembered(chunks, waiting)):
        describe_files(found.kinds, model.reading, say)
        paths, left_out = found.divided(waiting.popleft())
        probabilities = found.rows[:, : len(names)].reshape(len(paths), len(names))
        columns = table_of_labels(names, paths, probabilities, top_k, model.rule)
        added: Columns = {}
        if doubt.limits is not None and paths:
            distances = found.rows[:, len(names)]
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
