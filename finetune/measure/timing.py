"""Time a piece of work."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

REPETITIONS = 5
"""Timed after one that is not: the first call plans its kernels."""


LONG = 1.0
"""Seconds of timing from which on fewer repetitions are enough: a slow machine is timed for minutes otherwise, and what
takes long varies less."""


LONG_REPETITIONS = 3
"""Repetitions of what takes long."""


HOPELESS = 1.5
"""What takes so many times the best one's time at first is not timed further."""


class Rate(NamedTuple):
    """Images a second."""

    fastest: float = 0.0
    """Of all repetitions: what other programs slow down for a moment does not tell which way is faster."""
    usual: float = 0.0
    """Their median: what to expect."""


NOTHING_YET = Rate()


def time_rate(work: Callable[[], object], count: int, device: torch.device, best: Rate = NOTHING_YET) -> Rate:
    """Return how many of `count` a second `work` does; once is enough where that is far below the `best` rate."""

    def timed() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed()
    seconds = [timed()]
    if seconds[0] * best.fastest <= HOPELESS * count:
        while len(seconds) < REPETITIONS and (len(seconds) < LONG_REPETITIONS or sum(seconds) < LONG):
            seconds.append(timed())
    return Rate(round(count / min(seconds), 1), round(count / statistics.median(seconds), 1))
