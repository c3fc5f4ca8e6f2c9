"""Show the task in progress: a bar on a terminal, a line every 30 seconds elsewhere."""

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from finetune.names import visible
from finetune.progress import duration
from finetune.runs.run_state import RunState

LINE_SECONDS = 30.0
"""Seconds between two lines without a terminal."""

LONGEST_NAME = 34
"""Columns that the name of a task takes at most in front of its bar."""


class Display:
    """The place on a console where the task in progress is shown."""

    def __init__(self, console: Console) -> None:
        """Show nothing until it is started."""
        self._console = console
        self._last = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=LONGEST_NAME)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal or console.quiet,
        )
        self._task: TaskID | None = None
        self._phase = ""

    def start(self) -> None:
        """Begin to show tasks."""
        self._last = time.monotonic()
        self._bar.start()

    def stop(self) -> None:
        """Remove the bar."""
        self._bar.stop()

    def show(self, state: RunState) -> None:
        """Show a state, or nothing if it is not time for another line yet."""
        if self._console.is_terminal:
            self._move_bar(state)
        elif time.monotonic() - self._last >= LINE_SECONDS and state.step < state.of:
            self._last = time.monotonic()
            self._console.print(visible(describe_state(state)), markup=False, highlight=False, soft_wrap=True)

    def _move_bar(self, state: RunState) -> None:
        """Show a state as a bar; remove the bar of a phase that has ended."""
        if self._task is not None and (state.phase != self._phase or state.step >= state.of):
            self._bar.remove_task(self._task)
            self._task = None
            self._bar.refresh()
        if state.step >= state.of:
            return
        if self._task is None:
            self._phase = state.phase
            # A task of a single step has no share that is done: its bar moves to and fro.
            self._task = self._bar.add_task(escape(state.phase), total=state.of if state.of > 1 else None, figures="")
        self._bar.update(self._task, completed=state.step, figures=_figures(state))


def describe_state(state: RunState) -> str:
    """Return a state as a line: the phase, the step, the loss, the held-out accuracy and the time left."""
    parts = []
    if state.of > 1:
        parts.append(f"{'step ' if state.loss is not None else ''}{state.step} of {state.of}")
    if state.loss is not None:
        parts.append(f"loss {state.loss:.3f}")
    if state.accuracy is not None:
        parts.append(f"held-out accuracy {100 * state.accuracy:.1f} %")
    if state.eta is not None:
        parts.append(f"{duration(state.eta)} left")
    return f"{state.phase}: {', '.join(parts)}" if parts else state.phase


def _figures(state: RunState) -> str:
    """Return the figures on the right of a bar."""
    parts = [f"{state.step}/{state.of}"] if state.of > 1 else []
    if state.loss is not None:
        parts.append(f"loss {state.loss:.3f}")
    if state.accuracy is not None:
        parts.append(f"held-out {100 * state.accuracy:.1f} %")
    if state.eta is not None:
        parts.append(f"{duration(state.eta)} left")
    return "  ".join(parts)
