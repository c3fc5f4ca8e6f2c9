"""Cache arrays and values on disk between runs, under a key made from everything that they depend on.

An entry is a folder that appears whole or not at all, so that a killed or a second process cannot leave half an entry.
The least recently used entries are removed to make room for new ones.
"""

import hashlib
import json
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import platformdirs
from numpy.typing import NDArray

from finetune.errors import CacheError, FinetuneError

Kind = Literal["pixels", "features", "activations", "measurements"]

LARGEST = 16 * 2**30
"""Default limit of the cache's size, in bytes."""

DISK_FRACTION = 0.25
"""Default limit of the cache's size, as a fraction of the disk space that is free or used by the cache."""

FORMAT = 2
"""Version of the entries' format. It is a part of every key, so a new version leaves all earlier entries unused."""

RELEASE_AFTER = 64 * 2**20
"""Size of the mapped pages that are read before they are released, in bytes. Until then they count as this process's
memory."""

MAPPED_AROUND = 16 * mmap.PAGESIZE
"""Size of the neighbourhood that Linux maps around each page that is read, if it is in the page cache, in bytes."""

ABANDONED = 3600.0
"""Time without a change after which a partial entry is removed, in seconds."""

ABOUT = "about.json"
"""Name of the file that describes an entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A cached entry."""

    kind: str
    """Kind of the entry: `pixels`, `features`, `activations` or `measurements`."""
    about: str
    """Human-readable description of what the entry was made from."""
    path: Path
    """Folder of the entry."""
    num_bytes: int
    """Size of the entry's files, in bytes."""
    used: float
    """Time of the last reading or writing, in seconds since 1970."""

    def used_at(self) -> datetime:
        """Return the time of the last reading or writing, in local time."""
        return datetime.fromtimestamp(self.used)


class Writer:
    """Write an entry, row by row."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`."""
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self.arrays: dict[str, dict[str, Any]] = {}

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Append rows (n, ...) to the array `name`; all its rows must have the same shape and type.

        Raises:
            CacheError: the disk is full.
        """
        with _disk_errors_explained():
            if name not in self._files:
                self._files[name] = (self._folder / name).open("wb")
                self.arrays[name] = {"dtype": rows.dtype.str, "shape": [0, *rows.shape[1:]]}
            self.arrays[name]["shape"][0] += len(rows)
            self._files[name].write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        """Write buffered rows to the disk and close all files.

        Raises:
            CacheError: the disk is full.
        """
        with _disk_errors_explained():
            while self._files:
                self._files.popitem()[1].close()


@contextmanager
def _disk_errors_explained() -> Iterator[None]:
    """Turn a disk error into a CacheError that says what to do."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{cache_folder()} cannot be written to ({error.strerror}); make room there, set FINETUNE_CACHE to a "
            f"folder on another disk, or switch the cache off with FINETUNE_CACHE_LIMIT=0; then start again or --resume"
        ) from None


class CachedRows:
    """Rows of an array that is in memory or memory-mapped. Mapped pages are released, so that few stay in this
    process's memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        """Read rows of `array` (n, ...)."""
        self.array = array
        self._unreleased = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.array)

    def __getitem__(self, rows: Any) -> NDArray[Any]:  # noqa: ANN401  (a slice or indices)
        """Return a copy of some rows."""
        # Each row read by its index maps up to MAPPED_AROUND more bytes. Many rows are read in parts; the pages of one
        # part are released before the next part is read.
        pieces = len(rows) if isinstance(rows, (list, np.ndarray)) else 1
        most = max(1, RELEASE_AFTER // MAPPED_AROUND)
        if pieces > most:
            return np.concatenate([self[rows[start : start + most]] for start in range(0, pieces, most)])
        part = np.array(self.array[rows])
        self._unreleased += part.nbytes + pieces * MAPPED_AROUND
        mapping = getattr(self.array, "_mmap", None)
        if self._unreleased > RELEASE_AFTER and mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)  # a page that is read again comes from the system's page cache
            self._unreleased = 0
        return part


def cache_folder() -> Path:
    """Return the folder of the cache: `$FINETUNE_CACHE`, or `finetune` in the user's cache folder of the system.

    The user's cache folder is `$XDG_CACHE_HOME` or `~/.cache` on Linux, `~/Library/Caches` on macOS and
    `%LOCALAPPDATA%` on Windows (there `finetune\\Cache`).
    """
    own = os.environ.get("FINETUNE_CACHE")
    if own:
        return Path(own).expanduser()
    return platformdirs.user_cache_path("finetune", appauthor=False)


def size_limit() -> int:
    """Return the limit of the cache's size, in bytes.

    It is `$FINETUNE_CACHE_LIMIT` (in GB); by default 16 GiB, or a quarter of the disk's free space if that is less.

    Raises:
        CacheError: the environment variable is not a number, or is negative.
    """
    asked = os.environ.get("FINETUNE_CACHE_LIMIT")
    if asked:
        try:
            limit = int(float(asked) * 1e9)
        except (ValueError, OverflowError):
            limit = -1
        if limit < 0:
            raise CacheError(
                f"FINETUNE_CACHE_LIMIT is '{asked}'; give the size in GB, such as 20, or 0 to switch the cache off"
            )
        return limit
    folder = cache_folder()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return min(LARGEST, int(DISK_FRACTION * (shutil.disk_usage(folder).free + _total(list_entries()))))


def make_key(*parts: object) -> str:
    """Return the key of an entry that depends on `parts`, 32 hexadecimal digits; parts that differ must also differ in
    their `str`."""
    text = "\n".join([str(FORMAT), *map(str, parts)])
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def read_arrays(kind: Kind, key: str) -> dict[str, CachedRows] | None:
    """Return the arrays of an entry by name, memory-mapped, or None if the entry is missing or damaged."""
    about = _read_about(kind, key)
    if about is None:
        return None
    folder = cache_folder() / kind / key
    try:
        return {
            name: CachedRows(np.memmap(folder / name, dtype=array["dtype"], mode="r", shape=tuple(array["shape"])))
            for name, array in about["arrays"].items()
        }
    except FileNotFoundError:  # another process has just removed it
        return None
    except (OSError, ValueError, KeyError):
        _discard(folder)
        return None


def read_value(kind: Kind, key: str) -> dict[str, Any] | None:
    """Return the value of an entry, or None if the entry is missing or damaged."""
    about = _read_about(kind, key)
    return None if about is None else about["value"]


@contextmanager
def new_entry(
    kind: Kind, key: str, about: str, num_bytes: int, value: dict[str, Any] | None = None
) -> Iterator[Writer | None]:
    """Make an entry, which appears when the context ends without an error.

    Yields None if the entry cannot be cached: it is larger than the limit, or the folder cannot be written to.

    Args:
        kind: kind of the entry.
        key: key of the entry, from `make_key`.
        about: human-readable description of what the entry is made from.
        num_bytes: expected size of the arrays, in bytes.
        value: small JSON value that is saved with the arrays.

    Raises:
        CacheError: the disk became full.
    """
    # The entry is written next to its final place and renamed at the end, which is atomic.
    partial = cache_folder() / kind / f"{key}.{secrets.token_hex(4)}.partial"
    try:
        fits = _make_room(num_bytes)
        if fits:
            partial.mkdir(parents=True)
    except OSError:
        fits = False
    if not fits:
        yield None
        return
    writer = Writer(partial)
    try:
        yield writer
        writer.close()
        content = {"about": about, "arrays": writer.arrays, "value": value or {}}
        with _disk_errors_explained():
            (partial / ABOUT).write_text(json.dumps(content), "utf-8")
        read_arrays(kind, key)  # removes a damaged entry of the same key
        with suppress(OSError):  # another process was faster and made the same entry
            partial.rename(partial.with_name(key))
    finally:
        with suppress(FinetuneError):  # an earlier disk error is being raised already
            writer.close()
        shutil.rmtree(partial, ignore_errors=True)


def write_value(kind: Kind, key: str, about: str, value: dict[str, Any]) -> None:
    """Cache a small JSON value; do nothing if it cannot be cached."""
    with new_entry(kind, key, about, 0, value):
        pass


def list_entries() -> list[Entry]:
    """Return all entries, the least recently used first."""
    entries: list[Entry] = []
    for path in cache_folder().glob(f"*/*/{ABOUT}"):
        with suppress(OSError, ValueError, KeyError):  # another process has just removed it, or it is damaged
            about = json.loads(path.read_text("utf-8"))
            entries.append(
                Entry(
                    kind=path.parent.parent.name,
                    about=str(about["about"]),
                    path=path.parent,
                    num_bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
                    used=path.stat().st_mtime,
                )
            )
    return sorted(entries, key=lambda entry: entry.used)


def clear() -> int:
    """Remove all entries and return their size, in bytes. A run that is reading an entry is not disturbed."""
    entries = list_entries()
    for path in cache_folder().glob("*/*"):
        if path.parent.name in get_args(Kind) and path.suffix != ".partial":  # damaged entries, too
            shutil.rmtree(path, ignore_errors=True)
    _remove_abandoned()
    return _total(entries) - _total(list_entries())


def _read_about(kind: Kind, key: str) -> dict[str, Any] | None:
    """Return the description of an entry and mark the entry as used, or None if it is missing or damaged."""
    path = cache_folder() / kind / key / ABOUT
    try:
        about: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        _discard(path.parent)  # a process was killed while it removed the entry, or the file is damaged
        return None
    except OSError:
        return None
    with suppress(OSError):  # a read-only cache can still be used
        os.utime(path)
    return about


def _discard(folder: Path) -> None:
    """Remove a damaged entry, so that it can be made again."""
    shutil.rmtree(folder, ignore_errors=True)


def _make_room(num_bytes: int) -> bool:
    """Remove the least recently used entries until `num_bytes` more fit; return whether they do."""
    _remove_abandoned()
    limit = size_limit()
    if num_bytes > limit or limit == 0:
        return False
    entries = list_entries()
    total = _total(entries)
    for entry in entries:
        if total + num_bytes <= limit:
            break
        shutil.rmtree(entry.path, ignore_errors=True)
        total -= entry.num_bytes
    return True


def _remove_abandoned() -> None:
    """Remove the partial entries of killed processes, which have not changed for an hour."""
    for path in cache_folder().glob("*/*.partial"):
        with suppress(OSError):
            written = max(file.stat().st_mtime for file in (path, *path.iterdir()))
            if time.time() - written > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def _total(entries: list[Entry]) -> int:
    return sum(entry.num_bytes for entry in entries)
