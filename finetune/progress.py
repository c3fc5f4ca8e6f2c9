"""Report progress: the one hook that long operations call."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def no_progress(_task: str, _done: int, _total: int) -> None:
    """Say nothing."""
