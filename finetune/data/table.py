"""Tables of images: CSV, TSV and Parquet files with a path, a label and perhaps a split and a group."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets.arrow_dataset import Column

from finetune.data.decoding import ImageSource
from finetune.errors import DataError, nearest_names
from finetune.recipe import TableColumns

PATH_COLUMNS = ("path", "image", "file", "file_name", "filename", "image_path", "filepath")
LABEL_COLUMNS = ("label", "class", "target", "labels", "class_name", "category")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledTable:
    """Images with their labels, one row each, before they are split and read."""

    sources: Sequence[ImageSource]
    labels: Sequence[str]
    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    """The classes in the order that the source states; None means sorted by name."""

    def select(self, rows: Sequence[int]) -> "LabelledTable":
        """Return the table of these rows."""
        return LabelledTable(
            sources=self._selected(rows),
            labels=[self.labels[row] for row in rows],
            splits=None if self.splits is None else [self.splits[row] for row in rows],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
            class_names=self.class_names,
        )

    def _selected(self, rows: Sequence[int]) -> Sequence[ImageSource]:
        if isinstance(self.sources, Column):  # a data set's own, whose images are read as they are needed
            selected: Sequence[ImageSource] = self.sources.source.select(rows)["image"]
            return selected
        return [self.sources[row] for row in rows]

    def name(self, row: int) -> str:
        """Return what to call the image of a row."""
        source = self.sources[row]
        if isinstance(source, dict):
            source = source.get("path") or f"image {row}"
        return f"image {row}" if isinstance(source, bytes) else str(source)


def load_table(path: Path, columns: TableColumns, split_names: Mapping[str, str]) -> LabelledTable:
    """Return the images that a CSV, TSV or Parquet file lists; relative paths start at the table's folder.

    Raises:
        DataError: another kind of file, a missing column (the columns there are get named), an empty or a double label.
    """
    frame = _read(path)
    path_column = find_column(list(frame.columns), columns.path, PATH_COLUMNS, "path", str(path))
    label_column = find_column(list(frame.columns), columns.label, LABEL_COLUMNS, "label", str(path))
    labels = read_labels(frame[label_column].tolist(), label_column)
    images = frame[path_column].tolist()
    if any(isinstance(image, str) and not image for image in images):
        raise DataError(f"{path}: {sum(not image for image in images)} rows have no {path_column}")
    sources = [image if isinstance(image, dict) else str(path.parent / str(image)) for image in images]
    _refuse_double_rows([image if isinstance(image, str) else str(row) for row, image in enumerate(images)], labels)
    split_column = _optional_column(frame, columns.split, "split", path)
    group_column = _optional_column(frame, columns.group, "group", path)
    splits = None
    if split_column is not None:
        splits = [
            name_split(str(name), split_names, f"{path}, column '{split_column}'") for name in frame[split_column]
        ]
    groups = None if group_column is None else [str(group) for group in frame[group_column]]
    if splits is not None and groups is not None:
        refuse_straddling_groups(groups, splits)
    return LabelledTable(sources=sources, labels=labels, splits=splits, groups=groups)


def find_column(names: list[str], asked: str | None, usual: tuple[str, ...], what: str, origin: str) -> str:
    """Return the column that was asked for, or the first of the usual names.

    Raises:
        DataError: there is none; names the columns there are.
    """
    if asked is not None:
        if asked in names:
            return asked
        raise DataError(
            f"{origin} has no column '{asked}'{nearest_names(asked, names)}; the columns are {', '.join(names)}"
        )
    by_lower_case = {name.lower(): name for name in names}
    for name in usual:
        if name in by_lower_case:
            return by_lower_case[name]
    raise DataError(
        f"{origin} has no {what} column; the columns are {', '.join(names)}: name it with --set columns.{what}=NAME"
    )


def name_split(name: str, split_names: Mapping[str, str], origin: str) -> str:
    """Return train, validation or test for any of their usual names."""
    split = split_names.get(name.strip().lower())
    if split is None:
        raise DataError(f"{origin}: '{name}' is no split; expected train, validation or test")
    return split


def _read(path: Path) -> pd.DataFrame:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise DataError(f"{path} can not be read as a table: {error}") from None
    if suffix not in {".csv", ".tsv"}:
        raise DataError(f"{path} is a file, but no CSV, TSV or Parquet table; give a folder or a table")
    try:
        # Everything as text: a class may be called "01" or "NA".
        return pd.read_csv(path, sep="\t" if suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can not be read as a table: {error}") from None


def read_labels(values: list[Any], name: str) -> list[str]:
    """Return the class names of a column, or refuse several an image and none."""
    if any(not isinstance(value, (str, int, float, bool)) and hasattr(value, "__len__") for value in values):
        raise DataError(f"column '{name}' holds several labels an image; multi-label data is out of scope for now")
    labels = ["" if pd.isna(value) else str(value).strip() for value in values]
    missing = sum(not label for label in labels)
    if missing:
        raise DataError(f"{missing} rows have no value in column '{name}'; fill them in or take them out")
    known = set(labels)
    for label in sorted(known):
        parts = [part.strip() for part in re.split(r"[|;,]", label)]
        if len(parts) > 1 and any(part in known for part in parts):
            raise DataError(
                f"column '{name}' holds several labels an image ({label!r}); multi-label data is out of scope for now"
            )
    return labels


def _refuse_double_rows(images: list[str], labels: list[str]) -> None:
    first: dict[str, str] = {}
    for image, label in zip(images, labels, strict=True):
        if first.setdefault(image, label) != label:
            raise DataError(
                f"{image} is listed as '{first[image]}' and as '{label}': several labels an image are out of "
                f"scope for now"
            )


def refuse_straddling_groups(groups: list[str], splits: list[str]) -> None:
    """Raise DataError where images of one group are in several splits."""
    first: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        if first.setdefault(group, split) != split:
            raise DataError(f"group '{group}' is in {first[group]} and in {split}; a group must not straddle splits")


def _optional_column(frame: pd.DataFrame, asked: str | None, usual: str, path: Path) -> str | None:
    if asked is None:
        return next((str(name) for name in frame.columns if str(name).lower() == usual), None)
    return find_column(list(frame.columns), asked, (), usual, str(path))
