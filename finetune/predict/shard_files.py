"""Read and write the files of a shard: its rows, the index of its chunks, and its lock."""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from finetune.data import Unreadable
from finetune.errors import RunFolderError

MODEL_FILES = ("plan.json", "config.json", "ensemble.json", "*.safetensors")
"""Files of a run folder, and of each member's, that a prediction depends on."""


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


def refuse_other_files(folder: Path) -> None:
    """Refuse a folder, or a file in its place, that no command for a table has made.

    Raises:
        RunFolderError: there are other files.
    """
    if not folder.exists() or (folder.is_dir() and (folder / "task").exists()):
        return
    # A command that begins at the same time may have made the folder, and not its task yet.
    if not folder.is_dir() or any(path.suffix not in {".lock", ".owner"} for path in folder.iterdir()):
        raise RunFolderError(f"{folder} is not the beginning of a table; rename it, or give another --output")


def hold_lock(path: Path) -> FileLock:
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


def indexes_in(folder: Path) -> list[Path]:
    """Return the indexes of all shards."""
    return sorted(folder.glob("*.jsonl"))


def read_chunks(index: Path, report: Callable[[Sequence[Unreadable]], None]) -> Iterator[tuple[int, DoneChunk]]:
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


def hear_nothing(_left_out: Sequence[Unreadable]) -> None:
    """Ignore the files that were left out."""


def open_at(path: Path, end: int) -> BinaryIO:
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


def append_bytes(file: BinaryIO, content: bytes) -> None:
    """Write bytes to the disk."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def bytes_of(rows: Path, start: int, count: int) -> bytes:
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


def digest_paths(paths: Sequence[str]) -> str:
    """Return a digest of the paths of a chunk."""
    return hashlib.blake2b(b"".join(os.fsencode(path) + b"\0" for path in paths), digest_size=16).hexdigest()
