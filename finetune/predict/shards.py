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

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from finetune.data import Unreadable
from finetune.errors import DataError, RunFolderError
from finetune.predict.rows import (
    Columns,
    chunks_of,
    count_rows,
    encode,
    name_of_chunk,
    nothing_readable,
    write_parquet,
)

MODEL_FILES = ("plan.json", "config.json", "ensemble.json", "*.safetensors")
"""Files of a run folder, and of each member's, that a prediction depends on."""

POLL_SECONDS = 0.2
"""Time between two looks at whether the other processes have ended, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a process among those that write a table together."""

    rank: int = 0
    """Number of the process; the main one has 0."""
    count: int = 1
    """Number of processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneChunk:
    """A chunk whose rows are written: a line of a shard's index."""

    number: int
    """Number of the chunk in the list of images."""
    paths: str
    """Digest of the paths of the chunk."""
    num_images: int
    """Number of images, with those that were left out."""
    num_rows: int
    """Number of rows."""
    num_bytes: int
    """Number of bytes of the rows."""
    header: int
    """Number of these bytes that are the header."""
    left_out: tuple[Unreadable, ...] = ()
    """Images that were left out; the memory holds at most the first one of each chunk."""


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
        _refuse_other_files(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._folder / f"{place.rank}.lock")
        if not place.rank:
            self._begin(task)
        # Earlier commands are described once, by the main process.
        heard = _hear_nothing if place.rank else report
        self._done = {own.number: own for index in _indexes(self._folder) for _, own in _read(index, heard)}
        self._digests: list[str] = []
        """Digest of the paths of each chunk of the list."""
        index = self._folder / f"{place.rank}.jsonl"
        index.touch()
        end = sum(own.num_bytes for _, own in _read(index, _hear_nothing))
        self._rows = _open_at(index.with_suffix(".rows"), end)
        self._index = _open_at(index, index.read_bytes().rfind(b"\n") + 1)

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
            self._digests.append(_digest(chunk))
            if number in self._done:
                self._refuse_other_images(self._done[number])
            elif number % self._place.count == self._place.rank:
                yield number, chunk

    def append(self, number: int, paths: Sequence[str], columns: Columns, left_out: Sequence[Unreadable]) -> None:
        """Write the rows of a chunk, and then that they are written."""
        content, header = encode(columns, self._is_parquet)
        chunk = DoneChunk(
            number=number,
            paths=_digest(paths),
            num_images=len(paths),
            num_rows=count_rows(columns),
            num_bytes=len(content),
            header=header,
            left_out=tuple(left_out),
        )
        _append(self._rows, content)
        _append(self._index, json.dumps(asdict(chunk)).encode() + b"\n")
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
            for index in _indexes(self._folder)
            for start, own in _read(index, _hear_nothing)
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
                _lock(lock).release()
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
        joined = self._folder / "joined"
        with_rows = [chunk for chunk in chunks if chunk[2].num_rows]
        parts = (_bytes_of(index.with_suffix(".rows"), start, own.num_bytes) for index, start, own in with_rows)
        if self._is_parquet:
            write_parquet(parts, joined)
        else:
            with joined.open("wb") as file:
                for number, (part, (_, _, own)) in enumerate(zip(parts, with_rows, strict=True)):
                    file.write(part[own.header if number else 0 :])
        joined.replace(self._output)
        self._discard()

    def _close(self, reason: str) -> None:
        """Close the files, let other commands write, and tell the main process how this one ended."""
        self._rows.close()
        self._index.close()
        if self._place.rank:
            ended = self._folder / f"{self._place.rank}.ended"
            ended.with_suffix(".partial").write_text(reason, "utf-8")
            ended.with_suffix(".partial").replace(ended)
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


def task_of(model: Path | str, *options: object) -> str:
    """Return a digest of the files of a model and of options.

    Args:
        model: a run folder, an exported file, or the name of a pretrained network.
        options: what else the rows depend on.
    """
    digest = hashlib.blake2b(repr(options).encode(), digest_size=16)
    if isinstance(model, str):
        digest.update(model.encode())
        return digest.hexdigest()
    folders = [model, *sorted(model.glob("members/*"))]
    files = [file for folder in folders for name in MODEL_FILES for file in sorted(folder.glob(name))]
    for path in [model] if model.is_file() else files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _refuse_other_files(folder: Path) -> None:
    """Refuse a folder, or a file in its place, that no command for a table has made.

    Raises:
        RunFolderError: there are other files.
    """
    if not folder.exists() or (folder.is_dir() and (folder / "task").exists()):
        return
    # A command that begins at the same time may have made the folder, and not its task yet.
    if not folder.is_dir() or any(path.suffix not in {".lock", ".owner"} for path in folder.iterdir()):
        raise RunFolderError(f"{folder} is not the beginning of a table; rename it, or give another --output")


def _lock(path: Path) -> FileLock:
    """Return the lock of a shard, which this process holds from now on; the system frees it when the process ends.

    Raises:
        RunFolderError: another process holds it.
    """
    lock, owner = FileLock(path), path.with_suffix(".owner")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = owner.read_text("utf-8") if owner.exists() else "another process"
        raise RunFolderError(
            f"{path.parent} is being written by {who}; wait until it has ended, or give another --output"
        ) from None
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
    return lock


def _indexes(folder: Path) -> list[Path]:
    """Return the indexes of all shards."""
    return sorted(folder.glob("*.jsonl"))


def _read(index: Path, report: Callable[[Sequence[Unreadable]], None]) -> Iterator[tuple[int, DoneChunk]]:
    """Yield the chunks of a shard, each with the place of its first byte; a last line that is not whole is left out.

    Args:
        index: index of the shard.
        report: called with the files of each chunk that were left out.

    Raises:
        RunFolderError: the index is damaged.
    """
    start = 0
    with index.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                values: dict[str, Any] = json.loads(line)
                left_out = [Unreadable(**one) for one in values.pop("left_out")]
                own = DoneChunk(**values, left_out=tuple(left_out[:1]))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise RunFolderError(
                    f"{index}, line {number}, is damaged; delete {index.parent}, and start again without --resume"
                ) from None
            report(left_out)
            yield start, own
            start += own.num_bytes


def _hear_nothing(_left_out: Sequence[Unreadable]) -> None:
    """Ignore the files that were left out."""


def _open_at(path: Path, end: int) -> BinaryIO:
    """Return a file that is open for writing behind its first `end` bytes; what was behind them is cut off.

    Raises:
        RunFolderError: the file is shorter.
    """
    file = path.open("ab")
    if file.tell() < end:
        file.close()
        raise _missing_rows(path)
    file.truncate(end)
    return file


def _append(file: BinaryIO, content: bytes) -> None:
    """Write bytes to the disk."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _bytes_of(rows: Path, start: int, count: int) -> bytes:
    """Return `count` bytes of a file.

    Raises:
        RunFolderError: some of them are missing.
    """
    with rows.open("rb") as file:
        file.seek(start)
        found = file.read(count)
    if len(found) < count:
        raise _missing_rows(rows)
    return found


def _missing_rows(rows: Path) -> RunFolderError:
    return RunFolderError(f"rows are missing in {rows}; delete {rows.parent}, and start again without --resume")


def _digest(paths: Sequence[str]) -> str:
    """Return a digest of the paths of a chunk."""
    return hashlib.blake2b(b"".join(os.fsencode(path) + b"\0" for path in paths), digest_size=16).hexdigest()
