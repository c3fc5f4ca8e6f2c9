"""Define the rows that a model makes of image files, chunk after chunk."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data import Unreadable
from finetune.data.kinds import Kind
from finetune.errors import DataError


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of the image files of a chunk."""

    rows: NDArray[Any]
    """A row for each file that can be read, (k, ...), in the order of the files."""
    reasons: list[str | None]
    """For each file of the chunk, the reason why it cannot be read, or None."""
    kinds: list[Kind]
    """Kinds of the files that can be read."""

    def divided(self, paths: Sequence[str]) -> tuple[list[str], list[Unreadable]]:
        """Return the files with a row, and those without one, from the paths of all files."""
        pairs = list(zip(paths, self.reasons, strict=True))
        left_out = [Unreadable(path=path, reason=reason) for path, reason in pairs if reason is not None]
        return [path for path, reason in pairs if reason is None], left_out


Compute = Callable[[Iterator[list[str]]], Iterator[FileRows]]
"""Function of the paths of each chunk that yields the rows of each chunk."""


def rows_of_files(compute: Compute, paths: Sequence[str | Path]) -> NDArray[Any]:
    """Return the rows of image files, (n_paths, ...).

    Raises:
        DataError: a file cannot be read as an image.
    """
    names = [str(path) for path in paths]
    found = next(compute(iter([names])), None) if names else None
    if found is None:
        return np.zeros((0, 0), dtype=np.float32)
    for path, reason in zip(names, found.reasons, strict=True):
        if reason is not None:
            raise DataError(f"{path} cannot be read as an image: {reason}")
    return found.rows


def on_common_files(parts: Sequence[FileRows]) -> tuple[list[NDArray[Any]], list[str | None]]:
    """Return the rows of several models for the files that all of them can read, and the reasons of all files.

    Models that decode a file at different sizes may find different damage in it.
    """
    reasons = [next(filter(None, own), None) for own in zip(*(part.reasons for part in parts), strict=True)]
    rows = []
    for part in parts:
        has_row = [why is None for why in part.reasons]
        common = [reason is None for reason, has in zip(reasons, has_row, strict=True) if has]
        rows.append(part.rows[np.asarray(common, dtype=bool)])
    return rows, reasons


def remembered(chunks: Iterator[list[str]], waiting: deque[list[str]]) -> Iterator[list[str]]:
    """Yield the chunks, and add each to `waiting`: a model reads chunks ahead of their rows."""
    for chunk in chunks:
        waiting.append(chunk)
        yield chunk
