"""Compute several batches, or parts of one batch, in parallel on a CPU, each in a thread of its own.

The operations of a small network on small images are too short to be divided among threads: the threads wait for each
other most of the time, and even longer if another program uses a core. Threads that compute separate parts do not wait
for each other (experiments/log.md, 2026-11-25).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch

Given = TypeVar("Given")
Done = TypeVar("Done")


class ThreadTeam:
    """A context with a team of threads, each of which computes on its own part of the cores."""

    def __init__(self, count: int, num_threads: int, apart: bool = False) -> None:
        """Prepare a team of threads.

        Args:
            count: number of threads.
            num_threads: number of OpenMP threads that each of them uses for its operations.
            apart: whether a team of one is a thread of its own, too, so that the calling thread keeps its settings and
                is free for other work.
        """
        self.count = count
        self._apart = apart
        self._num_threads = num_threads
        self._before = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Start the threads; a team of one is the calling thread itself, unless it is to be apart."""
        self._before = torch.get_num_threads()
        if not self._apart:
            torch.set_num_threads(self._num_threads)
        if self.count > 1 or self._apart:
            # OpenMP stores the number of threads separately for each calling thread, so every new thread must set its
            # own.
            self._pool = ThreadPoolExecutor(
                self.count, initializer=torch.set_num_threads, initargs=(self._num_threads,)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads and restore the number of threads of the calling one."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        if not self._apart:
            torch.set_num_threads(self._before)

    def submit(self, work: Callable[[], Done]) -> Future[Done]:
        """Do `work` in the first thread that is free; in a team of one, do it at once."""
        if self._pool is not None:
            return self._pool.submit(work)
        # Without a pool the work is done here, and its errors are raised here.
        done: Future[Done] = Future()
        done.set_result(work())
        return done

    def map(self, work: Callable[[Given], Done], given: Iterable[Given]) -> Iterator[Done]:
        """Yield `work` of each item, in order, while the calling thread takes the next items from `given`."""
        if self._pool is None:
            yield from map(work, given)
            return
        # At most count + 1 items are being worked on or waiting, so that every thread is busy and memory stays bounded.
        # Results are taken in the order of the items, so that their sum does not depend on which thread was faster.
        waiting: deque[Future[Done]] = deque()
        for item in given:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) > self.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
