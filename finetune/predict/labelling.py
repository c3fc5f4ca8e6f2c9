"""Label new images with a trained model, and return the labels as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from finetune.data import Unreadable, files_below, why_unreadable
from finetune.errors import DataError


class Labeller(Protocol):
    """A model that labels image files: that of a run, or an exported one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        ...

    def predict_proba(self, paths: Sequence[str | Path]) -> NDArray[np.float64]:
        """Return the class probabilities (n_paths, n_classes) of image files."""
        ...


def label_images(model: Labeller, images: Sequence[Path], top_k: int = 1) -> tuple[pd.DataFrame, list[Unreadable]]:
    """Return a table with one row for each readable image, and the files that were left out.

    Columns: path, label, probability, then `p_<class>` for each class; with `top_k` above 1 also label_1,
    probability_1, ... of the most probable classes.

    Args:
        model: the model that predicts the labels.
        images: image files, and folders, which are searched with all their subfolders.
        top_k: number of classes to name for each image.

    Raises:
        DataError: a path does not exist, or no file can be read as an image.
    """
    paths: list[str] = []
    for image in images:
        if not image.exists():
            raise DataError(f"there is no image or folder {image}")
        paths += files_below(image) if image.is_dir() else [str(image)]
    reasons = why_unreadable(paths)
    unreadable = [Unreadable(path=path, reason=reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    readable = [path for path, reason in zip(paths, reasons, strict=True) if not reason]
    if not readable:
        found = f"; the first is {unreadable[0].path}: {unreadable[0].reason}" if unreadable else ""
        raise DataError(f"none of the {len(paths)} files can be read as an image{found}")
    probabilities = model.predict_proba(readable)
    order = np.argsort(-probabilities, axis=1)
    columns: dict[str, object] = {
        "path": readable,
        "label": [model.class_names[best] for best in order[:, 0]],
        "probability": probabilities.max(axis=1),
    }
    columns |= {f"p_{name}": probabilities[:, number] for number, name in enumerate(model.class_names)}
    for rank in range(min(top_k, len(model.class_names)) if top_k > 1 else 0):
        columns[f"label_{rank + 1}"] = [model.class_names[best] for best in order[:, rank]]
        columns[f"probability_{rank + 1}"] = np.take_along_axis(probabilities, order[:, rank : rank + 1], axis=1)[:, 0]
    return pd.DataFrame(columns), unreadable
