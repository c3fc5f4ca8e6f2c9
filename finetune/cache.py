"""What was computed once and is worth keeping between runs: arrays and values on disk, by what they were made from.

An entry is a folder that appears whole or not at all, so that a kill in the middle or a second process leaves nothing
half written. The least recently used entries make room for new ones.
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
from numpy.typing import NDArray

from finetune.errors import FinetuneError, RecipeError

Kind = Literal["pixels", "features", "activations", "measurements"]

LARGEST = 16 * 2**30
"""Most bytes that the cache takes by default."""

SHARE_OF_DISK = 0.25
"""And at most this share of what is free on the disk or in the cache already."""

FORMAT = 2
"""Part of every key: a new number forgets what earlier versions kept."""

RELEASED = 64 * 2**20
"""Bytes of mapped pages that are read before these are given back: till then they count as this process's memory."""

AROUND = 16 * mmap.PAGESIZE
"""What Linux maps with each page that is read, where the disk's own cache has it."""

ABANDONED = 3600.0
"""Seconds after which an entry in the making counts as left behind."""

ABOUT = "about.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something that is kept."""

    kind: str
    about: str
    """What it was made from, for people."""
    path: Path
    num_bytes: int
    used: float
    """When it was last read or written, in seconds since 1970."""

    def used_at(self) -> datetime:
        """Return the same in local time."""
        return datetime.fromtimestamp(self.used)


class Writer:
    """An entry in the making; arrays grow by rows."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`."""
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self.arrays: dict[str, dict[str, Any]] = {}

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Add rows (n, ...) to the array `name`; all its rows have one shape and type.

        Raises:
            FinetuneError: the disk is full.
        """
        with _explained():
            if name not in self._files:
                self._files[name] = (self._folder / name).open("wb")
                self.arrays[name] = {"dtype": rows.dtype.str, "shape": [0, *rows.shape[1:]]}
            self.arrays[name]["shape"][0] += len(rows)
            self._files[name].write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        """Write out what is buffered.

        Raises:
            FinetuneError: the disk is full.
        """
        with _explained():
            while self._files:
                self._files.popitem()[1].close()


@contextmanager
def _explained() -> Iterator[None]:
    """Say what to do when the disk is full."""
    try:
        yield
    except OSError as error:
        raise FinetuneError(
            f"{cache_folder()} can not be written to ({error.strerror}); make room there, let FINETUNE_CACHE name a "
            f"folder on another disk, or keep nothing with FINETUNE_CACHE_LIMIT=0; then start again or --resume"
        ) from None


class CachedRows:
    """Rows of an array in memory or mapped from the disk; of the latter few stay in this process's memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        """Read rows of `array` (n, ...)."""
        self.array = array
        self._unreleased = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.array)

    def __getitem__(self, rows: Any) -> NDArray[Any]:  # noqa: ANN401  (a slice or indices)
        """Return a copy of some rows."""
        pieces = len(rows) if isinstance(rows, (list, np.ndarray)) else 1
        most = max(1, RELEASED // AROUND)
        if pieces > most:
            return np.concatenate([self[rows[start : start + most]] for start in range(0, pieces, most)])
        part = np.array(self.array[rows])
        self._unreleased += part.nbytes + pieces * AROUND
        mapping = getattr(self.array, "_mmap", None)
        if self._unreleased > RELEASED and mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)  # reading a page again takes it from the disk's own cache
            self._unreleased = 0
        return part


def cache_folder() -> Path:
    """Return where the cache lies: `$FINETUNE_CACHE`, else `finetune` in the user's cache folder."""
    own = os.environ.get("FINETUNE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"


def size_limit() -> int:
    """Return how many bytes the cache may take: `$FINETUNE_CACHE_LIMIT` in GB, else 16 GiB or a quarter of the disk's
    free space, whichever is less.

    Raises:
        RecipeError: the limit is no number.
    """
    asked = os.environ.get("FINETUNE_CACHE_LIMIT")
    if asked:
        try:
            return int(float(asked) * 1e9)
        except (ValueError, OverflowError):
            raise RecipeError(
                f"FINETUNE_CACHE_LIMIT is '{asked}'; give the size in GB, such as 20, or 0 to keep nothing"
            ) from None
    folder = cache_folder()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return min(LARGEST, int(SHARE_OF_DISK * (shutil.disk_usage(folder).free + _total(list_entries()))))


def make_key(*parts: object) -> str:
    """Return the name of what is made from `parts`, whose `str` must tell them apart."""
    text = "\n".join([str(FORMAT), *map(str, parts)])
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def read_arrays(kind: Kind, key: str) -> dict[str, CachedRows] | None:
    """Return an entry's arrays, memory-mapped, or None if there is no such entry."""
    about = _read_about(kind, key)
    if about is None:
        return None
    folder = cache_folder() / kind / key
    try:
        return {
            name: CachedRows(np.memmap(folder / name, dtype=array["dtype"], mode="r", shape=tuple(array["shape"])))
            for name, array in about["arrays"].items()
        }
    except FileNotFoundError:  # cleared by another process meanwhile
        return None
    except (OSError, ValueError, KeyError):
        _discard(folder)
        return None


def read_value(kind: Kind, key: str) -> dict[str, Any] | None:
    """Return an entry's value, or None if there is no such entry."""
    about = _read_about(kind, key)
    return None if about is None else about["value"]


@contextmanager
def new_entry(
    kind: Kind, key: str, about: str, num_bytes: int, value: dict[str, Any] | None = None
) -> Iterator[Writer | None]:
    """Make an entry; it is there when the context ends without an error.

    Yields None where nothing can be kept: it is too large, or the folder can not be written to.

    Args:
        kind: its kind.
        key: from `make_key`.
        about: what it is made from, for people.
        num_bytes: about how large it will be.
        value: something small to keep with the arrays.
    """
    partial = cache_folder() / kind / f"{key}.{secrets.token_hex(4)}.partial"
    try:
        is_kept = _make_room(num_bytes)
        if is_kept:
            partial.mkdir(parents=True)
    except OSError:
        is_kept = False
    if not is_kept:
        yield None
        return
    writer = Writer(partial)
    try:
        yield writer
        writer.close()
        content = {"about": about, "arrays": writer.arrays, "value": value or {}}
        with _explained():
            (partial / ABOUT).write_text(json.dumps(content), "utf-8")
        read_arrays(kind, key)  # takes away what is damaged
        with suppress(OSError):  # another process was faster, and made the same
            partial.rename(partial.with_name(key))
    finally:
        with suppress(FinetuneError):  # told already
            writer.close()
        shutil.rmtree(partial, ignore_errors=True)


def keep_value(kind: Kind, key: str, about: str, value: dict[str, Any]) -> None:
    """Keep something small; where nothing can be kept, it is forgotten."""
    with new_entry(kind, key, about, 0, value):
        pass


def list_entries() -> list[Entry]:
    """Return what is kept, the least recently used first."""
    entries: list[Entry] = []
    for path in cache_folder().glob(f"*/*/{ABOUT}"):
        with suppress(OSError, ValueError, KeyError):  # cleared meanwhile, or no entry of ours
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
    """Remove everything that is kept; return the bytes that it took. A run that reads it meanwhile is not disturbed."""
    entries = list_entries()
    for path in cache_folder().glob("*/*"):
        if path.parent.name in get_args(Kind) and path.suffix != ".partial":  # damaged entries, too
            shutil.rmtree(path, ignore_errors=True)
    _sweep()
    return _total(entries)


def _read_about(kind: Kind, key: str) -> dict[str, Any] | None:
    path = cache_folder() / kind / key / ABOUT
    try:
        about: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        _discard(path.parent)  # what was being removed when something was killed, or was not written whole
        return None
    except OSError:
        return None
    with suppress(OSError):  # a cache that can be read alone is still a cache
        os.utime(path)
    return about


def _discard(folder: Path) -> None:
    """Remove a damaged entry, so that it can be made anew."""
    shutil.rmtree(folder, ignore_errors=True)


def _make_room(num_bytes: int) -> bool:
    """Remove what was not used for longest until `num_bytes` more fit; return whether they do."""
    _sweep()
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


def _sweep() -> None:
    """Remove what killed processes left half written: nothing was added to it for an hour."""
    for path in cache_folder().glob("*/*.partial"):
        with suppress(OSError):
            written = max(file.stat().st_mtime for file in (path, *path.iterdir()))
            if time.time() - written > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def _total(entries: list[Entry]) -> int:
    return sum(entry.num_bytes for entry in entries)
