"""Hold the images of all splits as one list, as an audit compares them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from finetune.data import ImageSource, ImageSplits, groups_of, labels_of, paths_of


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedImages:
    """The images of all splits, one after another."""

    tables: tuple[Dataset, ...]
    """Tables of the splits."""
    sources: Sequence[ImageSource]
    """Undecoded images, which are read when they are needed."""
    paths: list[str]
    """Absolute path of each image, or `image N` where it has none."""
    splits: list[str]
    """Split of each image."""
    labels: NDArray[np.int64]
    """Class of each image, (n_images,)."""
    groups: NDArray[np.str_] | None
    """Known group of each image, (n_images,); None: the images have no groups."""
    class_names: tuple[str, ...]
    """Names of the classes."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def label(self, index: int) -> str:
        """Return the class name of an image."""
        return self.class_names[int(self.labels[index])]

    def in_split(self, name: str) -> NDArray[np.intp]:
        """Return the indices of the images of a split."""
        return np.flatnonzero(np.asarray(self.splits) == name)


def all_images(splits: ImageSplits) -> AuditedImages:
    """Return the images of all splits."""
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    tables = {name: table for name, table in named.items() if table is not None and len(table)}
    groups = [groups_of(table) for table in tables.values()]
    return AuditedImages(
        tables=tuple(tables.values()),
        sources=concatenate_datasets([table.select_columns("image") for table in tables.values()])["image"],
        paths=[
            str(Path(path).absolute()) if Path(path).exists() else path
            for table in tables.values()
            for path in paths_of(table)
        ],
        splits=[name for name, table in tables.items() for _ in range(len(table))],
        labels=np.concatenate([labels_of(table) for table in tables.values()]),
        groups=None
        if any(own is None for own in groups)
        else np.concatenate([own for own in groups if own is not None]),
        class_names=splits.class_names,
    )
