"""Write the table of many images, chunk after chunk, as CSV or as Parquet."""

import csv
import io
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.data import Unreadable
from finetune.names import as_cell
from finetune.predict.files import remembered

Columns = dict[str, list[str] | list[float] | NDArray[Any]]
"""Columns of a table, by name; each has one value for each image, or one row of a matrix (n_images, width)."""

Make = Callable[[Iterator[list[str]]], Iterator[tuple[Columns, list[Unreadable]]]]
"""Function of the files of each chunk that yields the rows of each chunk, and the files that were left out."""

CHUNK = 1024
"""Number of images that are read before their rows are written. The batches of a chunk have no image of another one, so
that several processes, and a continued command, compute the same bytes."""

DIGITS = ".4g"
"""Format of the numbers in a CSV file: 4 significant digits."""

GROUPED = 16
"""Number of chunks in each row group of a Parquet file."""


class Rows(Protocol):
    """A place for the rows of a table."""

    def chunks(self, paths: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the files of each chunk that is to be written."""
        ...

    def append(self, number: int, paths: Sequence[str], columns: Columns, left_out: Sequence[Unreadable], /) -> None:
        """Write the rows of a chunk.

        Args:
            number: number of the chunk.
            paths: all images of the chunk.
            columns: a row for each of them that was not left out.
            left_out: the images without a row.
        """
        ...


class PrintedRows:
    """Rows that are printed as CSV."""

    def __init__(self) -> None:
        """Begin without a row."""
        self.num_rows = 0
        """Number of rows that are printed."""
        self.num_images = 0
        """Number of images that are done, with those that were left out."""
        self.first: Unreadable | None = None
        """The first file that was left out."""

    def chunks(self, paths: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield all chunks: what was printed before is not known."""
        return enumerate(chunks_of(paths))

    def append(self, _number: int, paths: Sequence[str], columns: Columns, left_out: Sequence[Unreadable]) -> None:
        """Print the rows of a chunk."""
        content, header = encode(columns, is_parquet=False)
        sys.stdout.write(content[header if self.num_rows else 0 :].decode())
        sys.stdout.flush()
        self.num_rows += count_rows(columns)
        self.num_images += len(paths)
        self.first = self.first or next(iter(left_out), None)


def write_chunks(paths: Iterator[str], make: Make, rows: Rows, report: Callable[[Sequence[Unreadable]], None]) -> None:
    """Write the rows of images, a chunk at a time.

    Args:
        paths: image files.
        make: makes the rows of each chunk; it may read chunks ahead.
        rows: the place of the rows.
        report: called with the files of each chunk that were left out.
    """
    numbers: deque[int] = deque()
    waiting: deque[list[str]] = deque()

    def chunks() -> Iterator[list[str]]:
        for number, chunk in rows.chunks(paths):
            numbers.append(number)
            yield chunk

    for columns, left_out in make(remembered(chunks(), waiting)):
        report(left_out)
        rows.append(numbers.popleft(), waiting.popleft(), columns, left_out)


def chunks_of(paths: Iterator[str]) -> Iterator[list[str]]:
    """Yield lists of `CHUNK` paths, the last of which may be shorter."""
    while chunk := list(islice(paths, CHUNK)):
        yield chunk


def name_of_chunk(number: int) -> str:
    """Return which images of the list a chunk has, in words."""
    return f"images {number * CHUNK + 1:,} to {(number + 1) * CHUNK:,} of the list"


def count_rows(columns: Columns) -> int:
    """Return the number of rows."""
    return len(next(iter(columns.values())))


def nothing_readable(count: int, first: Unreadable | None) -> str:
    """Return the sentence about a number of files of which none can be read."""
    found = f"; the first is {first.path}: {first.reason}" if first else ""
    return f"none of the {count} files can be read as an image{found}"


def encode(columns: Columns, is_parquet: bool) -> tuple[bytes, int]:
    """Return the rows of a chunk as bytes, and the number of bytes of the header: that of a CSV table comes first.

    A Parquet file cannot be continued, because its index is at its end. Until the last row is there, its rows are Arrow
    streams, one for each chunk.
    """
    if not count_rows(columns):
        return b"", 0
    return (_arrow_bytes(columns), 0) if is_parquet else _csv_bytes(columns)


def write_parquet(streams: Iterator[bytes], output: Path) -> None:
    """Write the rows of Arrow streams, one for each chunk, as a Parquet file."""
    import pyarrow as pa
    from pyarrow import ipc, parquet

    writer: parquet.ParquetWriter | None = None
    tables = (ipc.open_stream(stream).read_all() for stream in streams)
    while group := list(islice(tables, GROUPED)):
        table = pa.concat_tables(group)
        writer = writer or parquet.ParquetWriter(output, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _csv_bytes(columns: Columns) -> tuple[bytes, int]:
    """Return rows as CSV, without formulas that a spreadsheet would run, and the number of bytes of its first line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    header = text.getvalue()
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{value:{DIGITS}}" if isinstance(value, float) else as_cell(str(value)) for value in row])
    return _utf8(text.getvalue()), len(_utf8(header))


def _arrow_bytes(columns: Columns) -> bytes:
    """Return rows as an Arrow stream: texts, float32 numbers, and lists of the type of a matrix."""
    import pyarrow as pa
    from pyarrow import ipc

    arrays: dict[str, pa.Array] = {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        elif isinstance(values[0], str):
            arrays[name] = pa.array([_utf8(str(value)).decode() for value in values], pa.string())
        else:
            arrays[name] = pa.array(values, pa.float32())
    batch = pa.record_batch(arrays)
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def _utf8(text: str) -> bytes:
    """Return a text as bytes; a name that is not UTF-8 is escaped."""
    return text.encode("utf-8", "backslashreplace")
