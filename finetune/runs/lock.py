"""Let one process at a time write to a run folder; the lock says which one holds it.

The system releases a lock when its process ends, however it ends, so that no lock is left behind: the file of one that
was killed is taken over.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from finetune.errors import RunFolderError
from finetune.names import quoted
from finetune.processes import from_main_process, is_main_process
from finetune.runs.live import LOCK

try:
    import fcntl
except ImportError:  # Windows, where state.json alone tells of another process
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(folder: Path, check: Callable[[Path], None] = lambda _: None) -> Iterator[None]:
    """Hold the lock of a run folder inside the context; a folder in which nothing was written is removed at its end.

    All processes must call this; the main one holds the lock.

    Args:
        folder: the run folder, which may be missing.
        check: function that refuses a folder, called once no other process can change it.

    Raises:
        RunFolderError: another process holds the lock, or `check` refuses the folder.
    """
    descriptor = from_main_process(lambda: _acquire(folder, check))
    try:
        yield
    finally:
        if descriptor is not None and is_main_process():
            _release(folder, descriptor)


def _acquire(folder: Path, check: Callable[[Path], None]) -> int | None:
    """Return the descriptor of the lock; None where the system or the disk has no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = None if fcntl is None else _open(folder / LOCK)
    try:
        check(folder)
    except BaseException:
        if descriptor is not None:
            _release(folder, descriptor)
        raise
    if descriptor is not None:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode() + b"\n")
    return descriptor


def _open(path: Path) -> int | None:
    """Return the descriptor of a file that this process has locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RunFolderError(_describe(path)) from None
        except OSError:  # of a file system without locks
            os.close(descriptor)
            return None
        # The process that held the lock may have removed the file between the two calls.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _describe(path: Path) -> str:
    """Return who holds a lock, and what to do."""
    try:
        holder = json.loads(path.read_text("utf-8"))
        who = f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is written this very moment
        who = "another process"
    folder = path.parent
    return (
        f"{folder} is in use by {who}; wait until it has ended, give a new folder with --output, or follow that run: "
        f"finetune watch {quoted(folder)}"
    )


def _release(folder: Path, descriptor: int) -> None:
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
    os.close(descriptor)
    with suppress(OSError):  # unless something was written
        folder.rmdir()
