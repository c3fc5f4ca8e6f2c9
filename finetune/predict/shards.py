"""Write one table from several processes, so that an interrupted command can be continued.

Process r of n writes the chunks r, r + n, r + 2n, ... of the list of images into files of its own, its shard, in a
folder next to the output. The main process joins the shards in the order of the list. The rows of a chunk do not depend
on the process that computes them, and so the table is the same for any number of processes.

    OUTPUT.part/task         the model and the options that make the rows
    OUTPUT.part/r.rows       rows of process r
    OUTPUT.part/r.jsonl      one line for each chunk whose rows are whole
    OUTPUT.part/r.lock       held by the operating system while process r is at work
    OUTPUT.part/r.owner      the process that holds it, in words
    OUTPUT.part/r.ended      how process r ended, for the main process

A line is written after the rows that it describes are on the disk. What a kill left behind the last whole line is cut
off when the command continues.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from finetune.data import Unreadable
from finetune.errors import DataError, RunFolderError
from finetune.files import replacing, write_text
from finetune.predict.rows import (
    Columns,
    chunks_of,
    count_rows,
    encode,
    name_of_chunk,
    nothing_readable,
    write_parquet,
)
from finetune.predict.shard_files import (
    DoneChunk,
    append_bytes,
    bytes_of,
    digest_paths,
    hear_nothing,
    hold_lock,
    indexes_in,
    open_at,
    read_chunks,
    refuse_other_files,
)

POLL_SECONDS = 0.2
"""Time between two looks at whether the other processes have ended, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a process among those that write a table together."""

    rank: int = 0
    """Number of the process; the main one has 0."""
    count: int = 1
    """Number of processes."""


class Shard:
    """The rows that one process writes."""

    def __init__(self, output: Path, task: str, place: Place, report: Callable[[Sequence[Unreadable]], None]) -> None:
        """Continue the shard, or begin it.

        Args:
            output: the table.
            task: digest of what makes the rows, as `task_of` returns it.
            place: place of this process.
            report: called in the main process with the files that were left out before this command.

        Raises:
            RunFolderError: another process is writing, there are rows of another model or of other options, or rows are
                missing.
        """
        self._output, self._place = output, place
        self._folder = part_of(output)
        self._is_parquet = output.suffix.lower() == ".parquet"
        refuse_other_files(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = hold_lock(self._folder / f"{place.rank}.lock")
        self._digests: list[str] = []
        """Digest of the paths of each chunk of the list."""
        index = self._folder / f"{place.rank}.jsonl"
        try:
            if not place.rank:
                self._begin(task)
            # Earlier commands are described once, by the main process.
            heard = hear_nothing if place.rank else report
            self._done = {own.number: own for each in indexes_in(self._folder) for _, own in read_chunks(each, heard)}
            index.touch()
            end = sum(own.num_bytes for _, own in read_chunks(index, hear_nothing))
            self._rows = open_at(index.with_suffix(".rows"), end)
            self._index = open_at(index, index.read_bytes().rfind(b"\n") + 1)
        except RunFolderError:
            self._lock.release()
            raise

    @property
    def num_rows(self) -> int:
        """Number of rows that are written, as far as this process knows."""
        return sum(chunk.num_rows for chunk in self._done.values())

    def chunks(self, paths: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the files of each chunk that this process is to write.

        Raises:
            DataError: the files of a chunk that is written are others.
        """
        for number, chunk in enumerate(chunks_of(paths)):
            self._digests.append(digest_paths(chunk))
            if number in self._done:
                self._refuse_other_images(self._done[number])
            elif number % self._place.count == self._place.rank:
                yield number, chunk

    def append(self, number: int, paths: Sequence[str], columns: Columns, left_out: Sequence[Unreadable]) -> None:
        """Write the rows of a chunk, and then that they are written."""
        content, header = encode(columns, self._is_parquet)
        chunk = DoneChunk(
            number=number,
            paths=digest_paths(paths),
            num_images=len(paths),
            num_rows=count_rows(columns),
            num_bytes=len(content),
            header=header,
            left_out=tuple(left_out),
        )
        append_bytes(self._rows, content)
        append_bytes(self._index, json.dumps(asdict(chunk)).encode() + b"\n")
        self._done[number] = replace(chunk, left_out=chunk.left_out[:1])

    def finish(self) -> tuple[int, int]:
        """Wait for the other processes and write the table, in the main process; return its number of rows, and the
        number of files that were left out.

        Raises:
            DataError: no file can be read as an image, or the processes were given different lists.
            RunFolderError: another process failed, or rows are missing.
        """
        self._close("")
        if self._place.rank:
            return 0, 0
        self._await_others()
        found = {
            own.number: (index, start, own)
            for index in indexes_in(self._folder)
            for start, own in read_chunks(index, hear_nothing)
        }
        missing = next((number for number in range(len(self._digests)) if number not in found), None)
        if missing is not None:
            raise DataError(
                f"no process was given {name_of_chunk(missing)}; give all processes the same files at the same paths"
            )
        for _, _, own in found.values():
            self._refuse_other_images(own)
        chunks = [found[number] for number in range(len(self._digests))]
        images, rows = sum(own.num_images for _, _, own in chunks), sum(own.num_rows for _, _, own in chunks)
        if not rows:
            self._discard()
            raise DataError(nothing_readable(images, next((one for _, _, own in chunks for one in own.left_out), None)))
        self._join(chunks)
        return rows, images - rows

    def fail(self, reason: str) -> None:
        """End without a table; a single process that has written no row leaves nothing behind."""
        self._close(reason)
        if self._place.count == 1 and not self.num_rows:
            self._discard()

    def _begin(self, task: str) -> None:
        """Refuse to write next to another command, or to continue another one's rows.

        Raises:
            RunFolderError: another process is writing, or there are rows of another model or of other options.
        """
        for lock in self._folder.glob("*.lock"):
            if lock.stem != "0":
                hold_lock(lock).release()
        for ended in self._folder.glob("*.ended"):
            ended.unlink()
        place = self._folder / "task"
        if not place.exists():
            place.write_text(task, "utf-8")
        elif place.read_text("utf-8") != task:
            raise RunFolderError(
                f"{self._folder} has rows of another model or of other options; continue it with the same ones, or "
                f"delete it"
            )

    def _join(self, chunks: "Sequence[tuple[Path, int, DoneChunk]]") -> None:
        """Write the rows of chunks as the table, and remove the shards.

        Args:
            chunks: for each chunk its index, the place of its first byte in the rows, and its line.
        """
        with_rows = [chunk for chunk in chunks if chunk[2].num_rows]
        parts = (bytes_of(index.with_suffix(".rows"), start, own.num_bytes) for index, start, own in with_rows)
        with replacing(self._output) as joined:
            if self._is_parquet:
                write_parquet(parts, joined)
            else:
                with joined.open("wb") as file:
                    for number, (part, (_, _, own)) in enumerate(zip(parts, with_rows, strict=True)):
                        file.write(part[own.header if number else 0 :])
        self._discard()

    def _close(self, reason: str) -> None:
        """Close the files, let other commands write, and tell the main process how this one ended."""
        self._rows.close()
        self._index.close()
        if self._place.rank:
            write_text(self._folder / f"{self._place.rank}.ended", reason, durable=False)
        self._lock.release()

    def _discard(self) -> None:
        """Remove all shards."""
        shutil.rmtree(self._folder)

    def _await_others(self) -> None:
        """Wait until every other process has ended.

        Raises:
            RunFolderError: one of them failed.
        """
        for rank in range(1, self._place.count):
            ended = self._folder / f"{rank}.ended"
            while not ended.exists():
                time.sleep(POLL_SECONDS)
            if reason := ended.read_text("utf-8"):
                raise RunFolderError(f"process {rank} failed: {reason}")

    def _refuse_other_images(self, written: DoneChunk) -> None:
        """Refuse a list of images whose files in a chunk are not those that were written.

        Raises:
            DataError: they are others.
        """
        if self._digests[written.number : written.number + 1] != [written.paths]:
            raise DataError(
                f"{name_of_chunk(written.number)} are not those of {self._folder}; give the same images in the same "
                f"order, or delete it"
            )


def place_of_process() -> Place:
    """Return the place of this process, which torchrun and accelerate launch write into its environment."""
    return Place(rank=int(os.environ.get("RANK", "0")), count=int(os.environ.get("WORLD_SIZE", "1")))


def open_shard(
    output: Path, task: str, report: Callable[[Sequence[Unreadable]], None], stdin: BinaryIO | None = None
) -> tuple[Shard, BinaryIO | None]:
    """Return the shard of this process, and the standard input for it; all processes of a command must call this.

    Several processes cannot read one standard input. The main process copies it into a file, which all of them read.

    Args:
        output: the table.
        task: digest of what makes the rows.
        report: called with the files that were left out before this command.
        stdin: standard input, if paths are read from it.

    Raises:
        RunFolderError: as `Shard`.
    """
    place = place_of_process()
    if place.count == 1:
        return Shard(output, task, place, report), stdin
    from finetune.processes import from_main_process  # it imports torch, which an exported model does not need

    opened: list[Shard] = []
    copy = part_of(output) / "stdin"

    def open_first() -> None:
        opened.append(Shard(output, task, place, report))
        if stdin is not None:
            with copy.open("wb") as file:
                shutil.copyfileobj(stdin, file)

    from_main_process(open_first)
    shard = opened[0] if opened else Shard(output, task, place, report)
    return shard, copy.open("rb") if stdin is not None else None


def part_of(output: Path) -> Path:
    """Return the folder with the shards of an incomplete table."""
    return output.with_name(f"{output.name}.part")
