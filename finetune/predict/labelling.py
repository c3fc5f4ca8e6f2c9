"""Label new images with a trained model, and write the labels as a table."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from finetune.data import Unreadable, check_images, files_below, why_unreadable
from finetune.errors import DataError

Columns = dict[str, list[str] | list[float]]
"""Columns of a table, by name; each has one value for each image."""

DIGITS = ".4g"
"""Format of the probabilities in a CSV file: 4 significant digits."""


class Labeller(Protocol):
    """A model that labels image files: that of a run, or an exported one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        ...

    def predict_proba(self, paths: Sequence[str | Path]) -> NDArray[np.float64]:
        """Return the class probabilities (n_paths, n_classes) of image files."""
        ...


def label_images(model: Labeller, images: Sequence[Path], top_k: int = 1) -> tuple[Columns, list[Unreadable]]:
    """Return a table with one row for each readable image, and the files that were left out.

    Columns: path, label, probability; with `top_k` above 1 label_2, probability_2, ... up to label_k, probability_k of
    the next most probable classes; then `p_<class>` for each class.

    Args:
        model: the model that predicts the labels.
        images: image files, and folders, which are searched with all their subfolders.
        top_k: number of classes to name for each image.

    Raises:
        DataError: a path does not exist, or no file can be read as an image.
    """
    check_images(images)
    paths: list[str] = []
    for image in images:
        paths += files_below(image) if image.is_dir() else [str(image)]
    reasons = why_unreadable(paths)
    unreadable = [Unreadable(path=path, reason=reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    readable = [path for path, reason in zip(paths, reasons, strict=True) if not reason]
    if not readable:
        found = f"; the first is {unreadable[0].path}: {unreadable[0].reason}" if unreadable else ""
        raise DataError(f"none of the {len(paths)} files can be read as an image{found}")
    probabilities = model.predict_proba(readable)
    order = np.argsort(-probabilities, axis=1)
    columns: Columns = {
        "path": readable,
        "label": [model.class_names[best] for best in order[:, 0]],
        "probability": probabilities.max(axis=1).tolist(),
    }
    for rank in range(1, min(top_k, len(model.class_names))):
        columns[f"label_{rank + 1}"] = [model.class_names[best] for best in order[:, rank]]
        columns[f"probability_{rank + 1}"] = probabilities[np.arange(len(order)), order[:, rank]].tolist()
    columns |= {f"p_{name}": probabilities[:, number].tolist() for number, name in enumerate(model.class_names)}
    return columns, unreadable


def write_columns(columns: Columns, file: TextIO) -> None:
    """Write a table as CSV, with probabilities of 4 significant digits."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{value:{DIGITS}}" if isinstance(value, float) else value for value in row])
