"""Write a table as its rows come, in a file that an interrupted command can continue.

Until the table is complete, its rows are in OUTPUT.part, and OUTPUT.part.json says how many of its bytes are whole and
which images they are of. What a kill left behind them is cut off before the command continues. A Parquet file cannot be
continued, because its index is at its end. Its rows are therefore kept as an Arrow stream until the last one is there.
"""

import csv
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from finetune.data import Unreadable
from finetune.errors import DataError, RunFolderError
from finetune.names import as_cell
from finetune.value import FrozenModel

Columns = dict[str, list[str] | list[float]]
"""Columns of a table, by name; each has one value for each image."""

CHUNK = 1024
"""Number of images that are read before their rows are written. The batches of a chunk have no image of another one, so
that a continued command computes the same bytes."""

DIGITS = ".4g"
"""Format of the numbers in a CSV file: 4 significant digits."""

GROUPED = 16
"""Number of chunks in each row group of a Parquet file."""

MODEL_FILES = ("plan.json", "config.json", "ensemble.json", "*.safetensors")
"""Files of a run folder, and of each member's, that a prediction depends on."""


class RowState(FrozenModel):
    """Progress of a table that is not complete."""

    task: str
    """Digest of what makes the rows: the model and the options."""
    num_images: int = 0
    """Number of images that are done, with those that were left out."""
    num_rows: int = 0
    """Number of rows that are written."""
    num_bytes: int = 0
    """Number of bytes that these rows take."""
    paths: str = ""
    """Digest of the paths of the images that are done."""


class Rows(Protocol):
    """A place for the rows of a table."""

    @property
    def num_rows(self) -> int:
        """Number of rows that are written."""
        ...

    def skip(self, paths: Iterator[str]) -> None:
        """Consume the images that are done already."""
        ...

    def append(self, paths: Sequence[str], columns: Columns) -> None:
        """Write rows.

        Args:
            paths: all images of this chunk.
            columns: a row for each of them that was not left out.
        """
        ...


class PrintedRows:
    """Rows that are printed as CSV."""

    def __init__(self) -> None:
        """Begin without a row."""
        self.num_rows = 0
        self.num_left_out = 0

    def skip(self, paths: Iterator[str]) -> None:
        """Skip nothing: what was printed before is not known."""

    def append(self, paths: Sequence[str], columns: Columns) -> None:
        """Print rows."""
        sys.stdout.write(_csv_bytes(columns, with_header=not self.num_rows).decode())
        sys.stdout.flush()
        self.num_rows += _count(columns)
        self.num_left_out += len(paths) - _count(columns)


class RowFile:
    """Rows of a CSV file or, if its name ends in .parquet, of a Parquet file."""

    def __init__(self, output: Path, task: str, resume: bool) -> None:
        """Create or continue the file.

        Args:
            output: file to write, which does not exist yet.
            task: digest of what makes the rows, as `task_of` returns it.
            resume: whether to continue the rows of an interrupted command, if there are any.

        Raises:
            RunFolderError: there are rows of another model or of other options, or some of them are missing.
        """
        self._output = output
        self._part, self._state_file = part_of(output)
        self._is_parquet = output.suffix.lower() == ".parquet"
        self._digest = hashlib.blake2b(digest_size=16)
        self._state = RowState(task=task)
        if resume and self._state_file.exists():
            self._state = RowState.load(self._state_file)
            if self._state.task != task:
                raise RunFolderError(
                    f"{self._part} has rows of another model or of other options; continue it with the same ones, or "
                    f"delete it and {self._state_file}"
                )
        elif self._part.exists():
            raise RunFolderError(
                f"{self._part} is not the beginning of a prediction; rename it, or give another --output"
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        self._state.save(self._state_file)
        self._file = self._part.open("ab")
        if self._file.tell() < self._state.num_bytes:
            raise RunFolderError(
                f"rows are missing in {self._part}; delete it and {self._state_file}, and start again without --resume"
            )
        self._file.truncate(self._state.num_bytes)

    @property
    def num_rows(self) -> int:
        """Number of rows that are written."""
        return self._state.num_rows

    @property
    def num_left_out(self) -> int:
        """Number of images that have no row, those before an interruption included."""
        return self._state.num_images - self._state.num_rows

    def skip(self, paths: Iterator[str]) -> None:
        """Consume the images that are done already.

        Raises:
            DataError: these are other images.
        """
        for path in islice(paths, self._state.num_images):
            self._digest.update(os.fsencode(path) + b"\0")
        if self._state.num_images and self._digest.hexdigest() != self._state.paths:
            raise DataError(
                f"the first {self._state.num_images} images are not those of {self._part}; give the same images in the "
                f"same order, or delete it and {self._state_file}"
            )

    def append(self, paths: Sequence[str], columns: Columns) -> None:
        """Write rows, and then that they are written."""
        encode = _arrow_bytes if self._is_parquet else _csv_bytes
        content = encode(columns, with_header=not self._state.num_rows) if _count(columns) else b""
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())
        for path in paths:
            self._digest.update(os.fsencode(path) + b"\0")
        self._state = self._state.changed(
            num_images=self._state.num_images + len(paths),
            num_rows=self._state.num_rows + _count(columns),
            num_bytes=self._state.num_bytes + len(content),
            paths=self._digest.hexdigest(),
        )
        self._state.save(self._state_file)

    def finish(self) -> None:
        """Give the complete file its name."""
        self._file.close()
        if self._is_parquet:
            _write_parquet(self._part, self._output)
            self._part.unlink()
        else:
            self._part.replace(self._output)
        self._state_file.unlink()

    def discard(self) -> None:
        """Remove the file."""
        self._file.close()
        self._part.unlink()
        self._state_file.unlink()


def part_of(output: Path) -> tuple[Path, Path]:
    """Return the names of the file with the rows of an incomplete table, and of that with its state."""
    return output.with_name(f"{output.name}.part"), output.with_name(f"{output.name}.part.json")


def task_of(model: Path, *options: object) -> str:
    """Return a digest of the files of a model, a run folder or an exported file, and of options."""
    digest = hashlib.blake2b(repr(options).encode(), digest_size=16)
    folders = [model, *sorted(model.glob("members/*"))]
    files = [file for folder in folders for name in MODEL_FILES for file in sorted(folder.glob(name))]
    for path in [model] if model.is_file() else files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def write_chunks(
    paths: Iterator[str],
    make: Callable[[list[str]], tuple[Columns, list[Unreadable]]],
    rows: Rows,
    report: Callable[[list[Unreadable]], None],
) -> int:
    """Write the rows of images, a chunk at a time, and return the number of rows.

    Args:
        paths: image files.
        make: function of the files of a chunk that returns their rows, and the files that were left out.
        rows: the place of the rows.
        report: called with the files of each chunk that were left out.

    Raises:
        DataError: no file can be read as an image.
    """
    rows.skip(paths)
    first: Unreadable | None = None
    count = 0
    while chunk := list(islice(paths, CHUNK)):
        columns, unreadable = make(chunk)
        report(unreadable)
        rows.append(chunk, columns)
        count += len(chunk)
        first = first or next(iter(unreadable), None)
    if not rows.num_rows:
        found = f"; the first is {first.path}: {first.reason}" if first else ""
        raise DataError(f"none of the {count} files can be read as an image{found}")
    return rows.num_rows


def _count(columns: Columns) -> int:
    """Return the number of rows."""
    return len(next(iter(columns.values())))


def _csv_bytes(columns: Columns, with_header: bool) -> bytes:
    """Return rows as CSV, without formulas that a spreadsheet would run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if with_header:
        writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{value:{DIGITS}}" if isinstance(value, float) else as_cell(value) for value in row])
    return text.getvalue().encode("utf-8", "backslashreplace")  # a name that is not UTF-8 is escaped


def _arrow_bytes(columns: Columns, with_header: bool) -> bytes:
    """Return rows as a part of an Arrow stream, whose header is the schema."""
    import pyarrow as pa

    arrays: dict[str, pa.Array] = {}
    for name, values in columns.items():
        if isinstance(values[0], str):
            texts = [str(value).encode("utf-8", "backslashreplace").decode() for value in values]
            arrays[name] = pa.array(texts, pa.string())
        else:
            arrays[name] = pa.array(values, pa.float32())
    batch = pa.record_batch(arrays)
    header = batch.schema.serialize().to_pybytes() if with_header else b""
    return bytes(header + batch.serialize().to_pybytes())


def _write_parquet(stream: Path, output: Path) -> None:
    """Write the rows of an Arrow stream as a Parquet file."""
    import pyarrow as pa
    from pyarrow import ipc, parquet

    partial = output.with_name(f"{output.name}.tmp")
    with ipc.open_stream(stream.open("rb")) as reader, parquet.ParquetWriter(partial, reader.schema) as writer:
        while batches := list(islice(reader, GROUPED)):
            writer.write_table(pa.Table.from_batches(batches))
    partial.replace(output)
