"""Label new images with a trained model."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.data import Unreadable
from finetune.data.kinds import Kind, describe_depth, describe_kinds
from finetune.data.label_sets import joined
from finetune.decide.answers import AnswerRule, rank_answers
from finetune.errors import RecipeError
from finetune.predict.files import FileRows, remembered
from finetune.predict.rows import Columns
from finetune.predict.set_metrics import give_labels
from finetune.reading import Reading

Say = Callable[[str], None]
"""Function that is called with a sentence."""


def say_nothing(_sentence: str) -> None:
    """Say nothing."""


class Labeller(Protocol):
    """A model that labels image files: that of a run, or an exported one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        ...

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Probability from which each label is given; None: each image has one, the most probable class."""
        ...

    @property
    def rule(self) -> AnswerRule | None:
        """Rule by which the answer follows from the probabilities; None: it is the most probable class."""
        ...

    @property
    def reading(self) -> Reading:
        """How the values in an image file become 8-bit channels."""
        ...

    def label(self, chunks: Iterator[list[str]]) -> Iterator[FileRows]:
        """Yield the class probabilities (k, n_classes) of the files of each chunk that can be read."""
        ...


def label_files(
    model: Labeller, chunks: Iterator[list[str]], top_k: int = 1, say: Say = say_nothing
) -> Iterator[tuple[Columns, list[Unreadable]]]:
    """Yield, for the image files of each chunk, a table with a row for each that can be read, and the other files.

    Columns: path, label, probability; with `top_k` above 1 label_2, probability_2, ... up to label_k, probability_k of
    the next best classes; then `p_<class>` for each class. The best class is the most probable one, or that with the
    least expected cost if the model has a rule. Of a model of sets of labels: path, labels (with a
    delimiter between them), `p_<class>`.

    Args:
        model: the model that predicts the labels.
        chunks: paths of the files of each chunk.
        top_k: number of classes to name for each image.
        say: called with each sentence about how images of several pages, more channels, ... are read.

    Raises:
        RecipeError: several classes are to be named by a model that gives any number of labels.
    """
    if model.thresholds is not None and top_k > 1:
        raise RecipeError(
            "--top-k is for models of one label per image; this one gives any number of labels, and without the option "
            "the columns p_<class> have the probability of each"
        )
    waiting: deque[list[str]] = deque()
    for found in model.label(remembered(chunks, waiting)):
        describe_files(found.kinds, model.reading, say)
        paths, left_out = found.divided(waiting.popleft())
        probabilities = found.rows.reshape(len(paths), len(model.class_names))
        if model.thresholds is None:
            yield table_of_labels(model.class_names, paths, probabilities, top_k, model.rule), left_out
        else:
            yield _table_of_sets(model.class_names, paths, probabilities, model.thresholds), left_out


def describe_files(kinds: Sequence[Kind], reading: Reading, say: Say) -> None:
    """Say how a model reads the files of a chunk that are not plain 8-bit images."""
    for sentence in (*describe_kinds(kinds, reading), *describe_depth(kinds, reading)):
        say(sentence)


def _table_of_sets(
    class_names: Sequence[str], paths: list[str], probabilities: NDArray[np.float64], thresholds: Sequence[float]
) -> Columns:
    """Return the columns of `label_files` for a model of sets of labels."""
    columns: Columns = {"path": paths, "labels": joined(give_labels(probabilities, thresholds), class_names)}
    return columns | _probabilities_by_class(class_names, probabilities)


def _probabilities_by_class(class_names: Sequence[str], probabilities: NDArray[np.float64]) -> Columns:
    return {f"p_{name}": probabilities[:, number].tolist() for number, name in enumerate(class_names)}


def table_of_labels(
    class_names: Sequence[str],
    paths: list[str],
    probabilities: NDArray[np.float64],
    top_k: int,
    rule: AnswerRule | None,
) -> Columns:
    """Return the columns of `label_files` for probabilities (n_paths, n_classes)."""
    order = rank_answers(probabilities, rule)
    rows = np.arange(len(paths))
    columns: Columns = {"path": paths}
    for rank in range(min(max(top_k, 1), len(class_names))):
        ending = f"_{rank + 1}" if rank else ""
        columns[f"label{ending}"] = [class_names[best] for best in order[:, rank]]
        columns[f"probability{ending}"] = probabilities[rows, order[:, rank]].tolist()
    return columns | _probabilities_by_class(class_names, probabilities)
