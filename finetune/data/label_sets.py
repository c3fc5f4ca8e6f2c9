"""Read and write sets of labels: images that have any number of labels, none included.

A set is a sorted tuple of class names in a table, and a row of 0 and 1 over all classes (n_images, num_classes) from
there on. Labels of one class an image are class numbers (n_images,): the number of dimensions tells which is which.
"""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.labels import is_list, label_text
from finetune.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

JSON = "json"
"""Delimiter that stands for JSON lists."""

DELIMITERS = (";", "|", ",", "/", " // ")
"""Texts between the names of a written set; the first that no class name holds is taken."""

MARKS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "": False}
"""Values of a column that says of each image whether it has a label."""


def has_sets(labels: "NDArray[np.integer]") -> bool:
    """Return whether labels are sets, (n_images, num_classes) of 0 and 1, not class numbers (n_images,)."""
    return labels.ndim == 2


def read_sets(values: Sequence[Any], name: str, delimiter: str | None) -> list[tuple[str, ...]]:
    """Return the set of labels in each cell of a column; an empty or missing cell is the empty set.

    Args:
        values: the cells: texts, or lists of texts.
        name: name of the column, for the error.
        delimiter: text between the labels of a cell, or `json`; None: the cells are lists.

    Raises:
        DataError: a cell is neither a text with labels nor a list of labels.
    """
    return [_set_of(value, name, delimiter) for value in values]


def _set_of(value: Any, name: str, delimiter: str | None) -> tuple[str, ...]:  # noqa: ANN401  (a cell)
    if isinstance(value, str) and delimiter == JSON and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            value = None
        if not isinstance(value, list) or not all(isinstance(each, (str, int)) for each in value):
            raise DataError(f"column '{name}' holds no JSON list of labels in every cell; expected such as " + '["a"]')
    if is_list(value):
        return _distinct(value)
    text = label_text(value)
    if not text:
        return ()
    if delimiter is None:
        raise DataError(f"column '{name}' holds lists and also {text[:60]!r}; give each image a list, empty or not")
    return _distinct(text.split(delimiter))


def _distinct(names: Iterable[object]) -> tuple[str, ...]:
    """Return names without white space around them, each once, sorted; empty ones are left out."""
    return tuple(sorted({label_text(name) for name in names} - {""}))


def sets_of_marks(columns: dict[str, Sequence[Any]], origin: str) -> list[tuple[str, ...]]:
    """Return the set of labels of each image from columns of 0 and 1, one for each class.

    Raises:
        DataError: a value is neither 0 nor 1.
    """
    marks: dict[str, list[bool]] = {}
    for name, values in columns.items():
        texts = [label_text(value).lower() for value in values]
        wrong = next((text for text in texts if text not in MARKS), None)
        if wrong is not None:
            raise DataError(
                f"{origin}, column '{name}': {wrong[:60]!r} is neither 0 nor 1; name only columns of 0 and 1 in "
                f"columns.labels"
            )
        marks[name] = [MARKS[text] for text in texts]
    rows = np.array([*marks.values()], dtype=bool).T
    return [_distinct(names_in(row, [*marks])) for row in rows]


def as_text(names: Sequence[str]) -> str:
    """Return a set in words, which are the same for equal sets."""
    return ", ".join(names) or "(no label)"


def to_matrix(sets: Sequence[Sequence[str]], class_names: Sequence[str]) -> "NDArray[np.int64]":
    """Return sets of class names as rows of 0 and 1, (n_images, num_classes).

    Raises:
        KeyError: a name is not one of the classes.
    """
    place = {name: number for number, name in enumerate(class_names)}
    matrix = np.zeros((len(sets), len(class_names)), dtype=np.int64)
    for row, names in enumerate(sets):
        matrix[row, [place[name] for name in names]] = 1
    return matrix


def names_in(row: "NDArray[np.integer] | NDArray[np.bool_]", class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes whose entry in a row (num_classes,) is not 0."""
    return tuple(class_names[place] for place in np.flatnonzero(row).tolist())


def joined(sets: "NDArray[Any]", class_names: Sequence[str]) -> list[str]:
    """Return rows of 0 and 1 (n_images, num_classes) as texts with a delimiter; that of an empty set is ""."""
    delimiter = delimiter_of(class_names)
    return [delimiter.join(names_in(row, class_names)) for row in sets]


def class_texts(labels: "NDArray[np.int64]", class_names: Sequence[str]) -> list[str]:
    """Return the class of each image (n_images,), or its set of labels (n_images, num_classes), as a text."""
    return joined(labels, class_names) if has_sets(labels) else [class_names[label] for label in labels]


def divided(texts: Iterable[str], class_names: Sequence[str]) -> "NDArray[np.int64]":
    """Return texts that `joined` wrote as rows of 0 and 1, (n_images, num_classes)."""
    delimiter = delimiter_of(class_names)
    return to_matrix([text.split(delimiter) if text else [] for text in texts], class_names)


def delimiter_of(class_names: Sequence[str]) -> str:
    """Return the text that stands between the names of a written set: none of the names holds it, if there is one.

    >>> delimiter_of(["a", "b;c"])
    '|'
    """
    free = (each for each in DELIMITERS if not any(each in name for name in class_names))
    return next(free, DELIMITERS[0])


def rarest_class(labels: "NDArray[np.integer]") -> "NDArray[np.int64]":
    """Return one class for each image, (n_images,): its rarest one, and num_classes for an image without labels.

    Class numbers (n_images,) are returned as they are. So an image counts for the class that needs it most.
    """
    if not has_sets(labels):
        return np.asarray(labels, dtype=np.int64)
    # An entry of a set costs the number of images of its class; all other entries cost more than any class has.
    counts = labels.sum(axis=0)
    cost = np.where(labels > 0, counts, len(labels) + 1)
    return np.asarray(np.where(labels.any(axis=1), cost.argmin(axis=1), labels.shape[1]), dtype=np.int64)


def count_images(labels: "NDArray[np.integer]", num_classes: int) -> "NDArray[np.int64]":
    """Return the number of images of each class, (num_classes,)."""
    if has_sets(labels):
        return np.asarray(labels.sum(axis=0), dtype=np.int64)
    return np.asarray(np.bincount(labels, minlength=num_classes), dtype=np.int64)


def images_by_class(labels: "NDArray[np.integer]") -> list["NDArray[np.intp]"]:
    """Return the indices of the images of each class that has any; an image with several labels is in several."""
    found = [column > 0 for column in labels.T] if has_sets(labels) else [labels == own for own in np.unique(labels)]
    return [np.flatnonzero(is_own) for is_own in found if is_own.any()]


def describe_sets(sets: Sequence[Sequence[str]], source: str) -> str:
    """Return in one sentence that images have several labels, and what says so."""
    without = sum(not names for names in sets)
    counts = f"{sum(map(len, sets)) / max(len(sets), 1):.1f} labels an image on average"
    if without:
        counts += f"; {without:,} {'image has' if without == 1 else 'images have'} none"
    return f"each image has any number of labels ({source}): {counts}"
