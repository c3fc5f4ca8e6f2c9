"""Write the table that a model makes of images: to a file, by any number of processes, or printed."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.data import Unreadable, list_images
from finetune.errors import DataError
from finetune.predict.rows import Make, PrintedRows, nothing_readable, write_chunks
from finetune.predict.shards import open_shard

STDIN = Path("-")
"""Name of the standard input among the images."""


def print_table(
    images: Sequence[Path], load: Callable[[], Make], report: Callable[[Sequence[Unreadable]], None]
) -> tuple[int, int]:
    """Print the table as CSV; return its number of rows, and the number of files that were left out.

    Args:
        images: files, folders, globs, tables, and `-` for standard input.
        load: reads the model, and returns what makes the rows.
        report: called with the files of each chunk that were left out.

    Raises:
        DataError: no file can be read as an image, or a table of paths is damaged.
    """
    rows = PrintedRows()
    write_chunks(list_images(images), load(), rows, report)
    if not rows.num_rows:
        raise DataError(nothing_readable(rows.num_images, rows.first))
    return rows.num_rows, rows.num_images - rows.num_rows


def write_table(
    images: Sequence[Path],
    load: Callable[[], Make],
    output: Path,
    task: str,
    report: Callable[[Sequence[Unreadable]], None],
) -> tuple[int, int]:
    """Write the table as CSV or, if its name ends in .parquet, as Parquet, or continue it; return as `print_table`.

    Several processes share the images: each computes a part, and the main one writes the file. The others return zeros.

    Args:
        images: files, folders, globs, tables, and `-` for standard input.
        load: reads the model, and returns what makes the rows.
        output: file to write, which does not exist yet.
        task: digest of what makes the rows, as `task_of` returns it.
        report: called with the files of each chunk that were left out.

    Raises:
        DataError: no file can be read as an image, a table of paths is damaged, or the images are not those of the rows
            that are written.
        RunFolderError: another process is writing this table, or its rows cannot be continued.
    """
    shard, stdin = open_shard(output, task, report, sys.stdin.buffer if STDIN in images else None)
    try:
        write_chunks(list_images(images, stdin), load(), shard, report)
    except BaseException as error:  # an interruption, too, must let other commands write
        shard.fail(str(error) or type(error).__name__)
        raise
    return shard.finish()
