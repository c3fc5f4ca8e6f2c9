"""Define the hook through which long operations report their progress."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Hook that receives the name of the task, the number of finished items and the number of all items."""


def no_progress(_task: str, _done: int, _total: int) -> None:
    """Report nothing."""
