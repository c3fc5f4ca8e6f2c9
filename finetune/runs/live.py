"""Keep the state and the history of a run on disk while it is in progress."""

import json
import os
import socket
import time
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

import psutil

from finetune.errors import RunFolderError
from finetune.files import write_text
from finetune.history import Row
from finetune.runs.run_state import RunState
from finetune.value import read_json

STATE = "state.json"
"""Name of the file with the state of a run."""

LOCK = "lock.json"
"""Name of the file that the process at work in a run folder has locked."""

HISTORY = "history.jsonl"
"""Name of the file with the history of a run, a row for each step."""

WRITE_SECONDS = 1.0
"""Shortest time between two states on disk."""


class StateFile:
    """The file with the state of a run, which is written at most once a second."""

    def __init__(self, folder: Path) -> None:
        """Write nothing yet, so that a mistake in the recipe leaves no folder."""
        self._path = folder / STATE
        self._written = -WRITE_SECONDS

    def write(self, state: RunState, now: bool = False) -> None:
        """Write a state, unless another one was written in the last second and this one is not wanted `now`."""
        if not now and time.monotonic() - self._written < WRITE_SECONDS:
            return
        self._written = time.monotonic()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state.save(self._path, durable=False)  # a state is soon replaced by the next one

    def discard(self) -> None:
        """Remove the file, and the folder if nothing else is in it."""
        self._path.unlink(missing_ok=True)
        if self._path.parent.is_dir() and not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()


class HistoryFile:
    """The file with the history of a run, which grows by a row with each step."""

    def __init__(self, folder: Path) -> None:
        """Write nothing yet."""
        self._path = folder / HISTORY
        self._file: TextIOWrapper | None = None
        self._key = ("", "")
        self._count = 0
        self._before = 0

    def add(self, training: str, history: Sequence[Row]) -> list[tuple[int, Row]]:
        """Write the new rows of a training, and return them with their numbers in the file, from 1.

        Where a training starts, or continues from a checkpoint, its rows in the file are replaced by those of the
        checkpoint: an interrupted process may have written later ones.

        Args:
            training: name of the training, if the run has several; it is added to its rows.
            history: all rows of the phase in progress.
        """
        key = (training, str(history[-1]["phase"]))
        if key != self._key or self._file is None:
            self._begin(key)
        new = [row | ({"training": training} if training else {}) for row in history[self._count :]]
        assert self._file is not None
        self._file.write("".join(json.dumps(row) + "\n" for row in new))
        self._file.flush()
        numbered = list(enumerate(new, start=self._before + self._count + 1))
        self._count = len(history)
        return numbered

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self, key: tuple[str, str]) -> None:
        """Remove the rows of a training's phase, and open the file behind those of the others."""
        self.close()
        rows = read_rows(self._path.parent)
        others = [row for row in rows if (row.get("training", ""), row["phase"]) != key]
        if len(others) < len(rows):
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in others))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8")
        self._key, self._count, self._before = key, 0, len(others)


def read_rows(folder: Path) -> list[Row]:
    """Return the rows of a history that may be growing; a last line that is not whole yet is left out.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = folder / HISTORY
    try:
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    except (UnicodeDecodeError, OSError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from None
    return [_read_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.endswith("\n")]


def _read_row(line: str, origin: str) -> Row:
    """Return a row of a history.

    Raises:
        RunFolderError: the line is not a row.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{origin}, is not valid JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("phase"), str):
        raise RunFolderError(f"{origin}, is not a row of a history: it has no phase")
    for key, value in row.items():
        is_quantity = key in {"step", "seconds", "learning_rate"} or key.startswith(("train_", "validation_"))
        if is_quantity and (not isinstance(value, (int, float)) or isinstance(value, bool)):
            raise RunFolderError(f"{origin}: {key} must be a number, but is {value!r:.100}")
    return row


def read_state(folder: Path) -> RunState | None:
    """Return the state of a run; None if there is none.

    Raises:
        RunFolderError: the file is not a state.
    """
    try:
        content = read_json(folder / STATE, RunFolderError)
    except FileNotFoundError:
        return None
    return RunState.parse(content, str(folder / STATE), RunFolderError)


def is_alive(state: RunState) -> bool:
    """Return whether the process of a run may still be at work; that of another machine cannot be seen."""
    if state.status != "running":
        return False
    if state.host != socket.gethostname():
        return True
    try:
        # Another process may have the same number by now; it started later than this state was written.
        return psutil.Process(state.pid).create_time() <= state.updated_seconds + WRITE_SECONDS
    except psutil.NoSuchProcess:
        return False


def refuse_if_in_use(folder: Path) -> None:
    """Refuse a folder in which another process is at work.

    Raises:
        RunFolderError: there is such a process.
    """
    state = read_state(folder)
    if state is not None and is_alive(state) and (state.pid, state.host) != (os.getpid(), socket.gethostname()):
        raise RunFolderError(
            f"{folder} is in use by process {state.pid} on {state.host}; give a new folder with --output, or follow "
            f"that run: finetune watch {folder}"
        )
