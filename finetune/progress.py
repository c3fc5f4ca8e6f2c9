"""Define the hook through which long operations report their progress, and write times in words."""

from collections.abc import Sequence
from typing import Protocol

from finetune.history import Row


class Progress(Protocol):
    """Hook that long operations call as they proceed."""

    def __call__(self, task: str, done: int, total: int, history: Sequence[Row] = (), /) -> None:
        """Receive how far a task is.

        Args:
            task: name of the task.
            done: number of finished items.
            total: number of all items.
            history: all rows of the history of the training in progress, the last one of the step just taken; empty
                for tasks that are not trainings.
        """


def no_progress(_task: str, _done: int, _total: int, _history: Sequence[Row] = ()) -> None:
    """Report nothing."""


def named_progress(progress: Progress, name: str) -> Progress:
    """Return a hook that puts a name before each of its tasks."""
    return lambda task, *rest: progress(f"{name}: {task}", *rest)


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(95)
    '1 min 35 s'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
