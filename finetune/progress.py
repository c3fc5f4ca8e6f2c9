"""Define the hook through which long operations report their progress, and write times in words."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Hook that receives the name of the task, the number of finished items and the number of all items."""


def no_progress(_task: str, _done: int, _total: int) -> None:
    """Report nothing."""


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
