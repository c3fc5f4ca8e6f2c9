"""Read a table of images: a CSV, TSV or Parquet file with a path and a label, and optionally a split and a group."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.data.decoding import ImageSource
from finetune.data.label_sets import as_text, describe_sets, read_sets, sets_of_marks
from finetune.data.labels import is_list, label_text, read_labels
from finetune.errors import DataError, nearest_names
from finetune.names import as_unicode
from finetune.recipe import TableColumns

if TYPE_CHECKING:
    import pandas as pd

PATH_COLUMNS = ("path", "image", "file", "file_name", "filename", "image_path", "filepath")
"""Usual names of the column with paths, in the order in which they are tried."""

LABEL_COLUMNS = ("label", "class", "target", "labels", "class_name", "category")
"""Usual names of the column with classes, in the order in which they are tried."""

VALIDATION_COLUMN = "is_valid"
"""Column of fastai's tables that is true for validation images; it is read where there is no split column."""

SEPARATORS = (",", ";", "\t", "|")
"""Separators of a table's columns, in the order in which they are tried where the usual one separates nothing."""

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "validation", "validation": "validation", "valid": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Usual names of each split, in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledTable:
    """A table of labelled images, one in each row, before they are divided into splits."""

    sources: Sequence[ImageSource]
    """Source of each image."""
    labels: Sequence[str]
    """Name of each image's class; "" where it is missing. Of images with sets, the set in words."""
    sets: Sequence[tuple[str, ...]] | None = None
    """Names of the classes of each image, any number of them; None: each image has one, in `labels`."""
    splits: Sequence[str] | None = None
    """Split of each image: `train`, `validation` or `test`; None: the data has no splits."""
    groups: Sequence[str] | None = None
    """Group of each image; None: the data has no groups."""
    class_names: Sequence[str] | None = None
    """Names of the classes, in the order that the data set gives; None: the order of the sorted names."""
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read."""

    def select(self, rows: Sequence[int]) -> "LabelledTable":
        """Return a table of some rows."""
        return LabelledTable(
            sources=self._selected(rows),
            labels=[self.labels[row] for row in rows],
            sets=None if self.sets is None else [self.sets[row] for row in rows],
            splits=None if self.splits is None else [self.splits[row] for row in rows],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
            class_names=self.class_names,
            notes=self.notes,
        )

    def names(self, rows: Sequence[int] | None = None) -> list[str]:
        """Return the class of each of some rows, or of all; of images with sets, all classes one after another."""
        chosen = range(len(self.labels)) if rows is None else rows
        if self.sets is None:
            return [self.labels[row] for row in chosen]
        return [name for row in chosen for name in self.sets[row]]

    def _selected(self, rows: Sequence[int]) -> Sequence[ImageSource]:
        from datasets.arrow_dataset import Column

        if isinstance(self.sources, Column):  # of a Hugging Face data set, which reads its images when they are needed
            selected: Sequence[ImageSource] = self.sources.source.select(rows)["image"]
            return selected
        return [self.sources[row] for row in rows]

    def name(self, row: int) -> str:
        """Return the name of the image in a row: its path, with bytes that are not UTF-8 escaped, or `image N`."""
        source = self.sources[row]
        if isinstance(source, dict):
            source = source.get("path") or f"image {row}"
        return f"image {row}" if isinstance(source, bytes) else as_unicode(str(source))


def load_table(path: Path, columns: TableColumns) -> LabelledTable:
    """Return the images that a CSV, TSV or Parquet file lists; relative paths are relative to the folder of the file.

    Raises:
        DataError: the file is not a table, a column is missing, or an image has several labels that were not asked for.
    """
    frame = _read(path)
    path_column = find_column(list(frame.columns), columns.path, PATH_COLUMNS, "path", str(path))
    content = {str(name): frame[name].tolist() for name in frame.columns}
    found = read_labelling(content, columns, str(path))
    labels = found.labels
    images = frame[path_column].tolist()
    if any(isinstance(image, str) and not image for image in images):
        raise DataError(f"{path}: {sum(not image for image in images)} rows have no {path_column}")
    sources = [image if isinstance(image, dict) else str(path.parent / str(image)) for image in images]
    refuse_several_labels([image if isinstance(image, str) else str(row) for row, image in enumerate(images)], labels)
    split_column = _optional_column(frame, columns.split, "split", path)
    group_column = _optional_column(frame, columns.group, "group", path)
    splits = None
    if split_column is not None:
        splits = [name_split(str(name), f"{path}, column '{split_column}'") for name in frame[split_column]]
    elif VALIDATION_COLUMN in frame.columns:
        splits = _splits_of_marks(frame[VALIDATION_COLUMN].tolist(), path)
    groups = None if group_column is None else read_groups(frame[group_column].tolist())
    if splits is not None and groups is not None:
        refuse_straddling_groups(groups, splits)
    return LabelledTable(
        sources=sources,
        labels=labels,
        sets=found.sets,
        splits=splits,
        groups=groups,
        class_names=found.class_names,
        notes=found.notes,
    )


class Labelling(NamedTuple):
    """What a table says about the labels of its images; the fields are those of `LabelledTable`."""

    labels: list[str]
    sets: list[tuple[str, ...]] | None = None
    class_names: list[str] | None = None
    source: str = ""
    """Where sets of labels are from, in words."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentence about sets of labels, if there are any."""
        return () if self.sets is None else (describe_sets(self.sets, self.source),)


def labelling_of_sets(sets: list[tuple[str, ...]], source: str, class_names: list[str] | None = None) -> Labelling:
    """Return what is known about images with sets of labels."""
    return Labelling(list(map(as_text, sets)), sets, class_names, source)


def read_labelling(content: Mapping[str, Sequence[Any]], columns: TableColumns, origin: str) -> Labelling:
    """Return which labels each image has, from the columns of a table.

    Args:
        content: cells of each column, by its name.
        columns: names of the columns, and how sets of labels are written.
        origin: name of the data, for errors.

    Raises:
        DataError: there is no such column, or an image has several labels that were not asked for.
    """
    if columns.labels is not None:
        marks = {find_column(list(content), name, (), "labels", origin): () for name in columns.labels}
        sets = sets_of_marks({name: content[name] for name in marks}, origin)
        source = f"columns of 0 and 1: {', '.join(marks)}"
        return labelling_of_sets(sets, source, list(map(label_text, marks)))
    name = find_column(list(content), columns.label, LABEL_COLUMNS, "label", origin)
    if columns.delimiter is None and not any(map(is_list, content[name])):
        return Labelling(read_labels(content[name], name))
    parted = "lists" if columns.delimiter is None else f"parted by {columns.delimiter!r}"
    return labelling_of_sets(read_sets(content[name], name, columns.delimiter), f"column '{name}', {parted}")


def read_groups(values: Sequence[Any], of: str = "row") -> list[str]:
    """Return the group of each image; an image without one is a group of its own.

    Args:
        values: a column of groups.
        of: name of the rows, which distinguishes those of several splits.
    """
    texts = map(label_text, values)
    return [
        str(value) if text else f"no group: {of} {row}"
        for row, (value, text) in enumerate(zip(values, texts, strict=True))
    ]


def _splits_of_marks(values: list[Any], path: Path) -> list[str]:
    """Return the split of each image from fastai's column that marks validation images.

    Raises:
        DataError: a value is neither true nor false.
    """
    marks = {
        "true": "validation",
        "1": "validation",
        "1.0": "validation",
        "false": "train",
        "0": "train",
        "0.0": "train",
    }
    for value in values:
        if str(value).strip().lower() not in marks:
            raise DataError(f"{path}, column '{VALIDATION_COLUMN}': {str(value)[:60]!r} is neither True nor False")
    return [marks[str(value).strip().lower()] for value in values]


def read_columns(path: Path, *names: str) -> list[list[str]]:
    """Return the texts of some columns of a table.

    Raises:
        DataError: the file is not a table, or a column is missing.
    """
    frame = _read(path)
    columns = [find_column(list(frame.columns), name, (), name, str(path)) for name in names]
    return [[str(value) for value in frame[column]] for column in columns]


def find_column(names: list[str], asked: str | None, usual: tuple[str, ...], what: str, origin: str) -> str:
    """Return the name of a column: the one that the recipe gives, or else the first one with a usual name.

    Args:
        names: names of all columns.
        asked: name that the recipe gives, or None.
        usual: usual names in lower case, in the order in which they are tried.
        what: key of the recipe's `columns`, for the error.
        origin: name of the data, for the error.

    Raises:
        DataError: there is no such column; the sentence lists all columns.
    """
    if asked is not None:
        if asked in names:
            return asked
        raise DataError(
            f"{origin} has no column '{asked}'{nearest_names(asked, names)}; the columns are {_listed(names)}"
        )
    found = usual_column(names, usual)
    if found is not None:
        return found
    raise DataError(
        f"{origin} has no {what} column; the columns are {_listed(names)}: name it with --set columns.{what}=NAME"
    )


def _listed(names: Sequence[str], most: int = 12, longest: int = 40) -> str:
    """Return the first names, and of long ones the beginning: damaged tables have names of any number and length."""
    shown = [name if len(name) <= longest else f"{name[:longest]}..." for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def usual_column(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """Return the first column with a usual name, which are in lower case and in the order in which they are tried."""
    by_lower_case = {name.lower(): name for name in names}
    return next((by_lower_case[name] for name in usual if name in by_lower_case), None)


def name_split(name: str, origin: str) -> str:
    """Return `train`, `validation` or `test` for any of their usual names.

    Args:
        name: name of a split in the data.
        origin: name of the data, for the error.

    Raises:
        DataError: the name is not a usual one.
    """
    split = SPLIT_NAMES.get(name.strip().lower())
    if split is None:
        raise DataError(f"{origin}: '{name[:60]}' is not a split; expected train, validation or test")
    return split


def refuse_other_files(path: Path) -> None:
    """Refuse a file that is not a table.

    Raises:
        DataError: the file's name does not end like that of a table.
    """
    if path.suffix.lower() not in {".parquet", ".csv", ".tsv"}:
        raise DataError(f"{path} is a file, but not a CSV, TSV or Parquet table; give a folder or a table")


def _read(path: Path) -> "pd.DataFrame":
    """Return the content of a table."""
    import pandas as pd

    refuse_other_files(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            return _with_plain_names(pd.read_parquet(path), path)
        except DataError:
            raise
        except Exception as error:  # of damaged files, the reader raises exceptions of any type
            raise _unreadable(path, error) from None
    try:
        separator = _separator(path, "\t" if suffix == ".tsv" else ",")
        # Read everything as text, as a class may have the name "01" or "NA".
        frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, skipinitialspace=separator != "\t")
    except Exception as error:  # of damaged files, the parser raises exceptions of any type
        raise _unreadable(path, error) from None
    return _with_plain_names(frame, path)


def _unreadable(path: Path, error: Exception) -> DataError:
    """Return the error of a table that cannot be read."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return DataError(f"{path} cannot be read as a table: {reason}")


def _with_plain_names(frame: "pd.DataFrame", path: Path) -> "pd.DataFrame":
    """Return a table whose columns have texts without white space around them as names.

    Raises:
        DataError: two columns have one name.
    """
    frame = frame.rename(columns=lambda name: str(name).strip())
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{path} has two columns with the name '{twice[0]}'; rename or remove one of them")
    return frame


def _separator(path: Path, usual: str) -> str:
    """Return the separator of a table's columns: the usual one, or another if only that separates the first line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    return next((separator for separator in (usual, *SEPARATORS) if separator in header), usual)


def refuse_several_labels(images: list[str], labels: list[str]) -> None:
    """Refuse images that have several labels.

    Raises:
        DataError: an image is in two rows with different labels.
    """
    first: dict[str, str] = {}
    for given, label in zip(images, map(label_text, labels), strict=True):
        image = os.path.normpath(given)
        if label and first.setdefault(image, label) != label:
            raise DataError(
                f"{given[:300]} is listed as '{first[image][:60]}' and as '{label[:60]}'; list an image once, and if "
                f"it has several labels, list all of them in one cell, with --set 'columns.delimiter=\";\"'"
            )


def refuse_straddling_groups(groups: list[str], splits: list[str]) -> None:
    """Raise a DataError if images of one group are in several splits."""
    first: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        if first.setdefault(group, split) != split:
            raise DataError(
                f"group '{group[:60]}' is in {first[group]} and in {split}; all images of a group must be in one split"
            )


def _optional_column(frame: "pd.DataFrame", asked: str | None, usual: str, path: Path) -> str | None:
    """Return the column that the recipe gives, or else the one with the usual name, or None if there is none."""
    if asked is None:
        return next((str(name) for name in frame.columns if str(name).lower() == usual), None)
    return find_column(list(frame.columns), asked, (), usual, str(path))
