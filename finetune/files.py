"""Write files that appear whole or not at all, and say in a sentence what a disk refuses."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.names import visible

PARTIAL = ".partial"
"""Ending of the name under which a file is written before it gets its own name."""

ADVICE = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room within the quota of its disk",
    errno.EFBIG: "it is larger than this disk or this process may write",
    errno.EROFS: "give a place on a disk that can be written to",
    errno.EACCES: "give a place where you may read and write",
    errno.EPERM: "give a place where you may read and write",
    errno.ENOTDIR: "a part of its path is a file; give another place",
    errno.EEXIST: "a file is in the place of a folder; give another place",
    errno.EISDIR: "a folder is in the place of a file; give another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EPIPE: "the program that read the output has ended",
}
"""What to do, by the number of the system's error."""


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield the path of a new file, which gets the name `path` when the context ends without an error.

    At every instant, even if the process is killed or the power fails, `path` is the earlier file or the whole new one.

    Args:
        path: name of the file in the end; an earlier file is replaced.
        durable: whether to wait until the disk has the file.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with errors_named(path):
            yield partial
        if durable:
            _wait_for_disk(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)  # a part of a file would take the room that the disk may lack
        raise
    if durable:
        _wait_for_disk(path.parent)


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Raise the errors of the system while a file is written as OSErrors that name it, also those inside errors of
    libraries."""
    try:
        yield
    except Exception as error:
        found = _error_of_disk(error)
        if found is not None and found.filename is None:
            raise OSError(found.errno, found.strerror, str(path)) from None
        raise


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a text as UTF-8 as `replacing` does; what UTF-8 cannot encode is escaped, as JSON and YAML read it."""
    with replacing(path, durable) as partial:
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))


def explain(error: OSError) -> str:
    """Return an error of the system as a sentence: which file, why, and what to do."""
    name = error.filename if error.filename2 is None else error.filename2
    what = "a file" if name is None else os.fsdecode(name) if isinstance(name, (str, bytes)) else f"file {name}"
    advice = ADVICE.get(error.errno or 0)
    return visible(f"{what} cannot be read or written: {error.strerror or error}" + (f"; {advice}" if advice else ""))


def _error_of_disk(error: Exception) -> OSError | None:
    """Return the error of the system behind an error, which libraries hide in errors of their own."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):  # of torch.save
        return error.__context__
    number = re.search(r"\(os error (\d+)\)", str(error))  # of safetensors
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def _wait_for_disk(path: Path) -> None:
    """Wait until the disk has a file or the names in a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EBADF, errno.ENOTSUP}:  # of file systems that cannot
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)
