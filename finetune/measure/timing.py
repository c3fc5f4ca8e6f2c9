"""Time a piece of work, with more repetitions if it is short and among the fastest."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

REPETITIONS = 5
"""Largest number of timed repetitions of short work, after an untimed one in which libraries select their kernels."""

ENOUGH = 0.1
"""Total time of the repetitions after which there are no more, in seconds: long work varies less, and timing a slow
machine would take minutes."""

HOPELESS = 1.5
"""Ratio of the work's time to that of the fastest so far above which the work is timed only once."""

HOPELESS_AT_FIRST = 4.0
"""Ratio above which not even the first, untimed repetition is followed by a timed one. Libraries select their kernels
in it, which takes a CPU far less than that."""


class Rate(NamedTuple):
    """A measured rate, in images per second."""

    fastest: float = 0.0
    """Rate of the fastest repetition, by which settings are compared: other programs can only slow it down."""
    usual: float = 0.0
    """Rate of the median repetition, which is to be expected of a training."""


NOTHING_YET = Rate()
"""Rate before anything was timed."""


def time_rate(work: Callable[[], object], count: int, device: torch.device, best: Rate = NOTHING_YET) -> Rate:
    """Return the rate at which `work` computes `count` images.

    Args:
        work: a call that computes `count` images.
        count: number of images.
        device: the device that computes them.
        best: rate of the fastest work so far; work that is far slower is timed once or not at all.
    """

    def timed() -> float:
        start = time.perf_counter()
        work()
        # A GPU's calls return before the work is done.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - start

    # Hopeless if count / seconds < best / HOPELESS.
    first = timed()
    if device.type == "cpu" and first * best.fastest > HOPELESS_AT_FIRST * count:
        return Rate(round(count / first, 1), round(count / first, 1))
    seconds = [timed()]
    if seconds[0] * best.fastest <= HOPELESS * count:
        while len(seconds) < REPETITIONS and sum(seconds) < ENOUGH:
            seconds.append(timed())
    return Rate(round(count / min(seconds), 1), round(count / statistics.median(seconds), 1))
