"""Record a run while it is in progress: its state, its history, and the trackers that get the history."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetune.decide.planned_run import PlannedRun
from finetune.history import Row
from finetune.runs.live import HistoryFile, StateFile
from finetune.runs.run_state import RunState
from finetune.runs.status import Status
from finetune.runs.tracking import Trackers


class Recorder:
    """What is written while a run is in progress: its state from its first measurement on, its history from its first
    step on."""

    def __init__(self, folder: Path) -> None:
        """Write nothing yet; the first task in progress makes the folder."""
        self._folder = folder
        self._state = StateFile(folder)
        self._history: HistoryFile | None = None
        self._trackers: Trackers | None = None

    def begin(self, planned: PlannedRun) -> None:
        """Record the history from now on, unless it is recorded already: a training may begin anew.

        Args:
            planned: the leading training; its recipe names the trackers.

        Raises:
            RecipeError: a tracker cannot be started.
        """
        if self._history is not None:
            return
        self._history = HistoryFile(self._folder)
        if planned.recipe.track:
            self._trackers = Trackers(planned.recipe.track, planned, self._folder)

    def record(self, state: RunState, task: str, history: Sequence[Row]) -> None:
        """Record how far a task is.

        Args:
            state: state of the run.
            task: name of the task.
            history: all rows of the training in progress; empty for other tasks.
        """
        self._state.write(state)
        if self._history is not None and history:
            rows = self._history.add(task.rpartition(": ")[0], history)
            if self._trackers is not None:
                self._trackers.log(rows)

    def end(self, status: Status, error: BaseException | None) -> str:
        """Record how the run ended; return the error that ended the tracking, "" if there was none.

        Args:
            status: status of the run.
            error: the error or the interruption that ended the run; None if it has finished.
        """
        problem = self._trackers.close() if self._trackers is not None else ""
        is_search = (self._folder / "tuning.json").exists()
        if self._history is None and not is_search:
            self._state.discard()  # there is nothing to resume
            return problem
        if self._history is not None:
            self._history.close()
        if error is None:
            state = status.end("finished")
        elif isinstance(error, KeyboardInterrupt):
            state = status.end("interrupted")
        else:
            state = status.end("failed", f"{error}")
        with suppress(OSError):  # of a full disk, which may have ended the run
            self._state.write(state, now=True)
        return problem
