"""Label new images with a trained model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.data import Unreadable, why_undecodable
from finetune.data.decoding import examine
from finetune.data.kinds import Kind, describe_depth, describe_kinds
from finetune.errors import DataError
from finetune.predict.rows import Columns
from finetune.reading import Reading


class Labeller(Protocol):
    """A model that labels image files: that of a run, or an exported one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        ...

    @property
    def shorter_side(self) -> int:
        """Smallest shorter side to which images are decoded, in pixels."""
        ...

    @property
    def reading(self) -> Reading:
        """How the values in an image file become 8-bit RGB."""
        ...

    def predict_proba(self, paths: Sequence[str | Path]) -> NDArray[np.float64]:
        """Return the class probabilities (n_paths, n_classes) of image files."""
        ...


def label_images(
    model: Labeller, paths: Sequence[str | Path], top_k: int = 1, say: Callable[[str], None] | None = None
) -> tuple[Columns, list[Unreadable]]:
    """Return a table with one row for each image that can be decoded, and the files that were left out.

    Columns: path, label, probability; with `top_k` above 1 label_2, probability_2, ... up to label_k, probability_k of
    the next most probable classes; then `p_<class>` for each class.

    Args:
        model: the model that predicts the labels.
        paths: image files.
        top_k: number of classes to name for each image.
        say: function that gets a sentence about how images of several pages, more channels, ... are read.
    """
    kinds: list[Kind] = []

    def why(listed: list[str]) -> list[str | None]:
        found = examine(listed, model.reading)
        kinds.extend(kind for kind in found if not isinstance(kind, str))
        return [kind if isinstance(kind, str) else None for kind in found]

    left, unreadable = _without([str(path) for path in paths], why)
    if say is not None:
        for sentence in (*describe_kinds(kinds, model.reading), *describe_depth(kinds, model.reading)):
            say(sentence)
    try:
        probabilities = _predict(model, left)
    except DataError:
        # A file may pass the scan and still have damaged pixels. Only now is it worth decoding all files to find it.
        left, damaged = _without(left, lambda listed: why_undecodable(listed, model.shorter_side, model.reading))
        if not damaged:
            raise
        unreadable += damaged
        probabilities = _predict(model, left)
    return _table(model.class_names, left, probabilities, top_k), unreadable


def _predict(model: Labeller, paths: list[str]) -> NDArray[np.float64]:
    """Return the class probabilities (n_paths, n_classes) of image files, of which there may be none."""
    return model.predict_proba(paths) if paths else np.zeros((0, len(model.class_names)))


def _without(paths: list[str], why: Callable[[list[str]], list[str | None]]) -> tuple[list[str], list[Unreadable]]:
    """Return the files for which `why` gives no reason against them, and the others with their reasons."""
    reasons = why(paths)
    found = [Unreadable(path=path, reason=reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    return [path for path, reason in zip(paths, reasons, strict=True) if not reason], found


def _table(class_names: Sequence[str], paths: list[str], probabilities: NDArray[np.float64], top_k: int) -> Columns:
    """Return the columns of `label_images` for probabilities (n_paths, n_classes)."""
    order = np.argsort(-probabilities, axis=1)
    rows = np.arange(len(paths))
    columns: Columns = {"path": paths}
    for rank in range(min(max(top_k, 1), len(class_names))):
        ending = f"_{rank + 1}" if rank else ""
        columns[f"label{ending}"] = [class_names[best] for best in order[:, rank]]
        columns[f"probability{ending}"] = probabilities[rows, order[:, rank]].tolist()
    return columns | {f"p_{name}": probabilities[:, number].tolist() for number, name in enumerate(class_names)}
