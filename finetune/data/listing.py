"""List the image files to predict: files, folders, globs, tables, and paths from standard input, one after another."""

import csv
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from finetune.data.folder import is_side_file, walk_files
from finetune.data.table import PATH_COLUMNS, usual_column
from finetune.errors import DataError

STDIN = "-"
"""Name that stands for the paths in standard input, one in each line."""

TABLES = frozenset({".csv", ".tsv", ".parquet"})
"""Endings of tables whose column of paths is read."""


def check_images(given: Sequence[Path]) -> None:
    """Check that there is a file or a folder at each path, or a file that matches it.

    Raises:
        DataError: a path does not exist.
    """
    for path in given:
        if str(path) == STDIN or path.exists():
            continue
        if not glob.has_magic(str(path)):
            raise DataError(f"there is no image or folder {path}")
        if not _matching(path):
            raise DataError(
                f"no file matches {path}; a folder is searched with all its subfolders if you give its name"
            )


def list_images(given: Sequence[Path], stdin: BinaryIO | None = None) -> Iterator[str]:
    """Return an iterator over the paths of image files, which are looked up as they are needed.

    A folder stands for the files in it and below it, a glob (`images/**/*.jpg`) for the files that match it, a table
    (CSV, TSV or Parquet) for the files in its column of paths, which are relative to the folder of the table, and `-`
    for the paths in standard input, one in each line. The order is the same at each call.

    Args:
        given: files, folders, globs, tables and `-`.
        stdin: file that is read in place of standard input.

    Raises:
        DataError: a table has no column of paths, or cannot be read; the latter may be raised by the iterator.
    """
    return chain.from_iterable([_below(path, stdin) for path in given])


def _below(path: Path, stdin: BinaryIO | None) -> Iterator[str]:
    """Return an iterator over the image files that one path stands for."""
    if str(path) == STDIN:
        lines = (line.rstrip(b"\r\n") for line in stdin or sys.stdin.buffer)
        return (os.fsdecode(line) for line in lines if line)
    if path.is_dir():
        return walk_files(path)
    if not path.exists() and glob.has_magic(str(path)):
        return iter(_matching(path))
    if path.suffix.lower() not in TABLES:
        return iter([str(path)])
    if path.suffix.lower() == ".parquet":
        return _in_parquet(path, _path_column(_parquet_names(path), path))
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        names = next(csv.reader(file, delimiter=_delimiter(path)), [])
    return _in_csv(path, _path_column(names, path))


def _matching(pattern: Path) -> list[str]:
    """Return the sorted files that match a glob, except those that are not images by their endings."""
    found = glob.iglob(str(pattern), recursive=True)  # noqa: PTH207  (a Path takes no absolute patterns)
    return sorted(path for path in found if not is_side_file(path) and os.path.isfile(path))  # noqa: PTH113


def _path_column(names: Sequence[str], path: Path) -> str:
    """Return the column of paths of a table.

    Raises:
        DataError: no column has a usual name.
    """
    column = usual_column(names, PATH_COLUMNS)
    if column is None:
        raise DataError(
            f"{path} has no column of paths; its columns are {', '.join(names)[:400] or 'missing'}: rename one of them "
            f"to 'path'"
        )
    return column


def _in_csv(path: Path, column: str) -> Iterator[str]:
    """Yield the paths in a column of a CSV or TSV file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter=_delimiter(path)):
                yield str(path.parent / (row[column] or ""))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from None


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _parquet_names(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file that hold texts.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from None
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]


def _in_parquet(path: Path, column: str) -> Iterator[str]:
    """Yield the paths in a column of a Parquet file."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                yield str(path.parent / (value or ""))
