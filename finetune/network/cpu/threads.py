"""Several batches, or parts of one, side by side on a CPU: a thread for each instead of all threads in each operation.

The operations of a small network on small images are too short to be shared by threads, which wait for each other most
of the time, and for long where another program has a core. Threads that each do their own part never wait
(experiments/log.md, 2026-11-25).
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
    """A number of threads, each of which computes with its share of the cores; a context."""

    def __init__(self, count: int, num_threads: int) -> None:
        """Prepare `count` streams, whose operations take `num_threads` threads each."""
        self.count = count
        self._num_threads = num_threads
        self._before = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Start the streams; one stream is this thread itself."""
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._num_threads)
        if self.count > 1:
            # The number of threads is each thread's own.
            self._pool = ThreadPoolExecutor(
                self.count, initializer=torch.set_num_threads, initargs=(self._num_threads,)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the streams."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        torch.set_num_threads(self._before)

    def submit(self, work: Callable[[], Done]) -> Future[Done]:
        """Let a stream do `work` when it has nothing else to do; without streams, do it at once."""
        if self._pool is not None:
            return self._pool.submit(work)
        done: Future[Done] = Future()
        done.set_result(work())
        return done

    def map(self, work: Callable[[Given], Done], given: Iterable[Given]) -> Iterator[Done]:
        """Yield `work` of each in order; the next ones are taken from `given` meanwhile, in this thread."""
        if self._pool is None:
            yield from map(work, given)
            return
        waiting: deque[Future[Done]] = deque()
        for item in given:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) > self.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
